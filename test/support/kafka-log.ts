/** What a Kafka topic holds, read by a plain client, and the pages that tests write into it. */
import { randomUUID } from 'node:crypto'
import { Kafka, logLevel, type EachBatchPayload } from 'kafkajs'
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

/** The ids in a topic, by key, in the order of the log, repeats included, to its end; all of `sent` must be there. */
export async function logOf(
  brokers: readonly string[],
  topic: string,
  sent: readonly OutgoingMessage[],
  timeoutMs = 60_000,
): Promise<Map<string, string[]>> {
  const kafka = new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING, retry: { retries: 20 } })
  const ends = await endsOf(kafka, topic)
  const consumer = kafka.consumer({ groupId: `log-${randomUUID()}`, maxWaitTimeInMs: 100 })
  const log = new Map<string, string[]>()
  const stop = new AbortController()
  try {
    await consumer.connect()
    await consumer.subscribe({ fromBeginning: true, topics: [topic] })
    const complete = new Promise<void>((resolve, reject) => {
      if (ends.size === 0) resolve()
      const eachBatch = ({ batch }: EachBatchPayload): Promise<void> => {
        for (const { headers, key } of batch.messages) {
          const ids = log.get(String(key))
          const id = String(headers?.['millrace-id'])
          if (ids === undefined) log.set(String(key), [id])
          else ids.push(id)
        }
        if (BigInt(batch.lastOffset()) + 1n >= (ends.get(batch.partition) ?? 0n)) ends.delete(batch.partition)
        if (ends.size === 0) resolve()
        return Promise.resolve()
      }
      consumer.run({ eachBatch, partitionsConsumedConcurrently: 1 }).catch(reject)
    })
    await Promise.race([complete, delay(systemClock, timeoutMs, stop.signal)])
  } finally {
    stop.abort()
    await consumer.disconnect()
  }
  expect([...ends.keys()], 'partitions not read to their end').toEqual([])
  const stored = new Set([...log.values()].flat())
  expect(
    sent.filter((one) => !stored.has(one.id)),
    'stored messages that are not in the topic',
  ).toEqual([])
  return log
}

/** By partition, the offset after the last message; without those that are empty. */
async function endsOf(kafka: Kafka, topic: string): Promise<Map<number, bigint>> {
  const admin = kafka.admin()
  await admin.connect()
  try {
    const offsets = await admin.fetchTopicOffsets(topic)
    return new Map(offsets.filter((one) => one.high !== '0').map((one) => [one.partition, BigInt(one.high)]))
  } finally {
    await admin.disconnect()
  }
}

/** Every key's messages, by their first sighting, are in the order in which they were published. */
export function expectKeyOrder(log: ReadonlyMap<string, readonly string[]>, sent: readonly OutgoingMessage[]): void {
  for (const [key, own] of Map.groupBy(sent, (one) => String(one.key))) {
    expect([...new Set(log.get(key))], `order of ${key}`).toEqual(own.map((one) => one.id))
  }
}
