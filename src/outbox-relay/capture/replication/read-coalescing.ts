/**
 * Lets small reads of a busy stream grow. The server sends each row by a call of its own; a reader that wakes for each
 * makes both sides burn the processor. So while data streams, a small read is followed by a pause of a millisecond.
 *
 * "Streams" means tens of kilobytes within the last millisecond: never a trickle, so that a single event waits for nothing.
 */
import type { Socket } from 'node:net'
import type { Clock, Timer } from '../../../core/clock.ts'

/** A read below this is small: a full one is 64 KiB. */
const SMALL_READ_BYTES = 48 * 1024

/** So much within the last millisecond is a stream. */
const STREAM_BYTES = 32 * 1024

const PAUSE_MS = 1

/** Pauses a socket after small reads, and wakes it. */
export class ReadCoalescing {
  readonly #clock: Clock
  readonly #mayResume: () => boolean
  readonly #socket: Socket
  #bytes = 0
  #since = Number.NEGATIVE_INFINITY
  #timer: Timer | undefined

  /** `mayResume` is asked before the socket is woken: somebody else may have paused it meanwhile. */
  constructor(clock: Clock, socket: Socket, mayResume: () => boolean) {
    this.#clock = clock
    this.#mayResume = mayResume
    this.#socket = socket
  }

  /** To be called after each chunk is done with. */
  onChunk(bytes: number): void {
    const now = this.#clock.monotonic()
    if (now - this.#since > PAUSE_MS) {
      this.#since = now
      this.#bytes = 0
    }
    this.#bytes += bytes
    // What was read while it was paused comes first, in the pieces in which it was read.
    if (this.#socket.readableLength > 0) return
    if (bytes >= SMALL_READ_BYTES || this.#bytes < STREAM_BYTES || this.#timer !== undefined) return
    this.#socket.pause()
    this.#timer = this.#clock.setTimer(() => {
      this.#timer = undefined
      if (this.#mayResume()) this.#socket.resume()
    }, PAUSE_MS)
  }

  /** Nothing is paused any more, and nothing woken. */
  end(): void {
    this.#timer?.clear()
    this.#timer = undefined
  }
}
