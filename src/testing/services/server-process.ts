/**
 * One server process that cannot outlive this one.
 *
 * A keeper, a shell that waits on a pipe from us, stands beside each server. When the pipe closes, because we are done or
 * because we died by whatever means, it ends the server that it was told of and removes the server's folder. The server
 * begins as a shell too, which becomes the server only at our word; so there is no moment at which a server runs that no
 * keeper knows of. Both stand in sessions of their own: a Ctrl-C in the terminal reaches us and not them.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { delay, systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'

/** How to run a server. */
export interface Launch {
  readonly args: readonly string[]
  readonly command: string
  /** The working directory; the server's user must be able to enter it. */
  readonly cwd: string
  readonly env?: NodeJS.ProcessEnv
  /** Where its output goes, appended. */
  readonly logFile: string
  /** Who runs it, when it must not be us. */
  readonly user?: { readonly uid: number; readonly gid: number } | undefined
}

// $1: the signal that ends the server, $2: the folder to remove, or nothing.
const KEEPER = `
pid=
while read -r word value; do
  case $word in run) pid=$value ;; end) pid= ;; esac
done
if [ -n "$pid" ]; then
  kill "-$1" "$pid" && kill -CONT "$pid"
  n=0
  while kill -0 "$pid" && [ $n -lt 80 ]; do n=$((n+1)); sleep 0.1; done
  kill -KILL "-$pid"
fi
# Whoever prepared the folder, such as initdb, may still be writing into it.
n=0
while [ -n "$2" ] && [ -e "$2" ] && [ $n -lt 100 ]; do n=$((n+1)); rm -rf "$2" || sleep 0.1; done
`

/** Watches over one server for as long as this process lives. */
export class Keeper {
  readonly #child: ChildProcess

  /**
   * @param lastSignal what ends the server, with all its children, when we die
   * @param folder removed when we die; empty for none
   */
  constructor(lastSignal: 'KILL' | 'QUIT', folder: string) {
    this.#child = spawn('/bin/sh', ['-c', KEEPER, 'millrace-keeper', lastSignal, folder], {
      cwd: '/',
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    })
    this.#child.on('error', () => {})
    this.#child.stdin?.on('error', () => {})
    detach(this.#child)
  }

  /** The server it has to end, or none. */
  watch(pid: number | undefined): void {
    this.#child.stdin?.write(pid === undefined ? 'end\n' : `run ${pid}\n`)
  }

  /** Dismisses the keeper, which ends what it still watches and removes the folder. */
  dismiss(): void {
    this.#child.stdin?.end()
  }
}

/** A running server process. */
export class ServerProcess {
  readonly pid: number
  /** Resolves with a few words on how it ended. */
  readonly exited: Promise<string>
  #running = true
  readonly #logFile: string

  private constructor(child: ChildProcess, pid: number, logFile: string, keeper: Keeper) {
    this.pid = pid
    this.#logFile = logFile
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.#running = false
        keeper.watch(undefined)
        resolve(signal === null ? `exit code ${code}` : `signal ${signal}`)
      })
    })
  }

  /** Starts the server; it may not be ready yet. */
  static async start(launch: Launch, keeper: Keeper): Promise<ServerProcess> {
    const log = openSync(launch.logFile, 'a')
    try {
      const child = spawn(
        '/bin/sh',
        ['-c', 'read -r go && exec "$@" < /dev/null', 'sh', launch.command, ...launch.args],
        {
          cwd: launch.cwd,
          detached: true,
          env: launch.env ?? process.env,
          stdio: ['pipe', log, log],
          ...launch.user,
        },
      )
      await new Promise((resolve, reject) => child.once('spawn', resolve).once('error', reject))
      const started = new ServerProcess(child, child.pid as number, launch.logFile, keeper)
      detach(child)
      keeper.watch(started.pid)
      child.stdin?.on('error', () => {})
      child.stdin?.end('go\n')
      return started
    } finally {
      closeSync(log)
    }
  }

  get running(): boolean {
    return this.#running
  }

  /** Sends a signal to the process, not to its children; nothing happens when it is gone. */
  signal(signal: NodeJS.Signals): void {
    if (!this.#running) return
    try {
      process.kill(this.pid, signal)
    } catch (error) {
      // It has ended, and we are told in a moment.
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }

  /** Resolves true when the process is gone, false after `timeoutMs`. Waiting keeps this process alive. */
  async gone(timeoutMs: number): Promise<boolean> {
    const stop = new AbortController()
    await Promise.race([this.exited, delay(systemClock, timeoutMs, stop.signal)])
    stop.abort()
    return !this.#running
  }

  /**
   * Resolves with the first answer of `probe` that is not undefined. Rejects when the process ends, or when `timeoutMs`
   * have passed, with the end of its log.
   */
  async ready<T>(name: string, timeoutMs: number, probe: () => Promise<T | undefined>): Promise<T> {
    const end = systemClock.monotonic() + timeoutMs
    while (this.#running && systemClock.monotonic() < end) {
      const answer = await probe()
      // A process that found its port taken ends within moments, while somebody else answers on it.
      if (answer !== undefined && this.#running) return answer
      await Promise.race([this.exited, delay(systemClock, 15)])
    }
    const why = this.#running ? `did not answer within ${timeoutMs} ms` : `ended with ${await this.exited}`
    const log = await readFile(this.#logFile, 'utf8').catch(() => '')
    throw new MillraceError(
      'SERVICE_START_FAILED',
      `${name} ${why}. The end of its log:\n${log.slice(-2_000).trimEnd()}`,
    )
  }
}

/** Lets node end although the child lives. */
function detach(child: ChildProcess): void {
  child.unref()
  ;(child.stdin as Socket | null)?.unref()
}
