/**
 * Encodes a record batch (message format 2) into one buffer. Ours, because the client package makes some forty small
 * buffers of every record and joins them at the end, which costs several times what all else costs.
 */
import { BATCH_OVERHEAD_BYTES } from '../produce-record.ts'
import type { ProduceRecord } from '../produce-record.ts'

/** Who sends the batch, and when. */
export interface BatchHead {
  readonly producerEpoch: number
  readonly producerId: bigint
  /** The sequence number of the first record. */
  readonly sequence: number
  readonly timeMs: number
}

const MAGIC = 2
// Offset, length, leader epoch, magic and checksum stand before what the checksum covers.
const CHECKED_FROM = 21

/** The records as one batch. `checksum` is CRC-32C. */
export function encodeRecordBatch(
  records: readonly ProduceRecord[],
  head: BatchHead,
  checksum: (bytes: Buffer) => number,
): Buffer {
  const bound = records.reduce((sum, record) => sum + record.sizeBytes, BATCH_OVERHEAD_BYTES)
  const out = Buffer.allocUnsafe(bound)
  let at = BATCH_OVERHEAD_BYTES
  for (let i = 0; i < records.length; i++) at = writeRecord(out, at, records[i] as ProduceRecord, i)
  out.writeBigInt64BE(0n, 0)
  out.writeInt32BE(at - 12, 8)
  out.writeInt32BE(-1, 12)
  out.writeInt8(MAGIC, 16)
  out.writeInt16BE(0, 21)
  out.writeInt32BE(records.length - 1, 23)
  out.writeBigInt64BE(BigInt(head.timeMs), 27)
  out.writeBigInt64BE(BigInt(head.timeMs), 35)
  out.writeBigInt64BE(head.producerId, 43)
  out.writeInt16BE(head.producerEpoch, 51)
  out.writeInt32BE(head.sequence, 53)
  out.writeInt32BE(records.length, 57)
  const batch = out.subarray(0, at)
  batch.writeUInt32BE(checksum(batch.subarray(CHECKED_FROM)) >>> 0, 17)
  return batch
}

function writeRecord(out: Buffer, start: number, record: ProduceRecord, offsetDelta: number): number {
  // The length stands first and is known last: room is left for what it probably takes.
  const guess = varintBytes(record.sizeBytes)
  const body = start + guess
  let at = body
  out[at++] = 0
  out[at++] = 0
  at = writeVarint(out, at, offsetDelta)
  at = writeBytes(out, at, record.key)
  at = writeBytes(out, at, record.value)
  const { headers } = record
  let count = 0
  for (const _ in headers) count++
  at = writeVarint(out, at, count)
  for (const name in headers) {
    at = writeText(out, at, name)
    at = writeText(out, at, headers[name] as string)
  }
  const length = at - body
  const needed = varintBytes(length)
  if (needed !== guess) {
    out.copyWithin(start + needed, body, at)
    at += needed - guess
  }
  writeVarint(out, start, length)
  return at
}

function writeBytes(out: Buffer, at: number, bytes: Buffer | null): number {
  if (bytes === null) return writeVarint(out, at, -1)
  const from = writeVarint(out, at, bytes.length)
  out.set(bytes, from)
  return from + bytes.length
}

function writeText(out: Buffer, at: number, text: string): number {
  const from = writeVarint(out, at, Buffer.byteLength(text))
  return from + out.write(text, from)
}

/** A signed number as the protocol has it: zigzag, seven bits a byte, the lowest first. */
function writeVarint(out: Buffer, at: number, value: number): number {
  let left = ((value << 1) ^ (value >> 31)) >>> 0
  while (left > 0x7f) {
    out[at++] = (left & 0x7f) | 0x80
    left >>>= 7
  }
  out[at++] = left
  return at
}

/** How many bytes a number that is not negative takes. */
function varintBytes(value: number): number {
  let bytes = 1
  for (let left = (value << 1) >>> 0; left > 0x7f; left >>>= 7) bytes++
  return bytes
}
