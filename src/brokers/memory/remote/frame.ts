/**
 * The frames between a remote client and a served memory broker. A frame is a length (u32, of what follows), a kind
 * (u8) and a body. The length is checked before anything is kept for it; a stream that breaks a rule is cut.
 *
 *   control    JSON, small: requests, answers, and what a member is told
 *   publish    request id u32, messages
 *   hand-over  assignment u32, partition u32, topic, then per message: position u64, redelivered u8, the message
 */
import { MillraceError } from '../../../core/errors.ts'

export const FRAME = { control: 1, publish: 2, handOver: 3 } as const

/** The largest frame: one message at its largest, and room for its headers' names and lengths. */
export const MAX_FRAME_BYTES = 32 * 1024 * 1024
/** The largest control frame. */
export const MAX_CONTROL_BYTES = 1024 * 1024

/** The other side broke the protocol: the connection ends. */
export function protocolError(what: string): MillraceError {
  return new MillraceError('CONNECTION_LOST', `the memory broker's stream is broken: ${what}`)
}

/** Cuts a stream of bytes into frames, holding at most one. */
export class FrameReader {
  readonly #onFrame: (kind: number, body: Buffer) => void
  #chunks: Buffer[] = []
  #held = 0
  /** How many bytes the next step needs: a head of 5, or a whole frame. */
  #needed = 5

  constructor(onFrame: (kind: number, body: Buffer) => void) {
    this.#onFrame = onFrame
  }

  /** Takes what came; throws when it breaks a rule. */
  push(chunk: Buffer): void {
    this.#chunks.push(chunk)
    this.#held += chunk.length
    if (this.#held < this.#needed) return
    let bytes = this.#chunks.length === 1 ? chunk : Buffer.concat(this.#chunks, this.#held)
    while (bytes.length >= 5) {
      const length = bytes.readUInt32LE(0)
      if (length < 1 || length > MAX_FRAME_BYTES) throw protocolError(`a frame of ${length} bytes`)
      if (bytes.length < 4 + length) break
      const body = bytes.subarray(5, 4 + length)
      const kind = bytes[4] as number
      bytes = bytes.subarray(4 + length)
      this.#onFrame(kind, body)
    }
    this.#needed = bytes.length >= 5 ? 4 + bytes.readUInt32LE(0) : 5
    this.#chunks = bytes.length > 0 ? [bytes] : []
    this.#held = bytes.length
  }
}

/** A control frame. */
export function controlFrame(value: object): Buffer {
  const body = JSON.stringify(value)
  const frame = Buffer.allocUnsafe(5 + Buffer.byteLength(body))
  frame.writeUInt32LE(frame.length - 4, 0)
  frame[4] = FRAME.control
  frame.write(body, 5)
  return frame
}

/** The object of a control frame, of which nothing is known yet. */
export function readControl(body: Buffer): Readonly<Record<string, unknown>> {
  if (body.length > MAX_CONTROL_BYTES) throw protocolError(`a control frame of ${body.length} bytes`)
  let value: unknown
  try {
    value = JSON.parse(body.toString())
  } catch {
    throw protocolError('a control frame that is not JSON')
  }
  if (typeof value !== 'object' || value === null) throw protocolError('a control frame that is no object')
  return value as Readonly<Record<string, unknown>>
}

/** A text of a control frame. */
export function textOf(value: unknown): string {
  if (typeof value !== 'string') throw protocolError('a text was expected')
  return value
}

/** A non-negative integer of a control frame. */
export function integerOf(value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
    throw protocolError('an integer was expected')
  return value
}

/** A list of a control frame. */
export function listOf<T>(value: unknown, read: (entry: Readonly<Record<string, unknown>>) => T): T[] {
  if (!Array.isArray(value)) throw protocolError('a list was expected')
  return value.map((entry: unknown) => {
    if (typeof entry !== 'object' || entry === null) throw protocolError('a list of objects was expected')
    return read(entry as Readonly<Record<string, unknown>>)
  })
}
