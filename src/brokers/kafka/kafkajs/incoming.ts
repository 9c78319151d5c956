import type { IHeaders, KafkaMessage } from 'kafkajs'
import { readHeaders } from '../../../core/wire.ts'
import type { IncomingMessage } from '../../broker.ts'

/**
 * A message as it came from kafkajs, as the port has it. A foreign message gets an id from where it stands and the
 * record's own time: the same on every delivery, and another one when the topic is made anew. A key that is no UTF-8 is read as if it were: two such keys may
 * look alike, which costs them concurrency and nothing else.
 */
export function incomingMessage(topic: string, partition: number, message: KafkaMessage): IncomingMessage {
  const { key, offset, value } = message
  let size = (key?.length ?? 0) + (value?.length ?? 0)
  const entries: [string, string][] = []
  const raw: IHeaders = message.headers ?? {}
  for (const name in raw) {
    const text = headerText(raw[name])
    size += name.length + text.length
    entries.push([name, text])
  }
  const { headers, id, timeMs, type } = readHeaders(entries)
  return {
    headers,
    id: id ?? `${topic}/${partition}/${offset}/${message.timestamp}`,
    key: key === null ? null : key.toString(),
    partition,
    payload: value,
    position: BigInt(offset),
    redelivered: false,
    sizeBytes: size,
    timeMs: timeMs > 0 ? timeMs : Math.max(0, Number(message.timestamp) || 0),
    topic,
    type: type ?? '',
  }
}

/** Kafka allows a header several times; the last one counts, as in its own clients. A header without a value is empty. */
function headerText(value: IHeaders[string]): string {
  const last = Array.isArray(value) ? value.at(-1) : value
  return last === undefined || last === null ? '' : last.toString()
}
