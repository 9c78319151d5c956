import { readHeaders } from '../../core/wire.ts'
import type { IncomingMessage } from '../broker.ts'

/** A record as a client package gives it. */
export interface IncomingRecord {
  readonly headers: Iterable<readonly [name: string, value: string]>
  readonly key: Buffer | null
  readonly offset: bigint
  readonly partition: number
  /** Bytes of key, headers and value. */
  readonly sizeBytes: number
  /** The record's own time, milliseconds since the Unix epoch. */
  readonly timestamp: number
  readonly topic: string
  readonly value: Buffer | null
}

/**
 * A record as the port has it. A foreign message gets an id from where it stands and the record's own time: the same on
 * every delivery, and another one when the topic is made anew. A key that is no UTF-8 is read as if it were: two such
 * keys may look alike, which costs them concurrency and nothing else.
 */
export function incomingMessage(record: IncomingRecord): IncomingMessage {
  const { key, offset, partition, sizeBytes, timestamp, topic, value } = record
  const { headers, id, timeMs, type } = readHeaders(record.headers)
  return {
    headers,
    id: id ?? `${topic}/${partition}/${offset}/${timestamp}`,
    key: key === null ? null : key.toString(),
    partition,
    payload: value,
    position: offset,
    redelivered: false,
    sizeBytes,
    timeMs: timeMs > 0 ? timeMs : Math.max(0, timestamp),
    topic,
    type: type ?? '',
  }
}
