import { delay, systemClock } from '../../core/clock.ts'
import type { StopSignal } from '../../daemon/stop-signals.ts'

/** What cut the demo short. */
export type CutCause =
  | { readonly kind: 'failure'; readonly error: unknown }
  | { readonly kind: 'signal'; readonly signal: StopSignal }
  | { readonly kind: 'time' }

/** The one way the demo is cut short: whoever waits by `race` or `until` stops waiting. The first cause stands. */
export class Cut {
  #cause: CutCause | undefined
  readonly #abort = new AbortController()
  readonly #rejected = Promise.withResolvers<never>()

  constructor() {
    // Nobody may be waiting when it happens.
    this.#rejected.promise.catch(() => {})
  }

  get cause(): CutCause | undefined {
    return this.#cause
  }

  now(cause: CutCause): void {
    if (this.#cause !== undefined) return
    this.#cause = cause
    this.#abort.abort()
    this.#rejected.reject(cause.kind === 'failure' ? cause.error : new Error(`cut short: ${cause.kind}`))
  }

  /** Settles as the promise does, or rejects when the demo is cut short before. */
  async race<T>(promise: Promise<T>): Promise<T> {
    // What comes of it after the cut is nobody's concern; what it holds is the cleanup's.
    promise.catch(() => {})
    return Promise.race([this.#rejected.promise, promise])
  }

  /** Resolves when it holds, looking again every few milliseconds. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await this.race(delay(systemClock, 10, this.#abort.signal))
  }
}
