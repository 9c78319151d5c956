/**
 * Cuts what the server sends into its messages. Most lie whole in one chunk and are handed over in place; only one that
 * spans chunks is put together, in a buffer that grows with what has arrived and never by what a length promises.
 *
 * It can stop between any two messages: what is left of the chunk waits inside, which is all that a paused stream holds.
 */
import { walMalformed } from './wal-malformed.ts'

/** A message: its kind, and its body in [start, end) of the buffer, which is not used again. */
export type OnFrame = (kind: number, buffer: Buffer, start: number, end: number) => void

/** The kind and the length, which counts itself. */
const HEADER_BYTES = 5

/** No message of the server's is longer: its allocations end at 1 GiB. */
const MAX_FRAME_BYTES = 0x4000_0000

/** So much is taken at once for a message that spans chunks; beyond, as it arrives. */
const TRUSTED_BYTES = 0x1_0000

const EMPTY = Buffer.alloc(0)

/** Cuts messages out of chunks. */
export class BackendFrames {
  readonly #onFrame: OnFrame
  #chunk: Buffer = EMPTY
  #at = 0
  #partial: Buffer = EMPTY
  #partialBytes = 0
  #stopped = false

  constructor(onFrame: OnFrame) {
    this.#onFrame = onFrame
  }

  /** Bytes that wait: the rest of a chunk, and a message that is not whole yet. */
  get waitingBytes(): number {
    return this.#chunk.length - this.#at + this.#partialBytes
  }

  /** Takes a chunk and hands over the messages it completes, until the last or until `stop`. */
  push(chunk: Buffer): void {
    // Only a stopped reader has a rest, and it is given no more while it is stopped, but for what was under way.
    this.#chunk = this.#at < this.#chunk.length ? Buffer.concat([this.#chunk.subarray(this.#at), chunk]) : chunk
    this.#at = 0
    if (!this.#stopped) this.#drain()
  }

  /** No message after the one at hand is handed over until `resume`. */
  stop(): void {
    this.#stopped = true
  }

  /** Takes back a `stop`; for a call from within a message that is being handed over. */
  proceed(): void {
    this.#stopped = false
  }

  /** Hands over what waits, and goes on. Not to be called while a message is being handed over. */
  resume(): void {
    this.#stopped = false
    this.#drain()
  }

  /** Drops what waits, and hands over nothing any more. */
  end(): void {
    this.#stopped = true
    this.#chunk = this.#partial = EMPTY
    this.#at = this.#partialBytes = 0
  }

  #drain(): void {
    while (!this.#stopped) {
      if (this.#partialBytes > 0) {
        if (!this.#complete()) break
        continue
      }
      const chunk = this.#chunk
      const at = this.#at
      const available = chunk.length - at
      const total = available < HEADER_BYTES ? HEADER_BYTES : frameBytes(chunk, at)
      if (total > available || available < HEADER_BYTES) {
        if (available > 0) this.#gather(available, total)
        break
      }
      this.#at = at + total
      this.#onFrame(chunk[at] as number, chunk, at + HEADER_BYTES, at + total)
    }
    if (this.#at >= this.#chunk.length) {
      this.#chunk = EMPTY
      this.#at = 0
    }
  }

  /** Goes on with the message that began in an earlier chunk; false when it is still not whole. */
  #complete(): boolean {
    if (this.#partialBytes < HEADER_BYTES) {
      this.#gather(HEADER_BYTES - this.#partialBytes, HEADER_BYTES)
      if (this.#partialBytes < HEADER_BYTES) return false
    }
    const total = frameBytes(this.#partial, 0)
    this.#gather(total - this.#partialBytes, total)
    if (this.#partialBytes < total) return false
    const frame = this.#partial
    this.#partial = EMPTY
    this.#partialBytes = 0
    this.#onFrame(frame[0] as number, frame, HEADER_BYTES, total)
    return true
  }

  /** Moves up to so many bytes from the chunk to the message that is put together, of `total` bytes as far as is known. */
  #gather(wanted: number, total: number): void {
    const bytes = Math.min(wanted, this.#chunk.length - this.#at)
    const needed = this.#partialBytes + bytes
    if (needed > this.#partial.length) {
      const capacity = Math.max(needed, Math.min(total, Math.max(TRUSTED_BYTES, this.#partial.length * 2)))
      const larger = Buffer.allocUnsafe(capacity)
      this.#partial.copy(larger, 0, 0, this.#partialBytes)
      this.#partial = larger
    }
    this.#chunk.copy(this.#partial, this.#partialBytes, this.#at, this.#at + bytes)
    this.#partialBytes = needed
    this.#at += bytes
  }
}

function frameBytes(buffer: Buffer, at: number): number {
  const length = buffer.readUInt32BE(at + 1)
  if (length < 4 || length > MAX_FRAME_BYTES) throw walMalformed('a message of an impossible length', { length })
  return length + 1
}
