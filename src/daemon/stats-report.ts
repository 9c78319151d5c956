import { systemClock, type Clock, type Timer } from '../core/clock.ts'
import type { Logger } from '../core/logger.ts'

const INTERVAL_MS = 10_000

/** Logs the numbers every ten seconds, but only when one of them changed: an idle relay is silent. */
export function reportStats(log: Logger, stats: () => object, clock: Clock = systemClock): Disposable {
  let last = fingerprint(stats())
  let timer: Timer
  const tick = (): void => {
    const now = stats()
    const print = fingerprint(now)
    if (print !== last) log.info({ event: 'stats', stats: now }, 'progress')
    last = print
    timer = clock.setTimer(tick, INTERVAL_MS)
  }
  timer = clock.setTimer(tick, INTERVAL_MS)
  return { [Symbol.dispose]: () => timer.clear() }
}

function fingerprint(stats: object): string {
  return JSON.stringify(stats, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))
}
