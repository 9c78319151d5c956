import type { Msg } from '@nats-io/transport-node'
import type { Headers } from '../../core/message.ts'
import { readHeaders } from '../../core/wire.ts'
import type { IncomingMessage, Partition } from '../broker.ts'
import { decodeText, ENCODED } from './header-text.ts'

/** One delivery of a message to this member, until it is acknowledged or given up. */
export interface Delivery {
  /** Where to answer it. A later delivery of the same message replaces it. */
  ackSubject: string
  /** Counts deliveries of the durable consumer. */
  readonly deliverySeq: number
  /** The message, until it is handed over. */
  message: Msg | undefined
  /** Given at the hand-over; 0n before. */
  position: bigint
  readonly redelivered: boolean
  readonly stream: string
  readonly streamSeq: number
  /** When the stream stored it, nanoseconds since the epoch, decimal digits. */
  readonly storedAt: string
}

/**
 * Reads the reply subject of a delivery. It has two forms, both in use between servers 2.11 and 2.15:
 * `$JS.ACK.<stream>.<consumer>.<count>.<stream seq>.<delivery seq>.<time>.<pending>` and, with at least eleven tokens,
 * `$JS.ACK.<domain>.<account>.<stream>.…`. Undefined for what is no delivery.
 */
export function readDelivery(message: Msg): Delivery | undefined {
  const ackSubject = message.reply ?? ''
  const tokens = ackSubject.split('.')
  if (tokens[0] !== '$JS' || tokens[1] !== 'ACK' || (tokens.length !== 9 && tokens.length < 11)) return undefined
  const first = tokens.length === 9 ? 2 : 4
  return {
    ackSubject,
    deliverySeq: Number(tokens[first + 4]),
    message,
    position: 0n,
    redelivered: tokens[first + 2] !== '1',
    stream: tokens[first] as string,
    streamSeq: Number(tokens[first + 3]),
    storedAt: tokens[first + 5] as string,
  }
}

/**
 * The delivery as the port has it. A message that Millrace did not write has no `millrace-id`: its `Nats-Msg-Id` serves
 * within its stream, else its place there and its time, which a stream that is made anew does not repeat. What begins with `Nats-` is the server's and no header of the user.
 */
export function toIncoming(delivery: Delivery, partition: Partition): IncomingMessage {
  const message = delivery.message as Msg
  const entries: [string, string][] = []
  const { data } = message
  let encoded: string[] = []
  let msgId: string | undefined
  let sizeBytes = data.byteLength
  for (const [name, values] of headersOf(message)) {
    const value = values[0] ?? ''
    sizeBytes += name.length + value.length + 4
    if (name === 'Nats-Msg-Id') msgId = value
    else if (name === ENCODED) encoded = value.split(' ')
    else if (!name.startsWith('Nats-')) entries.push([name, value])
  }
  for (const entry of encoded.length === 0 ? [] : entries) {
    if (encoded.includes(entry[0])) entry[1] = decodeText(entry[1])
  }
  const wire = readHeaders(entries)
  return {
    headers: wire.headers as Headers,
    id: wire.id ?? `${delivery.stream}/${msgId ?? `${delivery.streamSeq}/${delivery.storedAt}`}`,
    key: wire.key === undefined ? null : decodeText(wire.key),
    partition: partition.partition,
    payload: Buffer.from(data.buffer, data.byteOffset, data.byteLength),
    position: delivery.position,
    redelivered: delivery.redelivered,
    sizeBytes,
    timeMs: wire.timeMs,
    topic: partition.topic,
    type: wire.type ?? '',
  }
}

/** nats.js throws at header names that are none, which any producer can store; such a message has none, then. */
function headersOf(message: Msg): Iterable<[string, string[]]> {
  try {
    return message.headers ?? []
  } catch {
    return []
  }
}

/** The pin that came with a delivery: whoever has the newest is the member that the server serves. */
export function pinOf(message: Msg): string {
  try {
    return message.headers?.get('Nats-Pin-Id') ?? ''
  } catch {
    return ''
  }
}
