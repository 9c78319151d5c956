import type { IHeaders, KafkaMessage } from 'kafkajs'
import type { IncomingMessage } from '../../broker.ts'
import { incomingMessage as incomingOf } from '../incoming.ts'

/** A message as it came from kafkajs, as the port has it. */
export function incomingMessage(topic: string, partition: number, message: KafkaMessage): IncomingMessage {
  const { key, offset, value } = message
  let sizeBytes = (key?.length ?? 0) + (value?.length ?? 0)
  const headers: [string, string][] = []
  const raw: IHeaders = message.headers ?? {}
  for (const name in raw) {
    const text = headerText(raw[name])
    sizeBytes += name.length + text.length
    headers.push([name, text])
  }
  const timestamp = Number(message.timestamp) || 0
  return incomingOf({ headers, key, offset: BigInt(offset), partition, sizeBytes, timestamp, topic, value })
}

/** Kafka allows a header several times; the last one counts, as in its own clients. A header without a value is empty. */
function headerText(value: IHeaders[string]): string {
  const last = Array.isArray(value) ? value.at(-1) : value
  return last === undefined || last === null ? '' : last.toString()
}
