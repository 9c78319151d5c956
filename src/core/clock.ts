/** A timer that was set; `clear` is idempotent. */
export interface Timer {
  clear(): void
}

/**
 * Where time and randomness enter. Everything that waits, measures or jitters takes a clock, so that a test can own
 * both; nothing else in the package reads the time of day or draws a random number.
 */
export interface Clock {
  /** Wall-clock time, milliseconds since the Unix epoch. It may jump. */
  now(): number
  /** Monotonic time in milliseconds from an arbitrary origin. It never goes back. */
  monotonic(): number
  /** A uniformly distributed number in [0, 1). */
  random(): number
  /** Calls `callback` once after `delayMs`. */
  setTimer(callback: () => void, delayMs: number): Timer
}

/** The clock of the machine. */
export const systemClock: Clock = Object.freeze({
  now: () => Date.now(),
  monotonic: () => performance.now(),
  random: () => Math.random(),
  setTimer(callback: () => void, delayMs: number): Timer {
    const handle = setTimeout(callback, delayMs)
    return { clear: () => clearTimeout(handle) }
  },
})

/** Resolves after `delayMs`, or as soon as the signal aborts; it never rejects. */
export function delay(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) return Promise.resolve()
  return new Promise((resolve) => {
    const done = (): void => {
      timer.clear()
      signal?.removeEventListener('abort', done)
      resolve()
    }
    const timer = clock.setTimer(done, delayMs)
    signal?.addEventListener('abort', done, { once: true })
  })
}

/** Settles as `promise` does, or rejects with `onTimeout()` after `delayMs`. The timer never outlives the call. */
export async function withDeadline<T>(
  clock: Clock,
  promise: Promise<T>,
  delayMs: number,
  onTimeout: () => Error,
): Promise<T> {
  let timer: Timer | undefined
  const expired = new Promise<never>((_, reject) => {
    timer = clock.setTimer(() => reject(onTimeout()), delayMs)
  })
  try {
    return await Promise.race([promise, expired])
  } finally {
    timer?.clear()
  }
}
