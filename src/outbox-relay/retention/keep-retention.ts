import { type Clock, delay } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { Logger } from '../../core/logger.ts'
import type { Retention } from './retention.ts'

/** What the loop needs. */
export interface KeepRetentionOptions {
  readonly clock: Clock
  /** The longest time between two sweeps; the jitter only shortens it. */
  readonly intervalMs: number
  readonly logger: Logger
  readonly onError?: ((error: Error) => void) | undefined
}

/** A failure that stands is told again after so many sweeps. */
const TELL_EVERY = 10

/**
 * Sweeps now and again until the signal aborts. It never rejects: a sweep that fails is told and done again, and the
 * relay goes on, because an outbox that grows is better than one that stands still.
 */
export async function keepRetention(
  retention: Retention,
  options: KeepRetentionOptions,
  signal: AbortSignal,
): Promise<void> {
  const { clock, intervalMs, logger, onError } = options
  let failures = 0
  for (;;) {
    await delay(clock, intervalMs * (0.5 + clock.random() / 2), signal)
    if (signal.aborted) return
    try {
      await retention.sweep(signal)
      failures = 0
    } catch (cause) {
      if (signal.aborted) return
      if (failures++ % TELL_EVERY !== 0) continue
      const error = denied(cause as Error) ?? (cause as Error)
      logger.warn({ error: error.message, failures }, 'the outbox could not be swept; it is tried again')
      onError?.(error)
    }
  }
}

function denied(error: Error): MillraceError | undefined {
  if ((error as { code?: unknown }).code !== '42501') return undefined
  return new MillraceError(
    'RETENTION_DENIED',
    `the relay's role may not reclaim the outbox (${error.message}): grant it select on checkpoint, and ` +
      `select (tx), truncate on record_0 to record_7 of the outbox's schema, or let a relay sweep that has these rights`,
    { cause: error },
  )
}
