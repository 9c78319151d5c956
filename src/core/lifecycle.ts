/** How to stop: how long to drain before what is in flight is abandoned. */
export interface StopOptions {
  /**
   * How long to wait for work in flight, milliseconds. Raise it when handlers run long; whatever is not done by then
   * is delivered again later. Default: 10000.
   */
  readonly timeoutMs?: number
}

/** The default of {@link StopOptions.timeoutMs}. */
export const STOP_TIMEOUT_MS = 10_000

/**
 * The handle of everything that lives long: relay, consumer, daemon. `start` resolves when it is at work, and again at
 * once when called twice; `stop` drains, is idempotent, and may be called before `start`; `stopped` resolves after a
 * clean stop and rejects with what ended it otherwise.
 */
export interface Lifecycle<Stats> extends AsyncDisposable {
  start(): Promise<void>
  stop(options?: StopOptions): Promise<void>
  readonly stopped: Promise<void>
  stats(): Stats
}
