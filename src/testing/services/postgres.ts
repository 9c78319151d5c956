/** A private PostgreSQL over the real programs, for tests that restart or kill it and for the demo. */
import { chown, cp, lchown, mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MillraceError } from '../../core/errors.ts'
import { run } from './commands.ts'
import { freePort } from './ports.ts'
import { findPostgres, type PostgresBinaries, type PostgresVersion } from './postgres-binaries.ts'
import { askPostgres } from './postgres-protocol.ts'
import { isReachable, postgresUser, type SystemUser } from './postgres-user.ts'
import { allGone, childrenOf } from './processes.ts'
import { Keeper, ServerProcess } from './server-process.ts'

/** What a server is made from: where it lives, which programs it runs, and as whom. */
export interface PostgresParts {
  readonly bin: string
  readonly folder: string
  readonly keeper: Keeper
  readonly origin: string
  readonly port: number
  readonly user: SystemUser | undefined
}

/** How PostgreSQL is asked to stop: when the clients have left, now and cleanly, or as in a crash. */
export type StopMode = 'smart' | 'fast' | 'immediate'

/** How a private PostgreSQL is made. */
export interface PostgresOptions {
  /**
   * Where the data is. Give one to keep the data after `dispose`; it is initialised when it is empty or missing. Default:
   * a temporary folder, removed with the server.
   */
  readonly dataDir?: string
  /** The port on 127.0.0.1. Default: a free one; it stays the same over restarts. */
  readonly port?: number
  /** More lines for postgresql.conf; they win over the defaults here, and `ALTER SYSTEM` wins over them. Default: none. */
  readonly settings?: Readonly<Record<string, string>>
  /** How long a start may take until the server answers, milliseconds. Default: 60000. */
  readonly startTimeoutMs?: number
  /** How long a stop may take before the server is killed, milliseconds. Default: 30000. */
  readonly stopTimeoutMs?: number
  /** The major version. Default: 18. */
  readonly version?: PostgresVersion
}

const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '127.0.0.1',
  max_connections: '200',
  max_replication_slots: '64',
  max_wal_senders: '64',
  unix_socket_directories: '',
  wal_level: 'logical',
}

/** How long a server that is disposed of may take to quit before it is killed. */
const QUIT_TIMEOUT_MS = 2_000

const SIGNALS = { smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT' } as const

/**
 * Starts a private PostgreSQL: superuser `postgres` without a password, on 127.0.0.1, `wal_level = logical`, durable. It
 * ends with this process, whatever ends this process.
 *
 * @example
 * const server = await startPostgres({ version: 15 })
 * await server.restart('immediate')
 * await server.dispose()
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const server = new PostgresServer(options, await postgresParts(options))
  try {
    await server.start()
  } catch (error) {
    await server.dispose()
    throw error
  }
  return server
}

/** @internal Finds the programs and makes the folder of a server. */
export async function postgresParts(options: PostgresOptions): Promise<PostgresParts> {
  const binaries = await findPostgres(options.version ?? 18)
  const user = await postgresUser()
  const folder = await makeFolder(user)
  const keeper = new Keeper('QUIT', folder)
  try {
    const bin = await reachablePrograms(binaries, folder, user)
    const port = options.port ?? (await freePort())
    return { bin, folder, keeper, origin: binaries.origin, port, user }
  } catch (error) {
    keeper.dismiss()
    throw error
  }
}

/** A private PostgreSQL. Made by {@link startPostgres}. */
export class PostgresServer implements AsyncDisposable {
  readonly dataDir: string
  /** @internal Removed with the server; its user may write here. */
  readonly folder: string
  /** @internal */
  readonly options: PostgresOptions
  /** Where the programs came from, for people. */
  readonly origin: string
  readonly port: number
  /** The connection string of the superuser, to the database `postgres`. */
  readonly url: string
  /** @internal Who runs it and owns its files, when it is not us. */
  readonly user: SystemUser | undefined
  readonly #bin: string
  readonly #keeper: Keeper
  #process: ServerProcess | undefined
  #version = ''

  /** @internal */
  constructor(options: PostgresOptions, parts: PostgresParts) {
    this.dataDir = options.dataDir ?? join(parts.folder, 'data')
    this.folder = parts.folder
    this.options = options
    this.origin = parts.origin
    this.port = parts.port
    this.url = `postgres://postgres@127.0.0.1:${parts.port}/postgres`
    this.user = parts.user
    this.#bin = parts.bin
    this.#keeper = parts.keeper
  }

  /** The process id of the postmaster. */
  get pid(): number {
    return this.#live().pid
  }

  /** The version the server names, such as `18.4`. */
  get version(): string {
    return this.#version
  }

  /** Starts the server on the data it has, and resolves when it answers. Nothing happens when it runs. */
  async start(): Promise<void> {
    if (this.#process?.running) return
    if ((await readFile(join(this.dataDir, 'PG_VERSION'), 'utf8').catch(() => '')) === '') await this.#initialise()
    await this.#configure()
    const process = await ServerProcess.start(
      {
        args: ['-D', this.dataDir],
        command: join(this.#bin, 'postgres'),
        cwd: this.folder,
        env: this.#env(),
        logFile: this.logFile,
        user: this.user,
      },
      this.#keeper,
    )
    this.#process = process
    const timeoutMs = this.options.startTimeoutMs ?? 60_000
    this.#version = await process.ready('PostgreSQL', timeoutMs, () => askPostgres(this.port))
  }

  /** Where the server writes its log. */
  get logFile(): string {
    return join(this.folder, 'server.log')
  }

  /** Stops the server. One that does not stop in time is killed, and SHUTDOWN_TIMEOUT is thrown. Default mode: `fast`. */
  async stop(mode: StopMode = 'fast'): Promise<void> {
    const process = this.#process
    if (!process?.running) return
    process.signal(SIGNALS[mode])
    const timeoutMs = this.options.stopTimeoutMs ?? 30_000
    if (await process.gone(timeoutMs)) return
    await this.kill()
    throw new MillraceError(
      'SHUTDOWN_TIMEOUT',
      `PostgreSQL did not stop (${mode}) within ${timeoutMs} ms; it was killed.`,
    )
  }

  /** Kills the postmaster and all its children with SIGKILL, as the machine's memory guard or a power cut would. */
  async kill(): Promise<void> {
    const process_ = this.#process
    if (!process_?.running) return
    // Each child leads a session of its own, so no signal to a group reaches them; stopped, the postmaster makes no more.
    process_.signal('SIGSTOP')
    const children = await childrenOf(process_.pid)
    for (const pid of children) killOne(pid)
    process_.signal('SIGKILL')
    await process_.gone(10_000)
    // The shared memory of the old server is free, and a new one can start, only when the last child is gone.
    await allGone(children, 5_000)
  }

  /** An immediate shutdown: a server that is killed leaves a segment of shared memory, of which the system has few. */
  async #quit(): Promise<void> {
    const process = this.#process
    if (!process?.running) return
    process.signal(SIGNALS.immediate)
    process.signal('SIGCONT') // it may stand still
    await process.gone(QUIT_TIMEOUT_MS)
  }

  /** Stops and starts the server: same data, same port. */
  async restart(mode: StopMode = 'fast'): Promise<void> {
    await this.stop(mode)
    await this.start()
  }

  /** Ends the server at once and removes its temporary folder. */
  async dispose(): Promise<void> {
    await this.#quit()
    await this.kill()
    await rm(this.folder, { recursive: true, force: true, maxRetries: 3 })
    this.#keeper.dismiss()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #live(): ServerProcess {
    if (this.#process?.running) return this.#process
    throw new MillraceError('SERVICE_UNAVAILABLE', 'The PostgreSQL server is not running: call start() first.')
  }

  async #initialise(): Promise<void> {
    const args = ['-D', this.dataDir, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
    await run(join(this.#bin, 'initdb'), [...args, '--no-instructions'], {
      cwd: this.folder,
      env: this.#env(),
      timeoutMs: this.options.startTimeoutMs ?? 60_000,
      user: this.user,
    })
  }

  /** Settings stand in files, not on the command line, so that a test can change them by ALTER SYSTEM. */
  async #configure(): Promise<void> {
    const settings = { ...SETTINGS, ...this.options.settings, port: String(this.port) }
    const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`)
    const file = join(this.dataDir, 'millrace.conf')
    await writeFile(file, lines.join(''))
    if (this.user !== undefined) await chown(file, this.user.uid, this.user.gid)
    const main = join(this.dataDir, 'postgresql.conf')
    const include = "\ninclude 'millrace.conf'\n"
    if (!(await readFile(main, 'utf8')).includes(include)) await writeFile(main, include, { flag: 'a' })
  }

  #env(): NodeJS.ProcessEnv {
    const own = Object.entries(process.env).filter(([name]) => !name.startsWith('PG') && !name.startsWith('LC_'))
    return { ...Object.fromEntries(own), HOME: this.folder, LC_ALL: 'C', TZ: 'UTC' }
  }
}

/** A temporary folder that the server's user owns and can reach. */
async function makeFolder(user: SystemUser | undefined): Promise<string> {
  for (const base of [tmpdir(), '/tmp', '/var/tmp']) {
    if (!(await stat(base).catch(() => undefined)) || !(await isReachable(base, user))) continue
    const folder = await mkdtemp(join(base, 'millrace-postgres-'))
    if (user !== undefined) await chown(folder, user.uid, user.gid)
    return folder
  }
  throw new MillraceError(
    'SERVICE_START_FAILED',
    'No temporary folder can be reached by the user that runs PostgreSQL: set TMPDIR to a folder that others may enter.',
  )
}

/** Programs below a folder that keeps the server's user out, such as the home of root, are copied next to the data. */
async function reachablePrograms(
  binaries: PostgresBinaries,
  folder: string,
  user: SystemUser | undefined,
): Promise<string> {
  if (user === undefined || binaries.home === undefined) return binaries.bin
  if (await isReachable(join(binaries.bin, 'postgres'), user)) return binaries.bin
  const copy = join(folder, 'programs')
  await cp(binaries.home, copy, { recursive: true, verbatimSymlinks: true })
  // Whatever the modes and our umask: the copy is the user's own.
  const { gid, uid } = user
  const names = ['.', ...(await readdir(copy, { recursive: true }))]
  await Promise.all(names.map((name) => lchown(join(copy, name), uid, gid)))
  return join(copy, 'bin')
}

function killOne(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself.
  }
}
