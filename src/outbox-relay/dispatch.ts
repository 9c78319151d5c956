/**
 * Dispatch: publishes one page until every message of it is stored, or parked because the broker refuses it for good.
 *
 * What was not stored is sent again, in the page's order. A publisher stores no message of a key behind one that it did
 * not store, so what is left always is a tail of each key, and sending it again keeps the key's order.
 */
import { type Clock, delay } from '../core/clock.ts'
import type { Logger } from '../core/logger.ts'
import type { OutgoingMessage } from '../core/message.ts'
import type { Signals } from '../core/signals.ts'
import type { Publisher, Unresolved } from '../brokers/broker.ts'
import { type Backoff, backoffMs } from '../flow/backoff.ts'
import { fatalError } from './fatal-error.ts'
import type { Refused } from './parking/park-statement.ts'
import type { ParkingOwner } from './parking/parking-owner.ts'

/** The longest that a broker may ask to be left alone, milliseconds; then it is asked again. */
const MAX_ASKED_MS = 60_000

/** What a dispatch needs. */
export interface DispatchOptions {
  readonly backoff: Backoff
  readonly clock: Clock
  readonly logger: Logger
  /** Throws when the shards are no longer ours; asked before every publish. */
  readonly assertHeld: () => void
  readonly onRetry: (unresolved: readonly Unresolved[]) => void
  /** Where events go that are refused for good, and what of a page belongs there already. */
  readonly parking: Pick<ParkingOwner, 'crashes' | 'divert' | 'park' | 'watching'>
  readonly publisher: Publisher
  readonly signals: Signals
}

/**
 * Resolves with true when all is stored or parked, with false when the signal aborted first. Rejects with PUBLISH_FATAL
 * when the broker will take nothing until somebody changes something, and with whatever `assertHeld` throws.
 */
export async function dispatch(
  messages: readonly OutgoingMessage[],
  options: DispatchOptions,
  signal: AbortSignal,
): Promise<boolean> {
  const { crashes } = options.parking
  if (!crashes.careful) return dispatchAll(messages, options, signal)
  const alone = new Set(messages.filter((message) => crashes.suspects(message)))
  const others = messages.filter((message) => !alone.has(message))
  if (!(await dispatchAll(others, options, signal))) return false
  for (const message of alone) if (!(await dispatchAll([message], options, signal))) return false
  return true
}

async function dispatchAll(
  messages: readonly OutgoingMessage[],
  options: DispatchOptions,
  signal: AbortSignal,
): Promise<boolean> {
  const { clock, logger, parking, signals } = options
  let pending = parking.watching ? await parking.divert(messages) : messages
  for (let failures = 0; pending.length > 0;) {
    options.assertHeld()
    await signals.reach('dispatch:publish', pending)
    const unresolved = await publish(pending, options)
    await signals.reach('dispatch:published', unresolved)
    if (unresolved.length === 0) return true
    const fatal = unresolved.find((one) => one.class === 'fatal')
    if (fatal !== undefined) throw fatalError(fatal, pending)
    const { refused, rest } = sortOut(unresolved, pending)
    if (refused.length > 0) await parking.park(refused)
    if (rest.length === 0) return true
    options.onRetry(rest)
    const published = pending
    pending = rest.map((one) => published[one.index] as OutgoingMessage)
    // What was only held back behind a refused event goes on at once.
    const first = rest.find((one) => one.class !== 'poison')
    if (first === undefined && refused.length > 0) {
      if (signal.aborted) return false
      continue
    }
    failures = rest.length < published.length ? 1 : failures + 1
    const waitMs = waitOf(failures, rest, options)
    const held = first ?? (rest[0] as Unresolved)
    const fields = {
      unresolved: rest.length,
      outcome: held.outcome,
      class: held.class,
      topic: published[held.index]?.topic,
      id: published[held.index]?.id,
      error: held.error.message,
      failures,
      waitMs: Math.round(waitMs),
    }
    logger.warn(fields, 'the broker did not take everything; the rest is sent again')
    await delay(clock, waitMs, signal)
    if (signal.aborted) return false
  }
  return true
}

/** Publishes; an event that may be one that kills the relay is noted meanwhile. */
async function publish(
  pending: readonly OutgoingMessage[],
  { parking: { crashes }, publisher }: DispatchOptions,
): Promise<readonly Unresolved[]> {
  const [first] = pending as [OutgoingMessage]
  if (!crashes.careful || pending.length > 1 || !crashes.suspects(first)) return publisher.publish(pending)
  await crashes.before(first)
  let unresolved: readonly Unresolved[] | undefined
  try {
    unresolved = await publisher.publish(pending)
  } finally {
    await crashes.after(unresolved?.length === 0)
  }
  return unresolved
}

/** How long the broker is left alone: as long as it asks for, within bounds, or as the backoff says. */
function waitOf(failures: number, rest: readonly Unresolved[], { backoff, clock }: DispatchOptions): number {
  const asked = rest.reduce((most, one) => Math.max(most, one.retryAfterMs ?? 0), 0)
  return Math.max(backoffMs(failures, backoff, clock), Math.min(asked, MAX_ASKED_MS))
}

/**
 * What is parked, and what is sent again. An event that is refused for good takes every later one of its key along that
 * is not stored. One that stands behind another of its key whose outcome is open waits for that: once an event is parked,
 * all before it of its key are stored, and the next relay may park whatever it meets of the key.
 */
function sortOut(
  unresolved: readonly Unresolved[],
  pending: readonly OutgoingMessage[],
): { readonly refused: readonly Refused[]; readonly rest: readonly Unresolved[] } {
  if (!unresolved.some((one) => one.class === 'poison')) return { refused: [], rest: unresolved }
  const parked = new Set<string>()
  const open = new Set<string>()
  const refused: Refused[] = []
  const rest: Unresolved[] = []
  for (const one of unresolved) {
    const message = pending[one.index] as OutgoingMessage
    const { key } = message
    if (key !== null && parked.has(key)) {
      refused.push({ message, reason: 'behind', error: '' })
    } else if (one.class === 'poison' && one.outcome !== 'unsent' && !(key !== null && open.has(key))) {
      if (key !== null) parked.add(key)
      refused.push({ message, reason: 'poison', error: one.error.message })
    } else {
      if (key !== null) open.add(key)
      rest.push(one)
    }
  }
  return { refused, rest }
}
