import { rm } from 'node:fs/promises'
import { MillraceError } from '../../core/errors.ts'
import { allGone } from './processes.ts'
import { Keeper, ServerProcess, type Launch } from './server-process.ts'

/** What a server needs to run: the same at every start. */
export interface ServerPlan {
  /** Where clients connect: `host:port`. */
  readonly address: string
  /** Removed with the server. */
  readonly folder: string
  readonly launch: Launch
  readonly name: string
  readonly port: number
  /** Resolves with the server's version when it is ready for clients, with undefined while it is not. */
  readonly probe: () => Promise<string | undefined>
  readonly startTimeoutMs: number
  readonly stopTimeoutMs: number
  readonly url: string
}

/** A server of one process, in a temporary folder. Made by `startNats` and `startKafka`. */
export class PrivateServer implements AsyncDisposable {
  /** Where clients connect: `host:port`. */
  readonly address: string
  /** Where the server writes its log. */
  readonly logFile: string
  readonly port: number
  /** The address as the command line takes it: `nats://…`, `kafka://…`. */
  readonly url: string
  readonly #keeper: Keeper
  readonly #plan: ServerPlan
  #process: ServerProcess | undefined
  #version = ''

  private constructor(plan: ServerPlan) {
    this.address = plan.address
    this.logFile = plan.launch.logFile
    this.port = plan.port
    this.url = plan.url
    this.#keeper = new Keeper('KILL', plan.folder)
    this.#plan = plan
  }

  /** @internal */
  static async start(plan: ServerPlan): Promise<PrivateServer> {
    const server = new PrivateServer(plan)
    try {
      await server.start()
    } catch (error) {
      await server.dispose()
      throw error
    }
    return server
  }

  /** The process id of the server itself: it can be stopped and continued by signals. */
  get pid(): number {
    if (this.#process?.running) return this.#process.pid
    throw new MillraceError('SERVICE_UNAVAILABLE', `${this.#plan.name} is not running: call start() first.`)
  }

  /** Whether its process runs. */
  get running(): boolean {
    return this.#process?.running === true
  }

  /** The version the server names. */
  get version(): string {
    return this.#version
  }

  /** Starts the server on the data it has, and resolves when it answers. Nothing happens when it runs. */
  async start(): Promise<void> {
    if (this.#process?.running) return
    const { launch, name, probe, startTimeoutMs } = this.#plan
    this.#process = await ServerProcess.start(launch, this.#keeper)
    this.#version = await this.#process.ready(name, startTimeoutMs, probe)
  }

  /** Stops the server as an operator would. One that does not stop in time is killed, and SHUTDOWN_TIMEOUT is thrown. */
  async stop(): Promise<void> {
    const process = this.#process
    if (!process?.running) return
    process.signal('SIGTERM')
    const { name, stopTimeoutMs } = this.#plan
    if (await process.gone(stopTimeoutMs)) return
    await this.kill()
    throw new MillraceError('SHUTDOWN_TIMEOUT', `${name} did not stop within ${stopTimeoutMs} ms; it was killed.`)
  }

  /** Kills the server with SIGKILL. */
  async kill(): Promise<void> {
    const process = this.#process
    if (!process?.running) return
    process.signal('SIGKILL')
    await process.gone(10_000)
    await allGone([process.pid], 1_000)
  }

  /** Stops and starts the server: same data, same port. */
  async restart(): Promise<void> {
    await this.stop()
    await this.start()
  }

  /** Kills the server and removes its temporary folder. */
  async dispose(): Promise<void> {
    await this.kill()
    await rm(this.#plan.folder, { recursive: true, force: true, maxRetries: 3 })
    this.#keeper.dismiss()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}
