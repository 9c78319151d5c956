/**
 * Capture by streaming the WAL, tied to the polling capture by markers.
 *
 * # What the checkpoint says
 *
 * `base`, a snapshot all of whose records are published, and `wal`, the place up to which the stream is published. Polling
 * goes on from the first, streaming from the second. The slot is acknowledged no further than a place that was written
 * before: so a slot that stands beyond the checkpoint is not the one that the checkpoint speaks of, or has been moved by
 * hand, and what lies between may be missing from it.
 *
 * # Markers
 *
 * Every second while events flow, and every ten seconds anyway, one statement takes a snapshot S and then writes a
 * message into the WAL. All that S sees had its commit record in the WAL before S was taken, so it precedes the message.
 * When the message comes out of the stream and all before it is published, S is a base. Its floor is the sequence's value
 * from before the last checkpoint write that was known committed when S was taken, as in the polling capture: that write's
 * own xid lies below xmax(S), so what S does not see took its `seq` later. A marker counts only when this process wrote
 * it (its nonce is random), and only while the publication has the fingerprint under which the stream began.
 * The marker is also the heartbeat: it moves the slot of an idle database.
 *
 * # What is durable when
 *
 * The server streams a transaction once its commit is flushed, so nothing is published that a crash could take back. The
 * checkpoint follows in the background; after a crash what was published since the last one is published again.
 */
import { randomBytes } from 'node:crypto'
import type { Clock, Timer } from '../../../core/clock.ts'
import type { Logger } from '../../../core/logger.ts'
import type { Signals } from '../../../core/signals.ts'
import { clientInTurn } from '../../../postgres/client-in-turn.ts'
import { type PgClient, type PgPool, quoteIdentifier } from '../../../postgres/sql.ts'
import type { Checkpoint } from '../../checkpoint-log.ts'
import { recordSequence } from '../../preconditions.ts'
import { answered } from '../../sessions.ts'
import type { Capture, Page } from '../capture.ts'
import type { Anchor } from '../polling/delta.ts'
import type { PageBounds } from '../polling/page-reader.ts'
import { Snapshot } from '../polling/snapshot.ts'
import { FINGERPRINT, fingerprintParams, publicationChanged, publicationName } from './publication.ts'
import { MARKER_PREFIX, type WalPage, WalPages, type WalProgress } from './wal-pages.ts'
import type { WalPlace } from './wal-place.ts'
import { WalStream } from './wal-stream.ts'

/** What the streaming capture needs. */
export interface StreamingCaptureOptions {
  readonly bounds: PageBounds
  readonly clock: Clock
  readonly log: { write(checkpoint: Checkpoint): Promise<void> }
  readonly logger: Logger
  /** The pool, for its options. */
  readonly postgres: PgPool
  /** A connection for markers and looks at the publication. */
  readonly reader: PgClient
  readonly schema: string
  readonly signals: Signals
  readonly slot: string
  /** The checkpoint as it is written, with its place in the WAL. */
  readonly start: StreamingCheckpoint
}

/** A checkpoint with a place in the WAL. */
export interface StreamingCheckpoint {
  readonly base: Anchor
  readonly wal: { readonly place: WalPlace; readonly publication: string }
}

/** How often a marker is made while events flow, and how often anyway. */
const MARKER_INTERVAL_MS = 1000
const HEARTBEAT_INTERVAL_MS = 10_000

/** How much of the stream a crash may publish again, as time. */
const PROGRESS_INTERVAL_MS = 50

/** How often an idle stream looks whether something is due. */
const TICK_MS = 100

// The snapshot is the statement's own, taken before the message is written. The sequence is read as the polling capture
// reads it.
const markSql = (schema: string): string => `
  select pg_current_snapshot()::text as snapshot, coalesce(pg_sequence_last_value($3::regclass), 0)::text as high,
         ${FINGERPRINT} as fingerprint, pg_logical_emit_message(false, $4, $5::bytea)::text as lsn
  from ${schema}.record_seq_seq`

interface Mark {
  readonly snapshot: string
  readonly high: string
  readonly fingerprint: string | null
}

/** The streaming capture; see the head of the file. */
export class StreamingCapture implements Capture {
  readonly readsAhead = false
  readonly #options: StreamingCaptureOptions
  readonly #pages: WalPages
  #stream!: WalStream
  #failure: Error | undefined
  #wake: (() => void) | undefined
  #ticker: Timer | undefined
  /** What is published, and what of it is written. */
  #done: StreamingCheckpoint
  #written: StreamingCheckpoint
  #lastWriteAt: number
  #writing: Promise<void> | undefined
  /** The marker on its way: its nonce, and its anchor once the statement has answered. */
  #marker: { readonly nonce: Buffer; anchor: Anchor | undefined } | undefined
  #marking: Promise<void> | undefined
  #lastMarkAt = Number.NEGATIVE_INFINITY
  #publishedSinceMark = false
  #publishedSinceWrite = false
  #high = 0n
  #provenFloor: bigint

  /** Opens the stream. */
  static async open(options: StreamingCaptureOptions): Promise<StreamingCapture> {
    const capture = new StreamingCapture(options)
    const { clock, postgres, schema, slot } = options
    const stream = await WalStream.open({
      clock,
      pool: postgres,
      publication: publicationName(schema),
      schema,
      sink: capture.#pages,
      slot,
    })
    capture.#stream = stream
    void stream.ended.then((reason) => capture.#fail(reason))
    capture.#tick()
    stream.resume()
    return capture
  }

  private constructor(options: StreamingCaptureOptions) {
    // A marker and a look at the publication may be due at once.
    this.#options = { ...options, reader: clientInTurn(options.reader) }
    const { bounds, clock, logger, schema, start } = options
    this.#done = this.#written = start
    this.#lastWriteAt = clock.monotonic()
    this.#provenFloor = start.base.floor
    this.#pages = new WalPages({
      bounds,
      checkPublication: () => this.#checkPublication(),
      onMalformed: (error) =>
        logger.error({ error: error.message }, 'a message in the WAL is not an event; it is left out'),
      onMarker: (content) => this.#onMarker(content),
      pause: () => this.#stream.pause(),
      published: start.base.snapshot,
      resume: () => this.#stream.resume(),
      schema,
      start: start.wal.place,
    })
  }

  /** The server's process that sends. */
  get processId(): number {
    return this.#stream.processId
  }

  async read(): Promise<Page | undefined> {
    this.#throwFailure()
    const page = this.#pages.take()
    if (page?.gate !== undefined) {
      await page.gate
      this.#throwFailure()
    }
    return page
  }

  open(): Promise<void> {
    return Promise.resolve()
  }

  published(page: Page): void {
    this.#publishedSinceMark = true
    this.#publishedSinceWrite = true
    this.#advance((page as WalPage).reached)
    this.#tend()
  }

  async idle(signal: AbortSignal): Promise<void> {
    this.#throwFailure()
    const progress = this.#pages.progress()
    if (progress !== undefined) this.#advance(progress)
    this.#tend()
    if (this.#pages.ready || signal.aborted) return
    await new Promise<void>((resolve) => {
      const done = (): void => {
        signal.removeEventListener('abort', done)
        this.#wake = undefined
        resolve()
      }
      this.#wake = done
      this.#pages.onArrival(done)
      signal.addEventListener('abort', done, { once: true })
    })
    this.#throwFailure()
  }

  async close(): Promise<void> {
    await this.#marking
    await this.#writing
    this.#throwFailure()
    if (this.#done !== this.#written) await this.#write(this.#done)
    await this.end()
  }

  /** Ends the stream, whatever is in flight. The checkpoint stays as it was written. Idempotent. */
  async end(): Promise<void> {
    this.#ticker?.clear()
    this.#ticker = undefined
    await this.#stream.close()
  }

  #tick(): void {
    this.#ticker = this.#options.clock.setTimer(() => {
      this.#tick()
      this.#wake?.()
    }, TICK_MS)
  }

  #fail(reason: Error | undefined): void {
    if (reason !== undefined) this.#failure ??= reason
    this.#wake?.()
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure
  }

  #advance({ anchor, place }: WalProgress): void {
    const { base, wal } = this.#done
    if (anchor === undefined && samePlace(place, wal.place)) return
    this.#done = { base: anchor ?? base, wal: { place, publication: wal.publication } }
  }

  /** Begins what is due; it never waits. */
  #tend(): void {
    const now = this.#options.clock.monotonic()
    if (this.#writing === undefined && this.#done !== this.#written) {
      // A place that moved without an event, as it does by our own writes, waits for the next marker.
      const due = this.#publishedSinceWrite && now - this.#lastWriteAt >= PROGRESS_INTERVAL_MS
      if (due || this.#done.base !== this.#written.base) {
        this.#writing = this.#write(this.#done)
          .catch((error: Error) => this.#fail(error))
          .then(() => void (this.#writing = undefined))
      }
    }
    const markDue = now - this.#lastMarkAt >= (this.#publishedSinceMark ? MARKER_INTERVAL_MS : HEARTBEAT_INTERVAL_MS)
    if (markDue && this.#marker === undefined) {
      this.#lastMarkAt = now
      this.#publishedSinceMark = false
      this.#marking = this.#mark().catch((error: Error) => this.#fail(error))
    }
  }

  async #mark(): Promise<void> {
    const { clock, reader, schema, signals } = this.#options
    const nonce = randomBytes(16)
    const floor = this.#provenFloor
    const marker = { nonce, anchor: undefined as Anchor | undefined }
    this.#marker = marker
    const params = [...fingerprintParams(schema), recordSequence(schema), MARKER_PREFIX + schema, nonce]
    const { rows } = await answered(clock, reader.query(markSql(quoteIdentifier(schema)), params))
    const { fingerprint, high, snapshot } = rows[0] as Mark
    this.#requireSame(fingerprint)
    if (BigInt(high) > this.#high) this.#high = BigInt(high)
    // The message is flushed by the next commit or by the WAL writer, so mostly it comes after this answer. When it came
    // before, it was no anchor yet, and the next one will be.
    marker.anchor = { snapshot: Snapshot.parse(snapshot), floor }
    signals.emit('capture:marked', marker.anchor)
  }

  #onMarker(content: Buffer): Anchor | undefined {
    const marker = this.#marker
    if (marker === undefined || !content.equals(marker.nonce)) return undefined
    this.#marker = undefined
    return marker.anchor
  }

  async #checkPublication(): Promise<void> {
    const { clock, reader, schema } = this.#options
    try {
      const { rows } = await answered(
        clock,
        reader.query(`select ${FINGERPRINT} as fingerprint`, fingerprintParams(schema)),
      )
      this.#requireSame((rows[0] as { fingerprint: string | null }).fingerprint)
    } catch (error) {
      this.#fail(error as Error)
      throw error
    }
  }

  #requireSame(fingerprint: string | null): void {
    if (fingerprint !== this.#done.wal.publication) throw publicationChanged(this.#options.schema)
  }

  /** Writes a checkpoint; once it is committed the slot may move up to it, and the sequence's value is a proven floor. */
  async #write(checkpoint: StreamingCheckpoint): Promise<void> {
    const high = this.#high
    this.#publishedSinceWrite = false
    await this.#options.log.write(checkpoint)
    this.#written = checkpoint
    this.#lastWriteAt = this.#options.clock.monotonic()
    if (high > this.#provenFloor) this.#provenFloor = high
    const { lsn } = checkpoint.wal.place
    // The place it began with was received over another connection.
    if (lsn > this.#options.start.wal.place.lsn) this.#stream.acknowledge(lsn)
    this.#options.signals.emit('checkpoint:written', checkpoint)
  }
}

function samePlace(a: WalPlace, b: WalPlace): boolean {
  return a.lsn === b.lsn && a.tx === b.tx && a.rows === b.rows
}
