import type { OutgoingMessage } from '../../core/message.ts'
import { writeHeaders } from '../../core/wire.ts'
import { keyHash } from '../../core/key-hash.ts'

/** The head of a record batch (message format 2) with its offset and length: what a batch weighs before its records. */
export const BATCH_OVERHEAD_BYTES = 61

// Length, attributes, timestamp delta, offset delta, key length, value length, header count: each varint at its longest.
const RECORD_OVERHEAD_BYTES = 36
// The two lengths of a header.
const HEADER_OVERHEAD_BYTES = 10

/**
 * One message as a client package takes it (`key`, `value`, `headers`, `partition`), with what the publisher must know
 * of it. The payload is the message's own buffer, not a copy.
 */
export class ProduceRecord {
  /** How often it was given a partition to be sent to; 0 means that it never left the process. */
  attempts = 0
  /** What its partition is computed from: the key's hash, or a running number for a message without a key. */
  readonly hash: number
  readonly headers: Record<string, string>
  /** Its index in the batch that was given to `publish`. */
  readonly index: number
  readonly key: Buffer | null
  readonly message: OutgoingMessage
  /**
   * The partition it was first sent to. It stays there through every retry: a retry that moved it would give another
   * record its sequence number, and the broker would drop that one as a duplicate.
   */
  partition: number | undefined = undefined
  /** An upper bound of its size inside a record batch. */
  readonly sizeBytes: number
  readonly value: Buffer

  constructor(index: number, message: OutgoingMessage, running: number) {
    this.index = index
    this.message = message
    this.key = message.key === null ? null : Buffer.from(message.key)
    this.hash = this.key === null ? running : keyHash(this.key)
    this.value = message.payload
    let size = RECORD_OVERHEAD_BYTES + this.value.length + (this.key?.length ?? 0)
    const headers = Object.create(null) as Record<string, string>
    writeHeaders(message, (name, value) => {
      headers[name] = value
      size += HEADER_OVERHEAD_BYTES + Buffer.byteLength(name) + Buffer.byteLength(value)
    })
    this.headers = headers
    this.sizeBytes = size
  }
}
