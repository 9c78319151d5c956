/**
 * Parking, as the owner of the shards does it.
 *
 * # What is parked
 *
 * A lane is a key across all topics, or one event without a key. When the broker refuses an event for good (poison), or
 * an event keeps killing the relay (crash-counter.ts), that event and every later one of its lane go to parked_record,
 * in order, and the relay goes on with everything else.
 *
 * # States of a lane
 *
 *     free      --its head is refused: park-->                        parked
 *     parked    --a later record of it comes: park-->                 parked      (behind the last; published is none)
 *     parked    --somebody asks (replay, discard)-->                  asked       (asked_at; the only step that is not the owner's)
 *     asked     --marked records: dropped, noted in parked_discard--> parked, asked, or free when none is left
 *     asked     --replay: a page is published, then deleted-->        asked, or free when none is left
 *     asked     --replay: its first record is refused again-->        parked      (the new error, attempts + 1)
 *     asked     --replay: the broker is unwell-->                     asked       (and the live records are not held up)
 *
 * # Why nothing is lost, and why the order of a key holds
 *
 * - Every step but asking is one statement that locks the lease's rows and names epoch and token: a relay that was
 *   replaced parks, releases and deletes nothing. What is in memory is loaded after the lease was taken, and is of this
 *   term only.
 * - A page counts as published after what was parked of it is committed, so the checkpoint never passes a record that is
 *   neither stored by the broker nor parked. Seen again after a crash, a record that is parked keeps its place, because
 *   it is unique in its lane.
 * - When a head is parked, every earlier record of its lane is stored: dispatch sends them until they are. So whatever the
 *   next relay meets of a parked lane may go behind it: it is later, or a repetition.
 * - While a lane is not free, none of its records is published but by a replay, which sends the first ones, in order, and
 *   deletes what the broker has stored. Dispatch and replay take turns in one loop, so no record of the lane is in
 *   flight while it is judged.
 * - A lane is freed by the statement that deletes its last record. Only the owner adds records, and it does not do so
 *   meanwhile: none can be left behind, and none can overtake.
 * - A kill between publish and delete publishes the page again, in order: a repetition, as after any kill. If the
 *   checkpoint lay before the lane's records, they come once more: behind what is left of the lane, or live when it is
 *   free; either way after their first appearance.
 *
 * # Discarding
 *
 * A record is marked and stays where it is until the owner drops it; a mark is never set on a record that a replay is
 * deleting, because both take the lane's row first. With no relay at work the mark waits, and nothing is published
 * meanwhile. A discarded event that the relay meets again (its checkpoint lay before) is passed over: discarded.ts.
 *
 * # Costs
 *
 * Nothing is parked: one size check a page. Something is: a set lookup a message, and every half second one query that
 * reads an index. A page that is parked whole, such as of a topic that was deleted: one statement.
 */
import type { Publisher, Unresolved } from '../../brokers/broker.ts'
import { type Clock, delay } from '../../core/clock.ts'
import type { Logger } from '../../core/logger.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { Signals } from '../../core/signals.ts'
import { type Backoff, backoffMs } from '../../flow/backoff.ts'
import type { Sql } from '../../postgres/sql.ts'
import { fatalError } from '../fatal-error.ts'
import { answered } from '../sessions.ts'
import type { CrashCounter } from './crash-counter.ts'
import { loadDiscarded, rememberDiscarded } from './discarded.ts'
import type { FencedLease } from './fenced.ts'
import { type Refused, park, sizeOf } from './park-statement.ts'
import { ParkedSet } from './parked-set.ts'
import {
  type AskedLane,
  type FreedLane,
  type ParkedMessage,
  type RefusedAgain,
  askedLanes,
  disarm,
  discardMarked,
  parkedPage,
  settle,
} from './release-statements.ts'

/** What the owner's parking needs, and whom it tells. */
export interface ParkingOwnerOptions {
  readonly backoff: Backoff
  readonly bounds: { readonly maxBytes: number; readonly maxMessages: number }
  readonly clock: Clock
  /** Outlives the term. */
  readonly crashes: CrashCounter
  readonly lease: FencedLease
  readonly logger: Logger
  /** How many lanes are remembered; a test gives few. */
  readonly maxLanes?: number
  /** What is parked in the held shards now. */
  readonly onParked: (keys: number, records: number) => void
  /** So many records, and bytes, were published from the parking. */
  readonly onReplayed: (records: number, bytes: number) => void
  readonly publisher: Publisher
  readonly schema: string
  readonly signals: Signals
  /** The connection that holds the lease. */
  readonly sql: Sql
}

/** How often the owner looks for requests while something is parked. */
const LOOK_INTERVAL_MS = 500

/** Lanes that are worked on at once. */
const MAX_LANES_AT_ONCE = 200

/** Pages of parked records that go out before the next live one: a key that is all there is must not outrun its replay. */
const PAGES_PER_TURN = 2

/** Lines of the log for one page; the rest is counted. */
const MAX_LINES = 5

const NONE: ReadonlySet<OutgoingMessage> = new Set()

/** The parked lanes of the shards that one term holds. */
export class ParkingOwner {
  readonly #options: ParkingOwnerOptions
  readonly #parked: ParkedSet
  #discarded = new Set<string>()
  #failures = 0
  #lookAt = 0
  #setAside = 0

  constructor(options: ParkingOwnerOptions) {
    this.#options = options
    this.#parked = new ParkedSet(options.sql, options.schema, options.maxLanes)
  }

  /** Loads what is parked in the shards that the lease holds now. Before any of them is relayed, and when they change. */
  async begin(): Promise<void> {
    await this.#options.crashes.begin({ ...this.#options, pageSize: this.#options.bounds.maxMessages })
    await this.reload(this.#options.lease.fence.shards)
  }

  /** Loads anew, for these shards: they are held from now on, and no others are. */
  async reload(shards: readonly number[]): Promise<void> {
    const { clock, schema, sql } = this.#options
    await answered(clock, this.#parked.load(shards))
    this.#discarded = await answered(clock, loadDiscarded(sql, schema, shards))
    this.#lookAt = 0
    this.#tell()
  }

  /** The term ends well. */
  async rest(): Promise<void> {
    await this.#options.crashes.progress()
    this.#options.onParked(0, 0)
  }

  /** False when every message of a page may be published: nothing is parked, nothing was discarded. */
  get watching(): boolean {
    return this.#parked.lanes > 0 || this.#discarded.size > 0 || this.#options.crashes.condemning
  }

  /** Who counts crashes. */
  get crashes(): CrashCounter {
    return this.#options.crashes
  }

  /** How many records of the pages were set aside since this was last asked: parked, or passed over. */
  takeSetAside(): number {
    const count = this.#setAside
    this.#setAside = 0
    return count
  }

  /** Parks what belongs to a parked lane, passes over what was discarded, returns the rest. */
  async divert(messages: readonly OutgoingMessage[]): Promise<readonly OutgoingMessage[]> {
    let rest = messages
    if (this.#discarded.size > 0) {
      rest = messages.filter(({ id }) => !this.#discarded.has(id))
      this.#setAside += messages.length - rest.length
    }
    const parked = this.#parked.lanes === 0 ? NONE : await answered(this.#options.clock, this.#parked.among(rest))
    const refused: Refused[] = []
    const condemned = new Set<string>()
    const free = rest.filter((message) => {
      const { id, key } = message
      if (parked.has(message) || (key !== null && condemned.has(key))) {
        refused.push({ message, reason: 'behind', error: '' })
      } else if (this.#options.crashes.condemns(id)) {
        if (key !== null) condemned.add(key)
        refused.push({
          message,
          reason: 'crash',
          error: 'the relay ended again and again while it published this event',
        })
      } else return true
      return false
    })
    if (refused.length > 0) await this.park(refused)
    return free
  }

  /** Parks records, in order, durably. */
  async park(refused: readonly Refused[]): Promise<void> {
    const { clock, crashes, lease, logger, schema, signals, sql } = this.#options
    await signals.reach('parking:park', refused)
    const { keys, records } = await answered(clock, park(sql, schema, lease, refused))
    this.#parked.added(
      refused.map(({ message }) => message),
      keys,
      records,
    )
    this.#setAside += refused.length
    for (const { message } of refused) await crashes.parked(message.id)
    const heads = refused.filter(({ reason }) => reason !== 'behind')
    for (const { message, reason, error } of heads.slice(0, MAX_LINES)) {
      const { id, topic } = message
      logger.error(
        { id, topic, bytes: sizeOf(message), reason, error },
        'parked an event, and with it every later one of its key',
      )
    }
    if (heads.length > MAX_LINES) logger.error({ events: heads.length, keys }, 'parked more events')
    else if (heads.length === 0) logger.debug({ events: records }, 'parked events behind others of their keys')
    this.#tell()
    await signals.reach('parking:parked', refused)
  }

  /** Waits as `idle` does, but no longer than until the next look for requests is due. */
  async whileIdle(idle: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
    if (this.#parked.lanes === 0) return idle(signal)
    const ending = new AbortController()
    const stop = AbortSignal.any([signal, ending.signal])
    const { clock } = this.#options
    const due = delay(clock, Math.max(0, this.#lookAt - clock.monotonic()), stop).then(() => ending.abort())
    try {
      await idle(stop)
    } finally {
      ending.abort()
      await due
    }
  }

  /** Carries out what was asked, some pages at most; with nothing parked it is a comparison. Nothing may be in flight. */
  async attend(): Promise<void> {
    for (let page = 0; page < PAGES_PER_TURN && this.#parked.lanes > 0; page++) await this.#attend()
  }

  async #attend(): Promise<void> {
    const { clock, lease, schema, sql } = this.#options
    if (clock.monotonic() < this.#lookAt) return
    const asked = await answered(clock, askedLanes(sql, schema, lease.fence.shards, MAX_LANES_AT_ONCE))
    this.#lookAt = clock.monotonic() + LOOK_INTERVAL_MS
    if (asked.length === 0) return
    const marked = asked.filter((one) => one.marked)
    const busy = marked.length > 0 ? await this.#discard(marked) : await this.#replay(asked)
    if (busy) this.#lookAt = clock.monotonic()
  }

  /** True when there may be more to do at once. */
  async #discard(lanes: readonly AskedLane[]): Promise<boolean> {
    const { clock, lease, logger, schema, signals, sql } = this.#options
    await signals.reach('parking:discard', lanes)
    const { ids, freed } = await answered(clock, discardMarked(sql, schema, lease, lanes))
    rememberDiscarded(this.#discarded, ids)
    this.#parked.removed(freed, ids.length)
    for (const id of ids.slice(0, MAX_LINES)) logger.warn({ id }, 'discarded a parked event')
    if (ids.length > MAX_LINES) logger.warn({ events: ids.length }, 'discarded parked events')
    this.#released(freed)
    await signals.reach('parking:discarded', ids)
    return ids.length > 0
  }

  /** Publishes a page of the lanes that may go. True when there may be more to do at once. */
  async #replay(lanes: readonly AskedLane[]): Promise<boolean> {
    const { bounds, clock, lease, onReplayed, publisher, schema, signals, sql } = this.#options
    const going = lanes.filter((lane) => lane.replay)
    // An event that killed the relay goes alone, and its request is used up before.
    const suspect = going.find((lane) => lane.reason === 'crash')
    const turn = suspect === undefined ? going : [suspect]
    const limits = suspect === undefined ? bounds : { ...bounds, maxMessages: 1 }
    const page = await answered(
      clock,
      parkedPage(
        sql,
        schema,
        turn.map(({ lane }) => lane),
        limits,
      ),
    )
    if (suspect !== undefined && !(await answered(clock, disarm(sql, schema, lease, suspect)))) return false
    const batch = page.map(({ message }) => message)
    let unresolved: readonly Unresolved[] = []
    if (batch.length > 0) {
      lease.assertHeld()
      await signals.reach('parking:publish', batch)
      unresolved = await publisher.publish(batch)
      await signals.reach('parking:published', unresolved)
    }
    const fatal = unresolved.find((one) => one.class === 'fatal')
    if (fatal !== undefined) throw fatalError(fatal, batch)
    const missing = new Set(unresolved.map(({ index }) => index))
    const stored = page.filter((_, index) => !missing.has(index))
    const refused = refusedAgain(page, unresolved)
    const settlement = {
      lanes: turn,
      stored: stored.map(({ n }) => n),
      refused,
      // After a failure of the broker's, too: the event has been sent and did no harm.
      rearmed: suspect !== undefined && refused.length === 0 ? [suspect.lane] : [],
    }
    const { freed, gone } = await answered(clock, settle(sql, schema, lease, settlement))
    this.#parked.removed(freed, gone)
    onReplayed(
      stored.length,
      stored.reduce((bytes, one) => bytes + one.bytes, 0),
    )
    this.#released(freed)
    this.#refusedAgain(refused)
    await signals.reach('parking:settled', settlement)
    return this.#unwell(unresolved) ? false : gone > 0 || freed.length > 0 || refused.length > 0
  }

  /** True, and the next look is put off, when the broker is unwell. */
  #unwell(unresolved: readonly Unresolved[]): boolean {
    const { backoff, clock, logger } = this.#options
    const first = unresolved.find((one) => one.class !== 'poison')
    if (first === undefined) {
      this.#failures = 0
      return false
    }
    const waitMs = Math.max(backoffMs(++this.#failures, backoff, clock), first.retryAfterMs ?? 0)
    this.#lookAt = clock.monotonic() + waitMs
    logger.warn(
      { unresolved: unresolved.length, class: first.class, error: first.error.message, waitMs: Math.round(waitMs) },
      'the broker did not take everything that is replayed; the rest is sent again',
    )
    return true
  }

  #released(freed: readonly FreedLane[]): void {
    const { logger } = this.#options
    for (const { id } of freed.slice(0, MAX_LINES)) logger.info({ id }, 'released a parked key')
    if (freed.length > MAX_LINES) logger.info({ keys: freed.length }, 'released parked keys')
    this.#tell()
  }

  #refusedAgain(refused: readonly RefusedAgain[]): void {
    const { logger } = this.#options
    for (const { id, topic, error } of refused.slice(0, MAX_LINES)) {
      logger.error({ id, topic, error }, 'the broker refuses a parked event again')
    }
    if (refused.length > MAX_LINES) logger.error({ events: refused.length }, 'the broker refuses parked events again')
  }

  #tell(): void {
    this.#options.onParked(this.#parked.lanes, this.#parked.records)
  }
}

/** The first record of each lane that was refused for good. */
function refusedAgain(page: readonly ParkedMessage[], unresolved: readonly Unresolved[]): RefusedAgain[] {
  const refused = new Map<string, RefusedAgain>()
  const held = new Set<string>()
  for (const { index, class: errorClass, error, outcome } of unresolved) {
    const { lane, message } = page[index] as ParkedMessage
    // Behind one that is to be sent again it is not the first.
    if (errorClass === 'poison' && outcome !== 'unsent' && !held.has(lane) && !refused.has(lane)) {
      refused.set(lane, { lane, id: message.id, topic: message.topic, error: error.message.slice(0, 1000) })
    }
    held.add(lane)
  }
  return [...refused.values()]
}
