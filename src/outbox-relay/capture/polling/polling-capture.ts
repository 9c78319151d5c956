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
 * # States
 *
 *     closed (S1)  --read: rows found, open-->  open (S1, S2, after)  --read: no more pages, then open of the next-->  open (S2, S3, 0)
 *     open         --read: nothing, idle-->     closed (S2)           and closed again about every SETTLE_INTERVAL_MS
 *
 * After a delta the first empty step writes once, which moves S1 and its floor past what was published; from then on an
 * idle poll is one trivial query. A large backlog is treated likewise before it is opened: one extra write raises the
 * floor of S2, else the step after the backlog would scan all of it again.
 */
import { type Clock, delay, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { Signals } from '../../../core/signals.ts'
import { type PgClient, quoteIdentifier } from '../../../postgres/sql.ts'
import type { Checkpoint, CheckpointLog } from '../../checkpoint-log.ts'
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
  readonly shards: readonly number[]
  readonly signals: Signals
  /** Where to begin: the checkpoint as loaded. */
  readonly start: Checkpoint
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

/** A page with its place in a delta. */
interface PolledPage extends Page {
  readonly delta: Delta
  readonly rows: PageRows
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
  /** Where the next read goes on. It runs ahead of what is published by the pages in flight. */
  #cursor: Checkpoint
  /** What is published. */
  #done: Checkpoint
  /** What the log says: the last write known to be committed. */
  #written: Checkpoint
  /** The floor of any snapshot taken from now on: the sequence's value from before the last write known to be committed. */
  #provenFloor: bigint
  /** The sequence's value as last read; a write that begins now, once committed, makes it the proven floor. */
  #lastHigh: bigint
  #lastWriteAt = Number.NEGATIVE_INFINITY
  #backend: number | undefined
  /** The write of progress inside a delta that is under way, if any. */
  #progress: Promise<void> | undefined
  #progressError: Error | undefined

  #pauseMs = 0

  constructor(options: PollingCaptureOptions) {
    this.#options = options
    this.#lookSql = lookSql(quoteIdentifier(options.schema))
    this.#sequence = recordSequence(options.schema)
    const { base, open } = options.start
    this.#cursor = this.#done = this.#written = options.start
    this.#lastHigh = this.#provenFloor = open === undefined ? base.floor : open.delta.target.floor
  }

  async read(): Promise<Page | undefined> {
    const open = this.#cursor.open
    if (open !== undefined) {
      const page = await this.#readPage(open.delta, open.after)
      if (page !== undefined) return page
      this.#cursor = { base: open.delta.target }
    }
    let delta = await this.#look()
    if (this.#isLarge(delta.high - delta.base.floor)) delta = await this.#raiseFloor(delta)
    const page = isTriviallyEmpty(delta) ? undefined : await this.#readPage(delta, 0n)
    // An empty delta: its target is as good a base as its own, and a later one.
    if (page === undefined) this.#cursor = { base: delta.target }
    return page
  }

  async open(page: Page): Promise<void> {
    this.#pauseMs = 0
    const { delta, rows } = page as PolledPage
    await this.#settleProgress()
    if (this.#written.open?.delta !== delta) {
      await this.#options.signals.reach('capture:open', page)
      await this.#write({ base: delta.base, open: { delta, after: 0n } })
    }
    this.#cursor = rows.more ? { base: delta.base, open: { delta, after: rows.lastSeq } } : { base: delta.target }
  }

  published(page: Page): void {
    const { delta, rows } = page as PolledPage
    this.#done = rows.more ? { base: delta.base, open: { delta, after: rows.lastSeq } } : { base: delta.target }
    // The last page of a delta is closed by the next opening write, or by idle().
    if (!rows.more || this.#progress !== undefined) return
    this.#progress = this.#write(this.#done)
      .catch((error: Error) => void (this.#progressError = error))
      .then(() => void (this.#progress = undefined))
  }

  async idle(signal: AbortSignal): Promise<void> {
    await this.#settleProgress()
    this.#done = this.#cursor
    const behind = this.#lastHigh - this.#written.base.floor
    const sinceMs = this.#options.clock.monotonic() - this.#lastWriteAt
    const settle =
      this.#written.open !== undefined ||
      this.#isLarge(behind) ||
      (behind > 0n && sinceMs >= CATCH_UP_INTERVAL_MS) ||
      sinceMs >= SETTLE_INTERVAL_MS
    if (settle) await this.#write(this.#done)
    const { clock, pollIntervalMs } = this.#options
    this.#pauseMs = Math.min(pollIntervalMs, this.#pauseMs === 0 ? FIRST_PAUSE_MS : this.#pauseMs * 2)
    await delay(clock, this.#pauseMs, signal)
  }

  async close(): Promise<void> {
    await this.#settleProgress()
    if (this.#done !== this.#written) await this.#write(this.#done)
  }

  #isLarge(range: bigint): boolean {
    return range > BigInt(LARGE_DELTA_PAGES * this.#options.bounds.maxMessages)
  }

  /** Takes a snapshot, and the delta up to it. */
  async #look(): Promise<Delta> {
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
    const target: Anchor = { snapshot: Snapshot.parse(snapshot), floor }
    const delta: Delta = { base: this.#cursor.base, target, high: this.#lastHigh }
    await signals.reach('capture:look', delta)
    return delta
  }

  /** Writes what is published once more, which proves a higher floor, and looks again. */
  async #raiseFloor(delta: Delta): Promise<Delta> {
    if (!this.#isLarge(delta.high - this.#provenFloor)) return delta
    await this.#settleProgress()
    await this.#write(this.#done)
    return this.#look()
  }

  async #readPage(delta: Delta, after: bigint): Promise<PolledPage | undefined> {
    const { bounds, clock, reader, schema, shards } = this.#options
    const rows = await answered(clock, readPage(reader, schema, { delta, after, shards }, bounds))
    return rows && { messages: rows.messages, bytes: rows.bytes, delta, rows }
  }

  /** Writes a checkpoint; once it is committed, the sequence's value from before it is a proven floor. */
  async #write(checkpoint: Checkpoint): Promise<void> {
    const high = this.#lastHigh
    await this.#options.log.write(checkpoint)
    this.#written = checkpoint
    this.#lastWriteAt = this.#options.clock.monotonic()
    if (high > this.#provenFloor) this.#provenFloor = high
    this.#options.signals.emit('checkpoint:written', checkpoint)
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
