/** What a Kafka topic holds, read by a plain client, and the pages that tests write into it. */
import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { expect } from 'vitest'
import type { Publisher, Unresolved } from '../../src/brokers/broker.ts'
import { delay, systemClock } from '../../src/core/clock.ts'
import { newId } from '../../src/core/ids.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'

let seq = 0

/** A message with a payload of so many bytes. */
export function kafkaMessage(topic: string, key: string | null, payload: Buffer | string = 'x'): OutgoingMessage {
  return {
    headers: {},
    id: newId(),
    key,
    payload: Buffer.from(payload),
    seq: String(++seq),
    timeMs: 1_790_000_000_000,
    topic,
    type: 'test',
  }
}

/** A page of messages over so many keys. */
export function kafkaPage(topic: string, size: number, keys: number, bytes = 10): OutgoingMessage[] {
  return Array.from({ length: size }, (_, i) => kafkaMessage(topic, `k${i % keys}`, Buffer.alloc(bytes, i)))
}

/** As the relay does: what is not stored is sent again, in order, before anything new. Returns what was not at once. */
export async function publishAll(publisher: Publisher, page: readonly OutgoingMessage[]): Promise<Unresolved[]> {
  const all: Unresolved[] = []
  for (let left = page; left.length > 0;) {
    const unresolved = await publisher.publish(left)
    all.push(...unresolved)
    left = unresolved.map((one) => left[one.index] as OutgoingMessage)
    if (left.length > 0) await delay(systemClock, 50)
  }
  return all
}

/** The ids in a topic, by key, in the order of the log, repeats included. Waits until all of `sent` are there. */
export async function logOf(
  brokers: readonly string[],
  topic: string,
  sent: readonly OutgoingMessage[],
  timeoutMs = 30_000,
): Promise<Map<string, string[]>> {
  const consumer = new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING, retry: { retries: 20 } }).consumer({
    groupId: `log-${randomUUID()}`,
    maxWaitTimeInMs: 100,
  })
  const log = new Map<string, string[]>()
  const missing = new Set(sent.map((one) => one.id))
  const stop = new AbortController()
  try {
    await consumer.connect()
    await consumer.subscribe({ fromBeginning: true, topics: [topic] })
    const complete = new Promise<void>((resolve, reject) => {
      const eachMessage = ({ message }: { message: { headers?: object; key: Buffer | null } }): Promise<void> => {
        const id = String((message.headers as Record<string, Buffer>)['millrace-id'])
        const key = String(message.key)
        const ids = log.get(key)
        if (ids === undefined) log.set(key, [id])
        else ids.push(id)
        missing.delete(id)
        if (missing.size === 0) resolve()
        return Promise.resolve()
      }
      consumer.run({ eachMessage }).catch(reject)
    })
    await Promise.race([complete, delay(systemClock, timeoutMs, stop.signal)])
  } finally {
    stop.abort()
    await consumer.disconnect()
  }
  expect(missing.size, 'stored messages that are not in the topic').toBe(0)
  return log
}

/** Every key's messages, by their first sighting, are in the order in which they were published. */
export function expectKeyOrder(log: ReadonlyMap<string, readonly string[]>, sent: readonly OutgoingMessage[]): void {
  for (const [key, own] of Map.groupBy(sent, (one) => String(one.key))) {
    expect([...new Set(log.get(key))], `order of ${key}`).toEqual(own.map((one) => one.id))
  }
}
