/**
 * Dispatch: publishes one page until every message of it is stored.
 *
 * What was not stored is sent again, in the page's order. A publisher stores no message of a key behind one that it did
 * not store, so what is left always is a tail of each key, and sending it again keeps the key's order.
 */
import { type Clock, delay } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import type { Logger } from '../core/logger.ts'
import type { OutgoingMessage } from '../core/message.ts'
import type { Signals } from '../core/signals.ts'
import type { Publisher, Unresolved } from '../brokers/broker.ts'
import { type Backoff, backoffMs } from '../flow/backoff.ts'

/** What a dispatch needs. */
export interface DispatchOptions {
  readonly backoff: Backoff
  readonly clock: Clock
  readonly logger: Logger
  /** Throws when the shards are no longer ours; asked before every publish. */
  readonly assertHeld: () => void
  readonly onRetry: (unresolved: readonly Unresolved[]) => void
  readonly publisher: Publisher
  readonly signals: Signals
}

/**
 * Resolves with true when all is stored, with false when the signal aborted first. Rejects with PUBLISH_FATAL when the
 * broker will take nothing until somebody changes something, and with whatever `assertHeld` throws.
 */
export async function dispatch(
  messages: readonly OutgoingMessage[],
  options: DispatchOptions,
  signal: AbortSignal,
): Promise<boolean> {
  const { backoff, clock, logger, publisher, signals } = options
  let pending = messages
  for (let failures = 0; ;) {
    options.assertHeld()
    await signals.reach('dispatch:publish', pending)
    const unresolved = await publisher.publish(pending)
    await signals.reach('dispatch:published', unresolved)
    if (unresolved.length === 0) return true
    const fatal = unresolved.find((one) => one.class === 'fatal')
    if (fatal !== undefined) throw fatalError(fatal, pending)
    options.onRetry(unresolved)
    failures = unresolved.length < pending.length ? 1 : failures + 1
    pending = unresolved.map((one) => pending[one.index] as OutgoingMessage)
    const waitMs = backoffMs(failures, backoff, clock)
    const first = unresolved[0] as Unresolved
    const fields = {
      unresolved: unresolved.length,
      outcome: first.outcome,
      class: first.class,
      topic: pending[0]?.topic,
      id: pending[0]?.id,
      error: first.error.message,
      failures,
      waitMs: Math.round(waitMs),
    }
    if (first.class === 'poison')
      logger.error(fields, 'the broker refuses an event for good, and the relay waits for it')
    else logger.warn(fields, 'the broker did not take everything; the rest is sent again')
    await delay(clock, waitMs, signal)
    if (signal.aborted) return false
  }
}

function fatalError(fatal: Unresolved, batch: readonly OutgoingMessage[]): MillraceError {
  const message = batch[fatal.index]
  return new MillraceError(
    'PUBLISH_FATAL',
    `the broker refuses to take events for topic ${message?.topic ?? '?'} until its configuration is changed: ${fatal.error.message}`,
    { cause: fatal.error, details: { topic: message?.topic, id: message?.id } },
  )
}
