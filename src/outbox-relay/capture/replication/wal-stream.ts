/**
 * A replication stream: one connection of its own, from START_REPLICATION to its end. It reads, decodes and hands over;
 * what the events mean is its caller's.
 *
 *     const stream = await WalStream.open({ clock, pool, publication, schema, sink, slot })
 *     stream.resume()                    // a stream begins paused: nothing reaches the sink before
 *     …                                  // sink.onBegin, onMessage, …, onCommit: synchronous, in WAL order (wal-sink.ts)
 *     stream.pause()                     // after it not one event more comes, not even from the chunk at hand
 *     stream.acknowledge(endLsn)         // all up to here is done for good; the server may forget it
 *     const error = await stream.ended   // the reason; undefined after close()
 *     await stream.close()
 *
 * # What is claimed
 *
 * A status says how far was received (`write`) and what was acknowledged (`flush`, `apply`); nothing else ever reaches
 * `flush`. It begins at 0/0, which says nothing. It rises only, and not above what this connection has seen: the end of a
 * commit that was handed over, or the position of a keep-alive. Both are dropped with the connection. The stream is always
 * asked for from 0/0: the server knows where the slot is, and to ask for a later place skips without a word.
 *
 * # What keeps it alive
 *
 * A timer sends a status every min(10 s, wal_sender_timeout / 3), paused or not; one more goes out at once when a
 * keep-alive asks for it, and within 10 ms of an acknowledge. When nothing has come since the last status, the next asks
 * for an answer. Nothing for max(20 s, wal_sender_timeout / 2 + 10 s) ends the stream with CONNECTION_LOST (a server that
 * decodes a large transaction of other tables may be silent for half its timeout). A paused stream does not listen, so
 * that time does not count; a connection that is reset meanwhile is noticed by the next status.
 *
 * # What is held in memory
 *
 * Besides what the sink keeps: the chunk at hand (64 KiB), one or two more in the socket's own queue, and one message that
 * is not whole. A payload is a view of the chunk it came in, which lives as long as any record of it; records that are
 * let go in their order hold one chunk more than they need. The server spills a large transaction, the socket holds it
 * back.
 *
 * # How it ends
 *
 * `ended` resolves, once: undefined after close(); else an error, and no event comes after the fault it names.
 * CONNECTION_LOST: the socket ended, the server shut down (details.sqlstate), or silence. PUBLICATION_MISSING: an error on
 * PostgreSQL up to 17, a mere notice on 18; any notice ends the stream. PUBLICATION_INVALID: it shows something else than
 * the outbox. REPLICATION_FAILED: what slotTrouble() tells apart. WAL_MALFORMED. Or what the sink threw.
 * open() rejects with the same errors.
 */
import type { Socket } from 'node:net'
import { type Clock, type Timer, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import { type PgPool, quoteIdentifier } from '../../../postgres/sql.ts'
import { BackendFrames } from './backend-frames.ts'
import { PgoutputDecoder } from './pgoutput.ts'
import { ReadCoalescing } from './read-coalescing.ts'
import { type ReplicationConnection, openReplicationConnection } from './replication-connection.ts'
import { takeOver } from './read-socket.ts'
import { noticeIsFatal, readReport, refused, streamBroken } from './server-report.ts'
import { checkSlotName } from './slot-name.ts'
import { queryMessage, statusMessage, TERMINATE_MESSAGE } from './frontend-messages.ts'
import { walMalformed } from './wal-malformed.ts'
import { type WalPosition, readWalPosition } from './wal-position.ts'
import type { WalSink } from './wal-sink.ts'

/** What a stream is opened with. */
export interface WalStreamOptions {
  readonly clock: Clock
  /** How long opening may take, milliseconds. Default: 10000. */
  readonly openTimeoutMs?: number
  /** A `pg.Pool`, for its options: none of its connections is taken. */
  readonly pool: PgPool
  /** The name of the publication, as it is. */
  readonly publication: string
  /** The outbox schema: rows of `schema`.record are expected, and of nothing else. */
  readonly schema: string
  /** Gives up opening. A stream that is open is ended by `close`. */
  readonly signal?: AbortSignal
  /** How long nothing may come before the connection counts as lost, milliseconds. Default: by wal_sender_timeout. */
  readonly silenceMs?: number
  readonly sink: WalSink
  readonly slot: string
}

/** What became of a stream so far. */
export interface WalStreamStats {
  readonly acknowledged: WalPosition
  readonly receivedBytes: number
  readonly receivedLsn: WalPosition
}

const OPEN_TIMEOUT_MS = 10_000
const MAX_STATUS_INTERVAL_MS = 10_000
const LEAST_SILENCE_MS = 20_000

/** Acknowledges within this time of another go out as one status. */
const ACKNOWLEDGE_DELAY_MS = 10

/** A process that stood still looks into its socket before it believes that nothing came. */
const SECOND_LOOK_MS = 1000

/** How long a server may take to say goodbye. */
const GOODBYE_MS = 500

/** A server that takes nothing gets no more: statuses are not piled up. */
const MAX_UNSENT_BYTES = 4096

const COPY_BOTH = 0x57
const COPY_DATA = 0x64
const COPY_DONE = 0x63
const COMMAND_COMPLETE = 0x43
const ERROR = 0x45
const NOTICE = 0x4e
const PARAMETER_STATUS = 0x53
const READY = 0x5a

const XLOG_DATA = 0x77
const KEEPALIVE = 0x6b

/** The body of XLogData begins with a byte and three numbers. */
const XLOG_HEADER_BYTES = 25
const KEEPALIVE_BYTES = 18

/** A replication stream; see the head of the file. */
export class WalStream {
  /** Resolves when the stream has ended: with the reason, or with undefined after `close`. It never rejects. */
  readonly ended: Promise<Error | undefined>
  /** The server's process that sends. */
  readonly processId: number
  readonly #clock: Clock
  readonly #coalescing: ReadCoalescing
  readonly #decoder: PgoutputDecoder
  readonly #frames: BackendFrames
  readonly #silenceMs: number
  readonly #sink: WalSink
  readonly #slot: string
  readonly #socket: Socket
  readonly #socketClosed: Promise<void>
  readonly #statusIntervalMs: number
  readonly #streaming: Promise<void>
  #acknowledged: WalPosition = 0n
  #acknowledgeTimer: Timer | undefined
  #closing: Promise<void> | undefined
  #draining = false
  #heardAt: number
  #heardSinceStatus = true
  #over = false
  #paused = true
  #pausedAt: number
  #received: WalPosition = 0n
  #receivedBytes = 0
  #replyDue = false
  #resolveEnded!: (reason: Error | undefined) => void
  #state: 'opening' | 'open' = 'opening'
  #statusAt = Number.NEGATIVE_INFINITY
  #statusTimer: Timer | undefined
  #suspected = false
  #onStreaming!: () => void

  /** Connects and starts the stream; it begins paused. */
  static async open(options: WalStreamOptions): Promise<WalStream> {
    const { clock, openTimeoutMs: timeoutMs = OPEN_TIMEOUT_MS, pool, signal, slot } = options
    checkSlotName(slot)
    const command = startCommand(slot, options.publication)
    const began = clock.monotonic()
    const connection = await openReplicationConnection({ clock, pool, signal, slot, timeoutMs })
    const stream = new WalStream(connection, options)
    const abort = (): void => stream.#end(openingEnded('it was given up'))
    signal?.addEventListener('abort', abort, { once: true })
    if (signal?.aborted) abort()
    try {
      stream.#socket.write(queryMessage(command))
      const leftMs = Math.max(0, began + timeoutMs - clock.monotonic())
      const expired = (): Error => openingEnded(`the server does not answer within ${timeoutMs} ms`)
      await withDeadline(clock, Promise.race([stream.#streaming, stream.#failure()]), leftMs, expired)
      return stream
    } catch (error) {
      stream.#end(error as Error)
      throw error
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  private constructor(connection: ReplicationConnection, options: WalStreamOptions) {
    const { clock, schema, silenceMs, sink, slot } = options
    const { walSenderTimeoutMs } = connection
    this.processId = connection.processId
    this.#clock = clock
    this.#sink = sink
    this.#slot = slot
    this.#decoder = new PgoutputDecoder(schema, sink)
    this.#frames = new BackendFrames((kind, buffer, start, end) => this.#onFrame(kind, buffer, start, end))
    this.#statusIntervalMs =
      walSenderTimeoutMs === 0 ? MAX_STATUS_INTERVAL_MS : Math.min(MAX_STATUS_INTERVAL_MS, walSenderTimeoutMs / 3)
    this.#silenceMs = silenceMs ?? Math.max(LEAST_SILENCE_MS, walSenderTimeoutMs / 2 + 10_000)
    this.#heardAt = this.#pausedAt = clock.monotonic()
    this.ended = new Promise((resolve) => (this.#resolveEnded = resolve))
    this.#streaming = new Promise((resolve) => (this.#onStreaming = resolve))
    const socket = (this.#socket = connection.takeSocket((chunk) => this.#onChunk(chunk)))
    this.#coalescing = new ReadCoalescing(clock, socket, () => !this.#paused && !this.#over)
    this.#socketClosed = new Promise((resolve) => socket.once('close', () => resolve()))
    socket.on('error', (error: Error) => this.#end(lost(error.message, error)))
    socket.on('end', () => this.#end(lost('the server closed it')))
    socket.on('close', () => this.#end(lost('it was closed')))
    if (socket.destroyed) this.#end(lost('it was closed'))
  }

  /** Hands over no event more until `resume`. Statuses go on. */
  pause(): void {
    if (this.#paused || this.#over) return
    this.#paused = true
    this.#pausedAt = this.#clock.monotonic()
    this.#frames.stop()
    this.#socket.pause()
  }

  /** Goes on: with what waits, in a microtask, then with the socket. */
  resume(): void {
    if (!this.#paused || this.#over) return
    this.#paused = false
    // While it was paused it did not listen.
    this.#heardAt += this.#clock.monotonic() - this.#pausedAt
    // A callback of the sink that pauses and resumes is in the middle of a drain, which then simply goes on.
    if (this.#draining) {
      this.#frames.proceed()
      this.#socket.resume()
    } else queueMicrotask(() => this.#goOn())
  }

  /** True while the sink gets nothing. */
  get paused(): boolean {
    return this.#paused
  }

  /**
   * Tells the server that all before `lsn` is done for good. A position that is not above the last one is ignored; one
   * that this connection has not seen is a RangeError.
   */
  acknowledge(lsn: WalPosition): void {
    if (lsn > this.#received) throw new RangeError('a WAL position is acknowledged that was not received')
    if (lsn <= this.#acknowledged || this.#over) return
    this.#acknowledged = lsn
    if (this.#acknowledgeTimer !== undefined) return
    const waitMs = this.#statusAt + ACKNOWLEDGE_DELAY_MS - this.#clock.monotonic()
    if (waitMs <= 0 && !this.#draining) return this.#sendStatus(false)
    this.#acknowledgeTimer = this.#clock.setTimer(() => this.#sendStatus(false), Math.max(1, waitMs))
  }

  stats(): WalStreamStats {
    return { acknowledged: this.#acknowledged, receivedBytes: this.#receivedBytes, receivedLsn: this.#received }
  }

  /**
   * Ends the stream, tells the server how far it was acknowledged and says goodbye. It resolves when the socket is closed:
   * mostly when the server has given the slot free, and after half a second whatever the server does. No event comes after
   * the call. Idempotent.
   */
  close(): Promise<void> {
    return (this.#closing ??= this.#close())
  }

  async #close(): Promise<void> {
    if (!this.#over) {
      this.#sendStatus(false)
      this.#finish(undefined)
      const socket = this.#socket
      // Unread bytes would turn our goodbye into a reset, and the server might not read the last status.
      takeOver(socket, () => {})
      socket.resume()
      if (socket.writable) socket.end(TERMINATE_MESSAGE)
      const timer = this.#clock.setTimer(() => socket.destroy(), GOODBYE_MS)
      await this.#socketClosed
      timer.clear()
    }
    await this.#socketClosed
  }

  #onChunk(chunk: Buffer): void {
    if (this.#over) return
    this.#receivedBytes += chunk.length
    this.#heard()
    this.#drain(chunk)
    if (!this.#over && !this.#paused) this.#coalescing.onChunk(chunk.length)
  }

  #goOn(): void {
    if (this.#paused || this.#over) return
    this.#drain(undefined)
    if (!this.#paused && !this.#over) this.#socket.resume()
  }

  #drain(chunk: Buffer | undefined): void {
    this.#draining = true
    try {
      if (chunk === undefined) this.#frames.resume()
      else this.#frames.push(chunk)
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)))
    }
    this.#draining = false
    if (this.#replyDue && !this.#over) this.#sendStatus(false)
  }

  #onFrame(kind: number, buffer: Buffer, start: number, end: number): void {
    if (kind === COPY_DATA) return this.#onCopyData(buffer, start, end)
    switch (kind) {
      case COPY_BOTH:
        return this.#onCopyBoth()
      case ERROR: {
        const report = readReport(buffer, start, end)
        return this.#end(this.#state === 'opening' ? refused(report, this.#slot) : streamBroken(report, this.#slot))
      }
      case NOTICE:
        return this.#end(noticeIsFatal(readReport(buffer, start, end), this.#slot))
      case COPY_DONE:
      case COMMAND_COMPLETE:
      case READY:
        return this.#end(lost('the server ended the stream, as it does when it shuts down'))
      case PARAMETER_STATUS:
        return
      default:
        throw walMalformed('a message that has no place in a stream', { kind })
    }
  }

  #onCopyBoth(): void {
    if (this.#state !== 'opening') throw walMalformed('a stream begins inside a stream')
    this.#state = 'open'
    this.#pausedAt = this.#clock.monotonic()
    this.#frames.stop()
    this.#socket.pause()
    this.#tick()
    this.#onStreaming()
  }

  #onCopyData(buffer: Buffer, start: number, end: number): void {
    if (this.#state === 'opening') throw walMalformed('data before the stream began')
    if (buffer[start] === XLOG_DATA && end - start > XLOG_HEADER_BYTES) {
      const from = start + XLOG_HEADER_BYTES
      // Before the sink hears of it: it may acknowledge at once.
      if (buffer[from] === COMMAND_COMPLETE && end - from === 26) this.#reached(readWalPosition(buffer, from + 10))
      this.#decoder.decode(buffer, from, end)
    } else if (buffer[start] === KEEPALIVE && end - start === KEEPALIVE_BYTES) {
      const walEnd = readWalPosition(buffer, start + 1)
      if (buffer[start + 17] === 1) this.#replyDue = true
      this.#reached(walEnd)
      this.#sink.onKeepalive(walEnd)
    } else {
      throw walMalformed('data that is neither WAL nor a keep-alive', { bytes: end - start })
    }
  }

  #reached(lsn: WalPosition): void {
    if (lsn > this.#received) this.#received = lsn
  }

  #heard(): void {
    this.#heardAt = this.#clock.monotonic()
    this.#heardSinceStatus = true
    this.#suspected = false
  }

  /** Runs every status interval, and once more when the server seems silent. */
  #tick(): void {
    if (this.#over) return
    const silentMs = this.#clock.monotonic() - this.#heardAt
    const silent = !this.#paused && silentMs >= this.#silenceMs
    if (silent && this.#suspected)
      return this.#end(lost(`nothing came from the server for ${Math.round(silentMs)} ms, though it was asked`))
    this.#suspected = silent
    this.#sendStatus(!this.#heardSinceStatus || silent)
    this.#heardSinceStatus = false
    const nextMs = silent ? Math.min(SECOND_LOOK_MS, this.#statusIntervalMs) : this.#statusIntervalMs
    this.#statusTimer = this.#clock.setTimer(() => this.#tick(), nextMs)
  }

  #sendStatus(replyRequested: boolean): void {
    this.#acknowledgeTimer?.clear()
    this.#acknowledgeTimer = undefined
    this.#replyDue = false
    const socket = this.#socket
    if (this.#over || this.#state !== 'open' || !socket.writable || socket.writableLength > MAX_UNSENT_BYTES) return
    this.#statusAt = this.#clock.monotonic()
    socket.write(statusMessage(this.#received, this.#acknowledged, this.#clock.now(), replyRequested))
  }

  #end(reason: Error): void {
    if (this.#over) return
    this.#finish(reason)
    this.#socket.destroy()
  }

  #finish(reason: Error | undefined): void {
    this.#over = true
    this.#frames.end()
    this.#coalescing.end()
    this.#statusTimer?.clear()
    this.#acknowledgeTimer?.clear()
    this.#resolveEnded(reason)
  }

  /** Rejects when the stream ends. */
  async #failure(): Promise<never> {
    throw (await this.ended) ?? openingEnded('it was closed')
  }
}

function startCommand(slot: string, publication: string): string {
  const names = quoteIdentifier(publication).replaceAll("'", "''")
  return `START_REPLICATION SLOT "${slot}" LOGICAL 0/0 (proto_version '1', publication_names '${names}', binary 'true', messages 'true')`
}

function lost(how: string, cause?: Error): MillraceError {
  return new MillraceError('CONNECTION_LOST', `the replication connection is lost: ${how}`, { cause })
}

function openingEnded(why: string): MillraceError {
  return new MillraceError('CONNECTION_LOST', `the replication stream did not open: ${why}`)
}
