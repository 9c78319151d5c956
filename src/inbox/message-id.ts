import { createHash } from 'node:crypto'
import { isUuid, timeOfId } from '../core/ids.ts'

/** The bucket of ids that carry no time. */
export const UNTIMED_BUCKET = -1

/** How many timed buckets the table has. A contract with the migration. */
const BUCKETS = 8

/** The time that one bucket covers: a day. The ring of eight comes round after eight days. */
const BUCKET_MS = 86_400_000

/** The row of a message in the inbox. */
export interface InboxKey {
  readonly bucket: number
  readonly id: string
}

/**
 * Which row a message id is: a pure function, so that an id always meets the same unique index.
 *
 * A uuid v7 goes to the bucket of its own time, any other uuid to the untimed bucket, and anything else is mapped to a
 * uuid v8 by SHA-256 of its UTF-8 (RFC 9562, appendix B.2) and goes to the untimed bucket too. Only the canonical
 * lower-case form is a uuid; ids that differ in case are different ids.
 */
export function inboxKey(messageId: string): InboxKey {
  const timeMs = timeOfId(messageId)
  if (timeMs !== undefined) return { bucket: Math.floor(timeMs / BUCKET_MS) % BUCKETS, id: messageId }
  return { bucket: UNTIMED_BUCKET, id: isUuid(messageId) ? messageId : hashedId(messageId) }
}

function hashedId(text: string): string {
  const bytes = createHash('sha256').update(text, 'utf8').digest()
  bytes[6] = ((bytes[6] as number) & 0x0f) | 0x80
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80
  const hex = bytes.toString('hex', 0, 16)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
