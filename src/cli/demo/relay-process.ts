import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { systemClock, withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { secretsOf } from '../../daemon/redact.ts'

/** How long a relay may take until it is at work. */
const START_TIMEOUT_MS = 30_000
const DRAIN_TIMEOUT_MS = 5000
/** How much of what it said is kept, to tell why it ended. */
const KEPT_LINES = 5

/** `millrace relay` in a process of its own, which can be killed and started again. */
export class RelayProcess {
  /** Resolves with an error when it ends though nobody asked it to. */
  readonly failed: Promise<Error>
  kills = 0
  readonly #args: readonly string[]
  readonly #environment: NodeJS.ProcessEnv
  readonly #failure = Promise.withResolvers<Error>()
  #closed = false
  #running: Running | undefined

  constructor(options: { readonly broker: string; readonly databaseUrl: string }) {
    this.failed = this.#failure.promise
    const { broker, databaseUrl } = options
    // An argument can be read by everybody on the machine.
    const secret = secretsOf(broker).length > 0
    this.#args = ['relay', '--database-url', databaseUrl, ...(secret ? [] : ['--broker', broker])]
    this.#environment = { ...ownEnvironment(), ...(secret ? { MILLRACE_BROKER: broker } : {}) }
  }

  get pid(): number {
    return this.#running?.child.pid ?? 0
  }

  /** Starts it, and resolves when it is relaying. */
  async start(): Promise<void> {
    if (this.#closed) return
    const running = new Running(this.#args, this.#environment)
    this.#running = running
    void running.ended.then((how) => {
      if (!running.asked) this.#failure.resolve(failure(how, running))
    })
    const atWork = Promise.race([running.relaying, running.ended])
    await withDeadline(systemClock, atWork, START_TIMEOUT_MS, () => {
      return failure(`not at work after ${START_TIMEOUT_MS} ms`, running)
    })
  }

  /** Kills it with SIGKILL; resolves when it is gone. */
  async kill(): Promise<void> {
    if (await this.#end('SIGKILL')) this.kills++
  }

  /** Asks it to drain and waits; resolves with what went wrong, if anything did. */
  async drain(): Promise<string | undefined> {
    const running = this.#running
    if (running === undefined) return undefined
    running.ask('SIGTERM')
    const overdue = (): Error => new Error('overdue')
    try {
      const how = await withDeadline(systemClock, running.ended, DRAIN_TIMEOUT_MS, overdue)
      return how === 'exit code 0' ? undefined : how
    } catch {
      await this.#end('SIGKILL')
      return `it was still there after ${DRAIN_TIMEOUT_MS} ms`
    }
  }

  /** Ends it at once and for good. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#end('SIGKILL')
  }

  async #end(signal: NodeJS.Signals): Promise<boolean> {
    const running = this.#running
    if (running === undefined) return false
    const delivered = running.ask(signal)
    await running.ended
    return delivered
  }
}

/** One run of the relay. */
class Running {
  asked = false
  readonly child: ChildProcess
  /** Resolves with how it ended. */
  readonly ended: Promise<string>
  readonly lastLines: string[] = []
  readonly relaying: Promise<void>

  constructor(args: readonly string[], environment: NodeJS.ProcessEnv) {
    const relaying = Promise.withResolvers<void>()
    this.relaying = relaying.promise
    const options = ['--disable-warning=ExperimentalWarning', '--import', neighbour('end-with-parent').href]
    this.child = spawn(process.execPath, [...options, fileURLToPath(neighbour('../main')), ...args], {
      // In a session of its own: a Ctrl-C in the terminal reaches the demo alone, which then ends it.
      detached: true,
      env: environment,
      // Nobody writes to its standard input; end-with-parent.ts says what it is for.
      stdio: ['pipe', 'pipe', 'pipe'],
    })
    this.ended = new Promise((resolve) => {
      this.child.once('error', (error) => resolve(error.message))
      this.child.once('close', (code, signal) => resolve(signal === null ? `exit code ${code}` : `signal ${signal}`))
    })
    this.child.stdin?.on('error', () => {})
    for (const output of [this.child.stdout, this.child.stderr]) {
      if (output === null) continue
      createInterface({ input: output }).on('line', (line) => {
        this.lastLines.push(line)
        if (this.lastLines.length > KEPT_LINES) this.lastLines.shift()
        if (line.includes('"state":"relaying"')) relaying.resolve()
      })
    }
  }

  /** Sends the signal; false when it is gone already. */
  ask(signal: NodeJS.Signals): boolean {
    this.asked = true
    return this.child.kill(signal)
  }
}

/** A program beside this one, as source or as built. */
function neighbour(name: string): URL {
  return new URL(`${name}${path.extname(import.meta.filename)}`, import.meta.url)
}

/** Settings that are meant for another relay or another database stay out. */
function ownEnvironment(): NodeJS.ProcessEnv {
  const others = /^(MILLRACE_|PG|DATABASE_URL$|NODE_OPTIONS$)/
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !others.test(name)))
}

function failure(how: string, { lastLines }: Running): MillraceError {
  return new MillraceError('SERVICE_START_FAILED', `The relay failed: ${how}. Its last words:\n${lastLines.join('\n')}`)
}
