/**
 * Turns the stream into pages. It keeps at most {@link MAX_WAITING} sealed pages and one that is being filled, and pauses
 * the stream beyond that, so memory is bounded however large a transaction is: pages are cut inside transactions too.
 *
 * Each page knows the place that is reached once it is published. What was published before is left out: transactions
 * that commit before the start, the first rows of the one that the start lies in, and, until the first marker has
 * passed, records that the base of the checkpoint sees, because they were published by polling.
 */
import type { OutgoingMessage } from '../../../core/message.ts'
import { WAL_EVENT_PREFIX, decodeWalEvents } from '../../../core/wal-event.ts'
import type { Page } from '../capture.ts'
import type { PageBounds } from '../polling/page-reader.ts'
import type { Anchor } from '../polling/delta.ts'
import type { Snapshot } from '../polling/snapshot.ts'
import type { WalPlace } from './wal-place.ts'
import type { WalPosition } from './wal-position.ts'
import type { LogicalMessage, WalSink } from './wal-sink.ts'

/** A page of the stream. */
export interface WalPage extends Page {
  /** What has to hold before any of it is published. */
  readonly gate: Promise<void> | undefined
  /** How far all is published once this page is. */
  readonly reached: WalProgress
}

/** A place, and the marker whose anchor holds from there on, if one was passed. */
export interface WalProgress {
  readonly anchor: Anchor | undefined
  readonly place: WalPlace
}

/** What it needs, and whom it asks. */
export interface WalPagesOptions {
  readonly bounds: PageBounds
  /** Called when the table is described: it must look whether the publication still is the same. */
  readonly checkPublication: () => Promise<void>
  /** Called when a message under our prefix is not ours to read: it is left out. */
  readonly onMalformed: (error: Error) => void
  /** Called with the content of each marker; gives its anchor when it is the one that is awaited. */
  readonly onMarker: (content: Buffer) => Anchor | undefined
  readonly pause: () => void
  readonly published: Snapshot
  readonly resume: () => void
  readonly schema: string
  readonly start: WalPlace
}

/** The prefix of the messages that carry markers, before the schema's name. */
export const MARKER_PREFIX = 'millrace-marker:'

const MAX_WAITING = 2

/** The sink of a stream; see the head of the file. */
export class WalPages implements WalSink {
  readonly #options: WalPagesOptions
  readonly #eventPrefix: string
  readonly #markerPrefix: string
  readonly #waiting: WalPage[] = []
  #messages: OutgoingMessage[] = []
  #bytes = 0
  #gate: Promise<void> | undefined
  #anchor: Anchor | undefined
  #held = false
  #wake: (() => void) | undefined
  /** Undefined once nothing that it sees can come any more. */
  #published: Snapshot | undefined
  #lsn: WalPosition
  /** The commit of the transaction that is coming; 0 between two. */
  #tx = 0n
  #rows = 0
  /** How many more changes of this transaction are published already. */
  #known = 0

  constructor(options: WalPagesOptions) {
    this.#options = options
    this.#eventPrefix = WAL_EVENT_PREFIX + options.schema
    this.#markerPrefix = MARKER_PREFIX + options.schema
    this.#published = options.published
    this.#lsn = options.start.lsn
  }

  /** The next page, which may not be full; undefined when nothing is there. */
  take(): WalPage | undefined {
    if (this.#waiting.length === 0 && this.#messages.length > 0) this.#seal()
    const page = this.#waiting.shift()
    if (this.#held && this.#waiting.length < MAX_WAITING) {
      this.#held = false
      this.#options.resume()
    }
    return page
  }

  /** True when `take` has a page. */
  get ready(): boolean {
    return this.#waiting.length > 0 || this.#messages.length > 0
  }

  /** How far all is published when every page that was taken is; undefined while one is there to be taken. */
  progress(): WalProgress | undefined {
    if (this.ready) return undefined
    const anchor = this.#anchor
    this.#anchor = undefined
    return { anchor, place: this.#place() }
  }

  /** Calls back once, when something has come: a page, or a marker. */
  onArrival(callback: () => void): void {
    this.#wake = callback
  }

  onBegin(commitLsn: WalPosition): void {
    const { start } = this.#options
    this.#tx = commitLsn
    this.#rows = 0
    if (commitLsn < start.lsn) this.#known = Number.POSITIVE_INFINITY
    else this.#known = commitLsn === start.tx ? (start.rows ?? 0) : 0
  }

  onMessage(message: OutgoingMessage, tx: bigint, _shard: number, bytes: number): void {
    this.#rows++
    if (this.#rows <= this.#known || this.#published?.sees(tx) === true) return
    this.#push(message, bytes)
  }

  onLogicalMessage({ content, prefix, transactional }: LogicalMessage): void {
    if (transactional && prefix === this.#eventPrefix) return this.#onEvents(content)
    if (transactional || prefix !== this.#markerPrefix) return
    const anchor = this.#options.onMarker(content)
    if (anchor === undefined) return
    // What the marker's snapshot does not see commits behind it, and what the base saw has passed.
    this.#published = undefined
    this.#anchor = anchor
    this.#arrived()
  }

  onCommit(endLsn: WalPosition): void {
    this.#tx = 0n
    this.#reach(endLsn)
  }

  onKeepalive(walEnd: WalPosition): void {
    if (this.#tx === 0n) this.#reach(walEnd)
  }

  onRelation(): void {
    this.#seal()
    const gate = this.#options.checkPublication()
    gate.catch(() => {})
    this.#gate = this.#gate === undefined ? gate : Promise.all([this.#gate, gate]).then(() => undefined)
    this.#gate.catch(() => {})
  }

  /** The events of `appendWalOnly`: no snapshot sees them, so only the place says what is known. */
  #onEvents(content: Buffer): void {
    let events: ReturnType<typeof decodeWalEvents>
    try {
      events = decodeWalEvents(content, this.#tx)
    } catch (error) {
      // Anybody who may connect may write such a message; it must not stop the others.
      return this.#options.onMalformed(error as Error)
    }
    for (const { message, bytes } of events) {
      this.#rows++
      if (this.#rows > this.#known) this.#push(message, bytes)
    }
  }

  #push(message: OutgoingMessage, bytes: number): void {
    const { maxBytes, maxMessages } = this.#options.bounds
    if (this.#messages.length > 0 && this.#bytes + bytes > maxBytes) this.#sealBefore()
    this.#messages.push(message)
    this.#bytes += bytes
    if (this.#messages.length >= maxMessages || this.#bytes >= maxBytes) this.#seal()
    this.#arrived()
  }

  /** Seals what was there before the change at hand. */
  #sealBefore(): void {
    this.#rows--
    this.#seal()
    this.#rows++
  }

  #seal(): void {
    if (this.#messages.length === 0) return
    this.#waiting.push({
      messages: this.#messages,
      bytes: this.#bytes,
      gate: this.#gate,
      reached: { anchor: this.#anchor, place: this.#place() },
    })
    this.#messages = []
    this.#bytes = 0
    this.#gate = undefined
    this.#anchor = undefined
    if (this.#waiting.length < MAX_WAITING || this.#held) return
    this.#held = true
    this.#options.pause()
  }

  #place(): WalPlace {
    const { start } = this.#options
    if (this.#tx !== 0n && this.#rows > 0) return { lsn: this.#lsn, tx: this.#tx, rows: this.#rows }
    return this.#lsn === start.lsn ? start : { lsn: this.#lsn }
  }

  #reach(lsn: WalPosition): void {
    if (lsn > this.#lsn) this.#lsn = lsn
  }

  #arrived(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }
}
