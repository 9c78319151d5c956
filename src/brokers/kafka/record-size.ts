import { BATCH_OVERHEAD_BYTES } from './produce-record.ts'
import type { ProduceRecord } from './produce-record.ts'

/**
 * The exact size of a record batch that holds this record alone, without compression: what the broker holds against its
 * limit. `sizeBytes` of a record is an upper bound, good enough to cut pages, but no reason to call a message too large.
 */
export function batchBytesAlone(record: ProduceRecord): number {
  const { headers, key, value } = record
  // Attributes, timestamp delta and offset delta: a byte each, both deltas being 0.
  let size = 3 + (key === null ? 1 : withLength(key.length)) + withLength(value.length)
  let count = 0
  for (const name in headers) {
    size += withLength(Buffer.byteLength(name)) + withLength(Buffer.byteLength(headers[name] ?? ''))
    count++
  }
  size += varintBytes(count)
  return BATCH_OVERHEAD_BYTES + withLength(size)
}

function withLength(bytes: number): number {
  return varintBytes(bytes) + bytes
}

/** How many bytes a length takes: zigzag, seven bits to a byte. */
function varintBytes(value: number): number {
  let bytes = 1
  for (let left = value * 2; left >= 128; left = Math.floor(left / 128)) bytes++
  return bytes
}
