import { protocolError } from './frame.ts'

const NOTHING = 0xffffffff

/** Writes fields one after the other into a buffer that grows. */
export class ByteWriter {
  #bytes = Buffer.allocUnsafe(64 * 1024)
  #end = 0

  /** Begins a frame of this kind; `finish` puts its length in front. */
  begin(kind: number): void {
    this.#end = 4
    this.u8(kind)
  }

  u8(value: number): void {
    this.#room(1)
    this.#bytes[this.#end++] = value
  }

  u32(value: number): void {
    this.#room(4)
    this.#end = this.#bytes.writeUInt32LE(value, this.#end)
  }

  u64(value: bigint): void {
    this.#room(8)
    this.#end = this.#bytes.writeBigUInt64LE(value, this.#end)
  }

  f64(value: number): void {
    this.#room(8)
    this.#end = this.#bytes.writeDoubleLE(value, this.#end)
  }

  text(value: string | null): void {
    if (value === null) return this.u32(NOTHING)
    // Three bytes are the most that a UTF-16 unit becomes.
    this.#room(4 + value.length * 3)
    const length = this.#bytes.write(value, this.#end + 4)
    this.#bytes.writeUInt32LE(length, this.#end)
    this.#end += 4 + length
  }

  blob(value: Buffer | null): void {
    if (value === null) return this.u32(NOTHING)
    this.u32(value.length)
    this.#room(value.length)
    this.#end += value.copy(this.#bytes, this.#end)
  }

  get length(): number {
    return this.#end
  }

  /** The frame, in a buffer of its own. */
  finish(): Buffer {
    this.#bytes.writeUInt32LE(this.#end - 4, 0)
    const frame = Buffer.from(this.#bytes.subarray(0, this.#end))
    if (this.#bytes.length > 4 * 1024 * 1024) this.#bytes = Buffer.allocUnsafe(64 * 1024)
    return frame
  }

  #room(bytes: number): void {
    if (this.#end + bytes <= this.#bytes.length) return
    const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#end + bytes))
    this.#bytes.copy(larger, 0, 0, this.#end)
    this.#bytes = larger
  }
}

/** Reads fields one after the other; a field that reaches beyond the end throws before anything is made of it. */
export class ByteReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get done(): boolean {
    return this.#at === this.#bytes.length
  }

  u8(): number {
    return this.#bytes[this.#take(1)] as number
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4))
  }

  u64(): bigint {
    return this.#bytes.readBigUInt64LE(this.#take(8))
  }

  f64(): number {
    return this.#bytes.readDoubleLE(this.#take(8))
  }

  text(): string {
    return this.optionalText() ?? fail('a text is missing')
  }

  optionalText(): string | null {
    const length = this.u32()
    if (length === NOTHING) return null
    const start = this.#take(length)
    return this.#bytes.toString('utf8', start, start + length)
  }

  /** A view: it shares the frame's memory. */
  blob(): Buffer | null {
    const length = this.u32()
    if (length === NOTHING) return null
    const start = this.#take(length)
    return this.#bytes.subarray(start, start + length)
  }

  #take(length: number): number {
    const start = this.#at
    if (length > this.#bytes.length - start) return fail('a field reaches beyond its frame')
    this.#at += length
    return start
  }
}

function fail(what: string): never {
  throw protocolError(what)
}
