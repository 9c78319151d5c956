/**
 * Capture by polling, with a Postgres snapshot as its checkpoint.
 *
 * # What a step reads
 *
 * A step takes the current snapshot S2 and yields the records that S2 sees and the checkpoint's snapshot S1 does not:
 * the delta (S1, S2]. That is exactly what was committed in between. A transaction that takes a low `seq` and commits
 * late is in a later delta, and is not lost; a long-open transaction delays its own records and nobody else's.
 *
 * # Why the search is bounded (and complete)
 *
 * Let r be a record in (S1, S2], written by transaction t.
 * - Either t was in progress in S1, hence one of the few ids that S1 lists: an index probe each finds it.
 * - Or t >= xmax(S1). Then seq(r) > floor(S1), where floor(S1) is a value that the sequence had handed out (and no
 *   less than any before), read before a checkpoint write W began, W having been committed, with its one row, before S1 was taken. Proof: W inserted a row,
 *   so it had an xid w, and xmax(S1) > w because w had ended. Xids are assigned in order, so t, being > w, was assigned
 *   after w was, hence after the floor was read. `tx` stands before `seq` in the table, so r took its `seq` after t was
 *   assigned. So seq(r) > floor(S1). (`xmax` alone proves nothing: it is the latest *ended* xid + 1, and a running
 *   transaction may be above it. And a write that matched no row assigned no xid.)
 * - And seq(r) <= high(S2), the sequence's value read after S2 was taken: r was inserted before S2.
 *
 * # Why order per key holds
 *
 * Writers of one key serialise on their aggregate's row and append after locking it, so along a key `seq` rises in
 * commit order. Within a delta pages follow `seq`. Across deltas, a record that commits later than another of its key
 * cannot be in an earlier delta.
 *
 * # Why nothing is published that is not there
 *
 * Before any record of a delta is published, one fenced write stores (S1, S2, floors) and commits with
 * synchronous_commit on. Its flush makes durable all that S2 saw. Without it, an application with synchronous_commit
 * off, and a crash, could take back a row that was published; and as the next transaction takes the same xid again, a
 * committed event would be skipped for ever. For the same reason a snapshot lives in memory no longer than the
 * connections it came over: after any loss the owner loads the checkpoint anew.
 *
 * # Groups of shards
 *
 * All of the above holds for any set of shards by itself: read it with "records of these shards". Shards that have come
 * from another relay bring their own checkpoint, so the shards are in groups, each with its own base and open delta.
 * - A floor belongs to a snapshot and not to a group: a write W for any shards, over the connection that also looks,
 *   proves it for every later snapshot, and so does one by any relay whose row, written after it, has been loaded.
 * - A delta's opening write names all shards of its group, before anything of it is published.
 * - One look serves all groups that have nothing left to read; those that have come to the same snapshot become one
 *   group. A group that is far behind is read in turn with the others, page by page.
 * - What is published and what is written is kept by shard. So a page that is in flight while its group becomes another
 *   speaks for the shards that it was read for, and nothing is lost when shards are given away between two pages: what
 *   was read ahead is forgotten and the groups are made anew from what is published.
 *
 * # States of a group
 *
 *     closed (S1)  --look, rows found, open-->  open (S1, S2, after)  --no more pages, look, open-->  open (S2, S3, 0)
 *     open         --nothing, idle-->           closed (S2)           and closed again about every SETTLE_INTERVAL_MS
 *
 * After a delta the first empty step writes once, which moves S1 and its floor past what was published; from then on an
 * idle poll is one trivial query. A large backlog is treated likewise before it is opened: one extra write raises the
 * floor of S2, else the step after the backlog would scan all of it again.
 */
import { type Clock, delay, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { Signals } from '../../../core/signals.ts'
import { type PgClient, quoteIdentifier } from '../../../postgres/sql.ts'
import type { Checkpoint, CheckpointLog, ShardsCheckpoint } from '../../checkpoint-log.ts'
import { recordSequence, sequenceAltered, standbyRefused } from '../../preconditions.ts'
import { answered, serverSilent } from '../../sessions.ts'
import type { Capture, Page } from '../capture.ts'
import { type Anchor, type Delta, isTriviallyEmpty } from './delta.ts'
import { type PageBounds, type PageRows, readPage } from './page-reader.ts'
import { Snapshot } from './snapshot.ts'

/** What the polling capture needs. */
export interface PollingCaptureOptions {
  readonly bounds: PageBounds
  readonly clock: Clock
  /** Writes checkpoints, over the connection that holds the lease. */
  readonly log: Pick<CheckpointLog, 'write'>
  /** The longest wait between two looks at an idle outbox. */
  readonly pollIntervalMs: number
  /** Reads; a connection of its own, so that a page is read while a checkpoint is written. */
  readonly reader: PgClient
  readonly schema: string
  readonly signals: Signals
  /** Where to begin: the checkpoints as loaded. They say which shards are read. */
  readonly start: readonly ShardsCheckpoint[]
}

/** How often an idle capture writes a checkpoint, so that retention moves. */
const SETTLE_INTERVAL_MS = 10_000

/** How often it writes while open transactions hold `seq` values that are not committed yet. */
const CATCH_UP_INTERVAL_MS = 200

/** The first wait after an empty look; it doubles up to `pollIntervalMs`. */
const FIRST_PAUSE_MS = 2

/** How long a look may take: it is one trivial query. */
const LOOK_TIMEOUT_MS = 10_000

/** A delta that may span more pages than this gets its floor raised before it is opened. */
const LARGE_DELTA_PAGES = 4

/** A page with its place. */
interface PolledPage extends Page {
  readonly delta: Delta
  /** What is published once the page is. */
  readonly next: Checkpoint
  readonly rows: PageRows
  /** Whose records it holds. */
  readonly shards: readonly number[]
}

/** Shards that are read together. */
interface Group {
  readonly shards: readonly number[]
  /** Where the next read goes on. It runs ahead of what is published by the pages in flight. */
  cursor: Checkpoint
}

// One snapshot, then one look at the sequence: the snapshot of a statement is taken before it runs. The value comes from
// the function, which reads it under the page's lock. A select of last_value does not: nextval writes a value up to 32
// ahead into the page while it logs it, and a select may see that; as a floor it would skip events. The select from the
// sequence is there for its error: without the right to read it the function says null, as for an unused sequence.
const lookSql = (schema: string): string => `
  select pg_current_snapshot()::text as snapshot, coalesce(pg_sequence_last_value($1::regclass), 0)::text as high,
         pg_is_in_recovery() as standby, pg_backend_pid() as backend
  from ${schema}.record_seq_seq`

/** The polling capture; see the head of the file. */
export class PollingCapture implements Capture {
  readonly readsAhead = true
  readonly #options: PollingCaptureOptions
  readonly #lookSql: string
  readonly #sequence: string
  #groups: Group[] = []
  /** Whose turn it is to be read. */
  #turn = 0
  /** What is published, by shard. */
  readonly #done = new Map<number, Checkpoint>()
  /** What the log says, by shard: the last write known to be committed. */
  readonly #written = new Map<number, Checkpoint>()
  /** The floor of any snapshot taken from now on: the sequence's value from before the last write known to be committed. */
  #provenFloor = 0n
  /** The sequence's value as last read; a write that begins now, once committed, makes it the proven floor. */
  #lastHigh = 0n
  #lastWriteAt = Number.NEGATIVE_INFINITY
  #othersSettledAt = Number.NEGATIVE_INFINITY
  #backend: number | undefined
  /** The write of progress inside a delta that is under way, if any. */
  #progress: Promise<void> | undefined
  #progressError: Error | undefined
  #pauseMs = 0

  constructor(options: PollingCaptureOptions) {
    this.#options = options
    this.#lookSql = lookSql(quoteIdentifier(options.schema))
    this.#sequence = recordSequence(options.schema)
    this.add(options.start)
  }

  /** Reads these shards as well, from their checkpoints on. Called with nothing in flight, after `rewind`. */
  add(start: readonly ShardsCheckpoint[]): void {
    for (const { checkpoint, shards } of start) {
      this.#groups.push({ shards, cursor: checkpoint })
      for (const shard of shards) {
        this.#done.set(shard, checkpoint)
        this.#written.set(shard, checkpoint)
      }
      const { floor } = checkpoint.open === undefined ? checkpoint.base : checkpoint.open.delta.target
      if (floor > this.#provenFloor) this.#provenFloor = floor
      if (floor > this.#lastHigh) this.#lastHigh = floor
    }
  }

  /** Writes how far these shards are published and reads them no more. Called with nothing in flight, after `rewind`. */
  async remove(shards: readonly number[]): Promise<void> {
    await this.#settle(shards)
    for (const shard of shards) {
      this.#done.delete(shard)
      this.#written.delete(shard)
    }
    this.rewind()
  }

  /** Forgets what was read and not published. Called with nothing in flight. */
  rewind(): void {
    this.#groups = this.#byDone([...this.#done.keys()])
  }

  async read(): Promise<Page | undefined> {
    let looked = false
    for (let empty = 0; empty < this.#groups.length;) {
      const group = this.#groups[this.#turn % this.#groups.length] as Group
      if (group.cursor.open === undefined && !looked) {
        await this.#look()
        looked = true
        empty = 0
        continue
      }
      this.#turn++
      const page = await this.#readPage(group)
      if (page !== undefined) return page
      empty++
    }
    return undefined
  }

  async open(page: Page): Promise<void> {
    this.#pauseMs = 0
    const { delta, shards } = page as PolledPage
    await this.#settleProgress()
    if (this.#groups.length > 1) await this.#settleOthers(shards)
    if (shards.every((shard) => this.#written.get(shard)?.open?.delta === delta)) return
    await this.#options.signals.reach('capture:open', page)
    await this.#write({ base: delta.base, open: { delta, after: 0n } }, shards)
  }

  published(page: Page): void {
    const { next, shards } = page as PolledPage
    for (const shard of shards) this.#done.set(shard, next)
    if (this.#progress !== undefined) return
    // The last page of a delta is closed by the next opening write, or by idle(), unless others are read before.
    if (next.open === undefined && this.#groups.length === 1) return
    this.#progress = this.#write(next, shards)
      .catch((error: Error) => void (this.#progressError = error))
      .then(() => void (this.#progress = undefined))
  }

  async idle(signal: AbortSignal): Promise<void> {
    await this.#settleProgress()
    this.#merge()
    const written = [...this.#written.values()]
    for (const { shards, cursor } of this.#groups) for (const shard of shards) this.#done.set(shard, cursor)
    const lowest = written.reduce((low, { base }) => (base.floor < low ? base.floor : low), this.#lastHigh)
    const behind = this.#lastHigh - lowest
    const sinceMs = this.#options.clock.monotonic() - this.#lastWriteAt
    const settle =
      written.some(({ open }) => open !== undefined) ||
      this.#isLarge(behind) ||
      (behind > 0n && sinceMs >= CATCH_UP_INTERVAL_MS) ||
      sinceMs >= SETTLE_INTERVAL_MS
    if (settle) for (const { shards, cursor } of this.#groups) await this.#write(cursor, shards)
    const { clock, pollIntervalMs } = this.#options
    this.#pauseMs = Math.min(pollIntervalMs, this.#pauseMs === 0 ? FIRST_PAUSE_MS : this.#pauseMs * 2)
    await delay(clock, this.#pauseMs, signal)
  }

  /** The point before which all is published for every shard, if every transaction up to `xid` had ended there. */
  settledPast(xid: bigint): Anchor | undefined {
    const [first, ...others] = this.#done.values()
    const settled = first !== undefined && first.open === undefined && others.every((one) => one.base === first.base)
    return settled && first.base.snapshot.xmin > xid ? first.base : undefined
  }

  async close(): Promise<void> {
    await this.#settle([...this.#done.keys()])
  }

  #isLarge(range: bigint): boolean {
    return range > BigInt(LARGE_DELTA_PAGES * this.#options.bounds.maxMessages)
  }

  /** Makes one group of those that have come to the same snapshot. */
  #merge(): void {
    if (this.#groups.length === 1) return
    const merged = new Map<Anchor, Group>()
    for (const group of this.#groups) {
      const { base, open } = group.cursor
      if (open !== undefined) continue
      const { shards = [] } = merged.get(base) ?? {}
      merged.set(base, { shards: [...shards, ...group.shards].toSorted((a, b) => a - b), cursor: group.cursor })
    }
    this.#groups = [...merged.values(), ...this.#groups.filter(({ cursor }) => cursor.open !== undefined)]
  }

  /** Takes a snapshot, and for each group that has nothing left to read the delta up to it. */
  async #look(): Promise<void> {
    this.#merge()
    const first = this.#groups.find(({ cursor }) => cursor.open === undefined) as Group
    let seen = await this.#snapshot(first)
    // A large backlog: write what is published once more, which proves a higher floor, and look again.
    if (this.#isLarge(seen.high - this.#provenFloor)) {
      await this.#settleProgress()
      const [published] = this.#byDone(first.shards)
      if (published !== undefined) await this.#write(published.cursor, published.shards)
      seen = await this.#snapshot(first)
    }
    const { target, high } = seen
    for (const group of this.#groups) {
      const { base, open } = group.cursor
      if (open !== undefined) continue
      const delta: Delta = { base, target, high }
      // An empty delta: its target is as good a base as its own, and a later one.
      group.cursor = isTriviallyEmpty(delta) ? { base: target } : { base, open: { delta, after: 0n } }
    }
  }

  async #snapshot(first: Group): Promise<Delta> {
    const floor = this.#provenFloor
    const { clock, reader, signals } = this.#options
    const looking = reader.query(this.#lookSql, [this.#sequence])
    const { rows } = await withDeadline(clock, looking, LOOK_TIMEOUT_MS, serverSilent)
    const { snapshot, high, standby, backend } = rows[0] as Look
    if (standby) throw standbyRefused()
    this.#backend ??= backend
    if (this.#backend !== backend) throw pooled()
    const reached = BigInt(high)
    if (reached < this.#lastHigh) throw sequenceAltered(this.#sequence, `set back from ${this.#lastHigh} to ${reached}`)
    this.#lastHigh = reached
    const delta: Delta = {
      base: first.cursor.base,
      target: { snapshot: Snapshot.parse(snapshot), floor },
      high: reached,
    }
    await signals.reach('capture:look', delta)
    return delta
  }

  /** Reads the next page of the group's delta, and moves its cursor. */
  async #readPage(group: Group): Promise<PolledPage | undefined> {
    const { open } = group.cursor
    if (open === undefined) return undefined
    const { bounds, clock, reader, schema } = this.#options
    const { shards } = group
    const { delta, after } = open
    const rows = await answered(clock, readPage(reader, schema, { delta, after, shards }, bounds))
    group.cursor =
      rows?.more === true ? { base: delta.base, open: { delta, after: rows.lastSeq } } : { base: delta.target }
    return rows && { messages: rows.messages, bytes: rows.bytes, delta, next: group.cursor, rows, shards }
  }

  /** Writes a checkpoint; once it is committed, the sequence's value from before it is a proven floor. */
  async #write(checkpoint: Checkpoint, shards: readonly number[]): Promise<void> {
    const high = this.#lastHigh
    await this.#options.log.write(checkpoint, shards)
    for (const shard of shards) this.#written.set(shard, checkpoint)
    this.#lastWriteAt = this.#options.clock.monotonic()
    if (high > this.#provenFloor) this.#provenFloor = high
    this.#options.signals.emit('checkpoint:written', checkpoint)
  }

  /** The shards by what is published of them. */
  #byDone(shards: readonly number[]): Group[] {
    const groups = Map.groupBy(shards, (shard) => this.#done.get(shard) as Checkpoint)
    return [...groups].map(([cursor, of]) => ({ cursor, shards: of.toSorted((a, b) => a - b) }))
  }

  /** Makes the log say what is published of these shards. */
  async #settle(shards: readonly number[]): Promise<void> {
    await this.#settleProgress()
    for (const { cursor, shards: of } of this.#byDone(shards)) {
      if (of.some((shard) => this.#written.get(shard) !== cursor)) await this.#write(cursor, of)
    }
  }

  /** Now and then, before a page of one group, what is published of the others, which may have nothing to publish. */
  async #settleOthers(opening: readonly number[]): Promise<void> {
    const now = this.#options.clock.monotonic()
    if (now - this.#othersSettledAt < SETTLE_INTERVAL_MS) return
    this.#othersSettledAt = now
    for (const { shards, cursor } of this.#groups) {
      if (shards === opening) continue
      // All that was read before the page that is to be opened is published by now.
      for (const shard of shards) this.#done.set(shard, cursor)
      await this.#settle(shards)
    }
  }

  /** Waits for the progress write under way, and throws what it met. */
  async #settleProgress(): Promise<void> {
    await this.#progress
    if (this.#progressError !== undefined) throw this.#progressError
  }
}

interface Look {
  readonly snapshot: string
  readonly high: string
  readonly standby: boolean
  readonly backend: number
}

function pooled(): MillraceError {
  return new MillraceError(
    'CONNECTION_LOST',
    'the backend behind the connection has changed: a pooler in transaction mode stands in between; connect the relay to the server itself',
  )
}
