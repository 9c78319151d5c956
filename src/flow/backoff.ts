import type { Clock } from '../core/clock.ts'

/** How long to wait between tries. */
export interface Backoff {
  /** The cap of the first wait, milliseconds; it doubles with each failure. */
  readonly minDelayMs: number
  /** The cap never grows beyond this, milliseconds. */
  readonly maxDelayMs: number
}

/**
 * The wait after the `failures`-th failure (from 1): uniform between 0 and a doubling cap. Full jitter, because callers
 * that fail together must not come back together.
 */
export function backoffMs(failures: number, { maxDelayMs, minDelayMs }: Backoff, clock: Clock): number {
  const cap = Math.min(maxDelayMs, minDelayMs * 2 ** Math.min(failures - 1, 52))
  return clock.random() * cap
}
