/** How the fields of `outbox.record` look in binary, the same in a COPY and in the WAL. */
import type { Headers } from '../../core/message.ts'

const NO_HEADERS: Headers = Object.freeze(Object.create(null) as Headers)

const HEX = Buffer.from('0123456789abcdef')

/** The text of a uuid, its hyphens in place, and where the two digits of each byte go. */
const uuid = Buffer.alloc(36, '-')
const DIGITS_AT = Uint8Array.of(0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34)

/** A uuid as text, made in one piece: it is copied more than once. The 16 bytes at `start` must be there. */
export function uuidAt(chunk: Buffer, start: number): string {
  for (let i = 0; i < 16; i++) {
    const byte = chunk[start + i] as number
    const at = DIGITS_AT[i] as number
    uuid[at] = HEX[byte >> 4] as number
    uuid[at + 1] = HEX[byte & 15] as number
  }
  return uuid.toString('latin1', 0, 36)
}

/** The time inside the uuid v7 at `start`, milliseconds since the epoch; 0 for a uuid of another version. */
export function timeOfUuidAt(chunk: Buffer, start: number): number {
  return (chunk[start + 6] as number) >> 4 === 7 ? chunk.readUIntBE(start, 6) : 0
}

/** Binary jsonb is a version byte and the text; `{}` is by far the commonest. */
export function headersAt(chunk: Buffer, start: number, length: number): Headers {
  if (length <= 3) return NO_HEADERS
  return JSON.parse(chunk.toString('utf8', start + 1, start + length)) as Headers
}
