/** How the fields of `outbox.record` look in binary, the same in a COPY and in the WAL. */
import type { Headers } from '../../core/message.ts'

const NO_HEADERS: Headers = Object.freeze(Object.create(null) as Headers)

/** A uuid as text. The 16 bytes at `start` must be there. */
export function uuidAt(chunk: Buffer, start: number): string {
  const hex = chunk.toString('hex', start, start + 16)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
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
