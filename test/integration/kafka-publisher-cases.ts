import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { beforeAll, expect, test } from 'vitest'
import type { Broker, Publisher } from '../../src/brokers/broker.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { newId } from '../../src/core/ids.ts'
import { track } from '../support/leaks.ts'
import { describeWith, services } from '../support/services.ts'
import type { KafkaAdapter } from './kafka-member-cases.ts'

let seq = 0
function message(topic: string, key: string | null, payload: Buffer): OutgoingMessage {
  return { headers: {}, id: newId(), key, payload, seq: String(++seq), timeMs: 1_790_000_000_000, topic, type: 'test' }
}

function keyed(topic: string, count: number, bytes: number): OutgoingMessage[] {
  return Array.from({ length: count }, (_, i) => message(topic, `k${i % 50}`, Buffer.alloc(bytes, i % 256)))
}

/** What a publisher must hold on any Kafka client. */
export function publisherCases(name: string, adapter: KafkaAdapter): void {
  describeWith('kafka', `the ${name} publisher on a real broker`, () => {
    let brokers: string[]
    beforeAll(() => {
      brokers = (services().kafka as string).split(',')
    })

    async function make(
      options: { readonly maxMessageBytes?: number } = {},
    ): Promise<{ broker: Broker; publisher: Publisher }> {
      const broker = adapter({ brokers, ...options })
      const publisher = broker.publisher()
      await publisher.start()
      const release = track(`a ${name} publisher`, () => publisher.close())
      return { broker, publisher: { ...bound(publisher), close: () => publisher.close().finally(release) } }
    }

    /** A topic with settings of its own. */
    async function topicWith(partitions: number, settings: Record<string, string> = {}): Promise<string> {
      const topic = `topic-${randomUUID()}`
      const admin = new Kafka({ brokers, logLevel: logLevel.NOTHING }).admin()
      await admin.connect()
      try {
        const configEntries = Object.entries(settings).map(([name, value]) => ({ name, value }))
        await admin.createTopics({
          timeout: 30_000,
          topics: [{ configEntries, numPartitions: partitions, topic }],
          waitForLeaders: false,
        })
        // It is there already: what is left is to wait for its leaders.
        await adapter({ brokers }).admin.createTopic(topic)
      } finally {
        await admin.disconnect()
      }
      return topic
    }

    /** The ids of a topic by partition, in the order in which they are stored. */
    async function storedIn(topic: string, count: number): Promise<Map<number, string[]>> {
      const consumer = new Kafka({ brokers, logLevel: logLevel.NOTHING }).consumer({
        groupId: `check-${topic}-${randomUUID()}`,
        maxWaitTimeInMs: 100,
      })
      const stored = new Map<number, string[]>()
      try {
        await consumer.connect()
        await consumer.subscribe({ fromBeginning: true, topics: [topic] })
        let seen = 0
        await new Promise<void>((resolve, reject) => {
          const eachBatch = ({
            batch,
          }: {
            batch: { partition: number; messages: { headers?: object }[] }
          }): Promise<void> => {
            const list = stored.get(batch.partition) ?? []
            for (const { headers } of batch.messages) {
              list.push(String((headers as Record<string, Buffer>)['millrace-id']))
            }
            stored.set(batch.partition, list)
            if ((seen += batch.messages.length) >= count) resolve()
            return Promise.resolve()
          }
          consumer.run({ eachBatch }).catch(reject)
        })
      } finally {
        await consumer.disconnect()
      }
      return stored
    }

    test('a page of 1000 messages of 1 KB for a topic of one partition, above the limit of a batch, is stored in order', async () => {
      const { publisher } = await make()
      const topic = await topicWith(1)
      for (let round = 0; round < 2; round++) {
        const page = keyed(topic, 1000, 1024)
        expect(page.reduce((sum, one) => sum + one.payload.length, 0)).toBeGreaterThan(1_000_000)
        expect(await publisher.publish(page)).toEqual([])
        const stored = await storedIn(topic, 1000 * (round + 1))
        expect(stored.get(0)?.slice(-1000)).toEqual(page.map((one) => one.id))
      }
      await publisher.close()
    })

    test('a page is stored once and in order in a topic that takes far smaller batches than its broker', async () => {
      const { publisher } = await make()
      const topic = await topicWith(3, { 'max.message.bytes': '50000' })
      const pages = [keyed(topic, 400, 1024), keyed(topic, 400, 1024)]
      for (const page of pages) expect(await publisher.publish(page)).toEqual([])
      const stored = await storedIn(topic, 800)
      const order = new Map(pages.flat().map((one, i) => [one.id, i]))
      for (const [, ids] of stored) {
        const places = ids.map((id) => order.get(id) ?? -1)
        expect(places).toEqual(places.toSorted((a, b) => a - b))
      }
      expect([...stored.values()].flat()).toHaveLength(800)
      await publisher.close()
    })

    test('a message that only the broker knows to be too large is poison; its neighbours are stored, its key is held', async () => {
      const { publisher } = await make({ maxMessageBytes: 10_000_000 })
      const topic = await topicWith(2)
      const page = [
        message(topic, 'large', Buffer.from('before')),
        message(topic, 'other', Buffer.from('0')),
        message(topic, 'large', Buffer.alloc(3_000_000)),
        message(topic, 'large', Buffer.from('after')),
        message(topic, 'other', Buffer.from('1')),
      ]
      const unresolved = await publisher.publish(page)
      expect(unresolved.map((one) => [one.index, one.outcome, one.class])).toEqual([
        [2, 'failed', 'poison'],
        [3, 'unsent', 'poison'],
      ])
      expect(new Set([...(await storedIn(topic, 3)).values()].flat())).toEqual(
        new Set([page[0]?.id, page[1]?.id, page[4]?.id]),
      )
      await publisher.close()
    })

    test('a record that a compacted topic refuses is found among others', async () => {
      const { publisher } = await make()
      const topic = await topicWith(1, { 'cleanup.policy': 'compact' })
      const page = [...keyed(topic, 20, 10), message(topic, null, Buffer.from('no key')), ...keyed(topic, 20, 10)]
      const unresolved = await publisher.publish(page)
      expect(unresolved.map((one) => [one.index, one.outcome, one.class])).toEqual([[20, 'failed', 'poison']])
      expect((await storedIn(topic, 40)).get(0)).toEqual(page.filter((_, i) => i !== 20).map((one) => one.id))
      await publisher.close()
    })

    test('one missing topic in a page keeps nobody else waiting', async () => {
      const { publisher } = await make()
      const topic = await topicWith(4)
      const page = [...keyed(topic, 50, 10), message(`missing-${randomUUID()}`, 'x', Buffer.from('x'))]
      const started = performance.now()
      const unresolved = await publisher.publish(page)
      expect(performance.now() - started).toBeLessThan(10_500)
      expect(unresolved.map((one) => [one.index, one.class])).toEqual([[50, 'retry']])
      expect(new Set([...(await storedIn(topic, 50)).values()].flat())).toEqual(
        new Set(page.slice(0, 50).map((m) => m.id)),
      )
      await publisher.close()
    })

    test('start rejects when nobody listens, with the address in the text', async () => {
      const publisher = adapter({ brokers: '127.0.0.1:1' }).publisher({ timeoutMs: 1000 })
      await expect(publisher.start()).rejects.toMatchObject({
        code: 'BROKER_UNREACHABLE',
        message: expect.stringContaining('127.0.0.1:1') as string,
      })
      await publisher.close()
    })
  })
}

function bound(publisher: Publisher): Publisher {
  return {
    close: () => publisher.close(),
    publish: (batch, signal) => publisher.publish(batch, signal),
    start: () => publisher.start(),
  }
}
