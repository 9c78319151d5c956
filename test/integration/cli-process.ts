/** Runs the command line as a process of its own, from source, as `npx millrace` does from the package. */
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { track } from '../support/leaks.ts'

const MAIN = path.resolve(import.meta.dirname, '../../src/cli/main.ts')

/** A line of the daemon's log. */
export type LogLine = Readonly<Record<string, unknown>>

/** How a process ended. */
export interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly out: string
  readonly err: string
}

/** A running command. Whatever the test does not wait for is killed with it. */
export class CliProcess {
  readonly ended: Promise<Ended>
  readonly #child: ChildProcess
  readonly #waiting = new Set<() => void>()
  #out = ''
  #err = ''
  #over = false

  constructor(args: readonly string[], environment: Readonly<Record<string, string>> = {}, main = MAIN) {
    const env = { PATH: process.env['PATH'], HOME: process.env['HOME'], ...environment }
    this.#child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', main, ...args], { env })
    const release = track(`millrace ${args[0]} (${this.#child.pid})`, () => this.kill())
    this.ended = new Promise((resolve) => {
      this.#child.on('close', (code, signal) => {
        this.#over = true
        release()
        resolve({ code, signal, out: this.#out, err: this.#err })
        this.#wake()
      })
    })
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#out += text
      this.#wake()
    })
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#err += text))
  }

  get pid(): number {
    return this.#child.pid ?? 0
  }

  /** The log so far. */
  get log(): readonly LogLine[] {
    return this.#out
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as LogLine)
  }

  /** The first line, from `after` on, that has these fields; rejects when the process ends without it. */
  async logged(fields: LogLine, after = 0): Promise<LogLine> {
    for (;;) {
      const found = this.log
        .slice(after)
        .find((line) => Object.entries(fields).every(([name, value]) => line[name] === value))
      if (found !== undefined) return found
      if (this.#over) throw new Error(`ended without ${JSON.stringify(fields)}\n${this.#out}${this.#err}`)
      await new Promise<void>((resolve) => this.#waiting.add(resolve))
    }
  }

  /** Goes away as a reader of its output: what it writes from now on fails. */
  closeOutput(): void {
    this.#child.stdout?.destroy()
    this.#child.stderr?.destroy()
  }

  /** Resolves when what it printed matches; rejects when it ends without. */
  async printed(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.#out)) {
      if (this.#over) throw new Error(`ended without ${pattern}\n${this.#out}${this.#err}`)
      await new Promise<void>((resolve) => this.#waiting.add(resolve))
    }
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.ended
  }

  #wake(): void {
    for (const resolve of this.#waiting) resolve()
    this.#waiting.clear()
  }
}

/** Runs a command to its end. */
export function runCommand(
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
  main?: string,
): Promise<Ended> {
  return new CliProcess(args, environment, main).ended
}
