/**
 * A process of its own for whatever is measured, so that its time and memory are its own. It is built as the daemon is and
 * runs under the daemon's Node flags, tells its results as messages, and ends with this process.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { DAEMON_NODE_FLAGS } from '../../src/cli/node-flags.ts'
import { builtChild } from './built-children.ts'

/** The programs in `bench/children`. */
export type Program = 'cursor' | 'publisher' | 'relay' | 'writer'

const WARNINGS = '--disable-warning=TimeoutNegativeWarning'

/** How long a child may say nothing. */
const SILENCE_MS = 600_000

/** A child that runs; messages are of type `M`. */
export class Child<M> {
  readonly #process: ChildProcess
  readonly #gone: Promise<void>
  readonly #messages: M[] = []
  #failure: Error | undefined
  #wake: (() => void) | undefined

  /** Starts it. With `profile`, a folder, it leaves a profile of its processor time there when it ends. */
  constructor(program: Program, job: unknown, profile: string | undefined) {
    const profiling = profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${profile}`]
    this.#process = fork(builtChild(program), [JSON.stringify(job)], {
      execArgv: [...DAEMON_NODE_FLAGS, WARNINGS, ...profiling],
      serialization: 'advanced',
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    this.#process.on('message', (message) => {
      this.#messages.push(message as M)
      this.#wake?.()
    })
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#gone = promise
    this.#process.once('error', (error) => this.#fail(error))
    this.#process.once('exit', (code) => {
      this.#fail(new Error(`bench/children/${program}.ts ended with ${code}`))
      resolve()
    })
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  /** Its next message. */
  async next(): Promise<M> {
    for (;;) {
      const message = this.#messages.shift()
      if (message !== undefined) return message
      if (this.#failure !== undefined) throw this.#failure
      const { promise, resolve } = Promise.withResolvers<void>()
      this.#wake = resolve
      const timer = setTimeout(() => this.#fail(new Error('a child says nothing')), SILENCE_MS)
      await promise
      clearTimeout(timer)
    }
  }

  send(message: string): void {
    this.#process.send(message)
  }

  /** Lets it end by itself, and ends it when it does not. */
  async end(): Promise<void> {
    if (this.#process.connected) this.#process.disconnect()
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), 15_000)
    await this.#gone
    clearTimeout(timer)
  }

  #fail(error: Error): void {
    this.#failure ??= error
    this.#wake?.()
  }
}

/** Runs a child for its one result. */
export async function resultOf<M>(program: Program, job: unknown, profile: string | undefined): Promise<M> {
  const child = new Child<M>(program, job, profile)
  try {
    return await child.next()
  } finally {
    await child.end()
  }
}
