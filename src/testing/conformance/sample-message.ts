import { newId } from '../../core/ids.ts'
import type { OutgoingMessage } from '../../core/message.ts'

let lastSeq = 0

/** A message to publish: a new id, the next outbox position, and whatever the case cares about. */
export function sampleMessage(topic: string, fields: Partial<Omit<OutgoingMessage, 'topic'>> = {}): OutgoingMessage {
  return {
    id: newId(),
    topic,
    key: null,
    type: 'conformance.sample',
    payload: Buffer.from('sample'),
    headers: {},
    timeMs: 1_790_000_000_123,
    seq: String(++lastSeq),
    ...fields,
  }
}

/** `count` messages over `keys`, one key after the other; the payload says which message of its key it is, from 0. */
export function keyedMessages(topic: string, keys: readonly string[], count: number, first = 0): OutgoingMessage[] {
  return Array.from({ length: count }, (_, i) =>
    sampleMessage(topic, {
      key: keys[i % keys.length] as string,
      payload: Buffer.from(String(first + Math.floor(i / keys.length))),
    }),
  )
}

/** `count` distinct keys. */
export function sampleKeys(count: number): string[] {
  return Array.from({ length: count }, (_, i) => `key-${i}`)
}
