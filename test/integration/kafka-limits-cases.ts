import { randomUUID } from 'node:crypto'
import { Kafka, logLevel, type Admin } from 'kafkajs'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Publisher } from '../../src/brokers/broker.ts'
import type { KafkaOptions } from '../../src/brokers/kafka/kafka-options.ts'
import { ProduceRecord } from '../../src/brokers/kafka/produce-record.ts'
import { batchBytesAlone } from '../../src/brokers/kafka/record-size.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { startKafka, type PrivateServer } from '../../src/testing/services/index.ts'
import { freePort } from '../../src/testing/services/ports.ts'
import { expectKeyOrder, kafkaMessage, kafkaPage, logOf, publishAll } from '../support/kafka-log.ts'
import { kafkaProxy, type KafkaProxy } from '../support/kafka-proxy.ts'
import { track } from '../support/leaks.ts'
import { describeWith } from '../support/services.ts'
import type { KafkaAdapter } from './kafka-member-cases.ts'

const LIMIT = 'max.message.bytes'

/** What a publisher must hold on any Kafka client. */
export function limitsCases(name: string, adapter: KafkaAdapter): void {
  describeWith('private kafka', `the ${name} publisher and the limits of a cluster`, () => {
    let admin: Admin
    let kafka: PrivateServer
    let proxy: KafkaProxy
    beforeAll(async () => {
      const port = await freePort()
      proxy = await kafkaProxy(port)
      kafka = await startKafka({
        port,
        properties: { 'advertised.listeners': `PLAINTEXT://${proxy.address}`, 'message.max.bytes': '300000' },
      })
      admin = new Kafka({ brokers: [proxy.address], logLevel: logLevel.NOTHING }).admin()
      await admin.connect()
    })
    afterAll(async () => {
      await admin.disconnect()
      await proxy.close()
      await kafka.dispose()
    })

    async function make(
      options: Partial<KafkaOptions> = {},
    ): Promise<{ end: () => Promise<void>; publisher: Publisher }> {
      const broker = adapter({ brokers: proxy.address, ...options })
      const publisher = broker.publisher()
      await publisher.start()
      const end = async (): Promise<void> => {
        release()
        await publisher.close()
        await broker.close()
      }
      const release = track(`a ${name} publisher`, end)
      return { end, publisher }
    }

    async function topicWith(settings: Record<string, string>, partitions = 1): Promise<string> {
      const topic = `topic-${randomUUID()}`
      const configEntries = Object.entries(settings).map(([name, value]) => ({ name, value }))
      await admin.createTopics({
        timeout: 30_000,
        topics: [{ configEntries, numPartitions: partitions, topic }],
        waitForLeaders: false,
      })
      // It is there already: what is left is to wait for its leaders.
      await adapter({ brokers: proxy.address }).admin.createTopic(topic)
      return topic
    }

    /** A message that fills a batch of exactly so many bytes alone. */
    function filling(topic: string, key: string, batchBytes: number): OutgoingMessage {
      const size = (bytes: number): number =>
        batchBytesAlone(new ProduceRecord(0, kafkaMessage(topic, key, Buffer.alloc(bytes)), 0))
      // The ids and numbers of two messages are equally long.
      let bytes = batchBytes - (size(batchBytes) - batchBytes)
      while (size(bytes) < batchBytes) bytes++
      expect(size(bytes)).toBe(batchBytes)
      return kafkaMessage(topic, key, Buffer.alloc(bytes))
    }

    test('a page is cut by the limit of its topic, without a refusal', async () => {
      const topic = await topicWith({ [LIMIT]: '50000' })
      const { end, publisher } = await make()
      const page = kafkaPage(topic, 100, 20, 1000)
      const before = proxy.produced
      expect(await publisher.publish(page)).toEqual([])
      // 100 records of 1.3 KB at most.
      expect(proxy.produced - before).toBeLessThanOrEqual(3)
      const log = await logOf([proxy.address], topic, page)
      expect([...log.values()].flat()).toHaveLength(100)
      expectKeyOrder(log, page)
      await end()
    })

    test('a page is cut by the limit of the broker where the topic has none', async () => {
      const topic = await topicWith({})
      const { end, publisher } = await make()
      const page = kafkaPage(topic, 60, 20, 10_000)
      const before = proxy.produced
      expect(await publisher.publish(page)).toEqual([])
      expect(proxy.produced - before).toBe(3)
      await end()
    })

    test(
      'a message of exactly the limit is stored, and one of a byte more is poison without being sent',
      { timeout: 120_000 },
      async () => {
        const topic = await topicWith({ [LIMIT]: '20000' })
        const { end, publisher } = await make()
        const [fits, above] = [filling(topic, 'fits', 20_000), filling(topic, 'above', 20_001)]
        const after = kafkaMessage(topic, 'above')
        const before = proxy.produced
        const unresolved = await publisher.publish([above, fits, after])
        expect(unresolved.map((one) => [one.index, one.outcome, one.class])).toEqual([
          [0, 'failed', 'poison'],
          [2, 'unsent', 'poison'],
        ])
        expect(proxy.produced - before).toBe(1)
        expect([...(await logOf([proxy.address], topic, [fits])).keys()]).toEqual(['fits'])
        // The broker judges as we do.
        const producer = new Kafka({ brokers: [proxy.address], logLevel: logLevel.NOTHING }).producer()
        await producer.connect()
        const { headers, key, value } = new ProduceRecord(0, above, 0)
        await expect(producer.send({ messages: [{ headers, key, value }], topic })).rejects.toMatchObject({
          type: 'MESSAGE_TOO_LARGE',
        })
        await producer.disconnect()
        await end()
      },
    )

    test('a topic whose limit is raised takes the message that was too large', async () => {
      const topic = await topicWith({ [LIMIT]: '20000' })
      const { end, publisher } = await make()
      const large = kafkaMessage(topic, 'k', Buffer.alloc(100_000))
      expect(await publisher.publish([large])).toMatchObject([{ class: 'poison', outcome: 'failed' }])
      await setLimit(topic, 200_000)
      await expect.poll(() => publisher.publish([large]), { interval: 100, timeout: 20_000 }).toEqual([])
      await end()
    })

    test(
      'a topic whose limit is lowered refuses one page, and has the next cut to fit',
      { timeout: 120_000 },
      async () => {
        const topic = await topicWith({})
        const { end, publisher } = await make()
        const first = kafkaPage(topic, 10, 5, 1000)
        expect(await publisher.publish(first)).toEqual([])
        await setLimit(topic, 20_000)
        const page = kafkaPage(topic, 100, 20, 1000)
        expect(await publisher.publish(page)).toEqual([])
        expect([...(await logOf([proxy.address], topic, page)).values()].flat()).toHaveLength(110)
        const before = proxy.produced
        const next = kafkaPage(topic, 100, 20, 1000)
        expect(await publisher.publish(next)).toEqual([])
        // 100 records of 1.3 KB at most to batches of 20 KB, or of the half of what was refused last.
        expect(proxy.produced - before).toBeLessThanOrEqual(14)
        const sent = [...first, ...page, ...next]
        expectKeyOrder(await logOf([proxy.address], topic, sent), sent)
        await end()
      },
    )

    test('a missing topic holds up nobody once it is known to be missing', async () => {
      const topic = await topicWith({}, 4)
      const none = `none-${randomUUID()}`
      const { end, publisher } = await make({ unknownTopicMs: 4000 })
      const page = [
        ...kafkaPage(topic, 50, 10),
        kafkaMessage(none, 'k0', 'nowhere'),
        kafkaMessage(topic, 'k0', 'after it'),
        kafkaMessage(topic, 'k1', 'beside it'),
      ]
      const first = await publisher.publish(page)
      expect(first.map((one) => [one.index, one.class, one.outcome])).toEqual([
        [50, 'retry', 'failed'],
        [51, 'retry', 'unsent'],
      ])
      const held = [page[50], page[51]] as OutgoingMessage[]
      // A slow machine may have run out of time before it was known.
      const lookMs = async (): Promise<number> => {
        const began = performance.now()
        await publisher.publish(held)
        return performance.now() - began
      }
      while ((await lookMs()) > 2000);
      const began = performance.now()
      for (let i = 0; i < 5; i++) {
        const before = proxy.produced
        const again = await publisher.publish([...held, kafkaMessage(topic, 'k2')])
        expect(again.map((one) => [one.index, one.outcome])).toEqual([
          [0, 'failed'],
          [1, 'unsent'],
        ])
        expect(proxy.produced - before, 'the neighbour').toBe(1)
        if (again[0]?.class === 'poison') break
      }
      expect(performance.now() - began, 'five looks at the cluster').toBeLessThan(10_000)
      // Missing for as long as that: no longer about to be made.
      await expect
        .poll(async () => (await publisher.publish(held)).map((one) => one.class), { interval: 100, timeout: 20_000 })
        .toEqual(['poison', 'poison'])
      // And it is sent when it is there after all.
      await adapter({ brokers: proxy.address }).admin.createTopic(none)
      expect(await publisher.publish(held)).toEqual([])
      await end()
    })

    test('a topic that the broker makes when it is asked for is written to at once', async () => {
      const own = await startKafka({ properties: { 'auto.create.topics.enable': 'true' } })
      const release = track('Kafka', () => own.dispose())
      const broker = adapter({ brokers: own.address })
      const publisher = broker.publisher()
      await publisher.start()
      const message = kafkaMessage(`made-${randomUUID()}`, 'k')
      const began = performance.now()
      const late = await publisher.publish([message])
      if (late.length > 0) {
        // The broker took longer to make it than a page waits for that.
        expect(performance.now() - began, 'ms for which it was waited for').toBeGreaterThan(500)
        await publishAll(publisher, [message])
      }
      expect((await logOf([own.address], message.topic, [message])).get('k')).toEqual([message.id])
      await publisher.close()
      await broker.close()
      await own.dispose()
      release()
    })

    async function setLimit(topic: string, bytes: number): Promise<void> {
      const configEntries = [{ name: LIMIT, value: String(bytes) }]
      await admin.alterConfigs({ resources: [{ configEntries, name: topic, type: 2 }], validateOnly: false })
      // The controller has it; the broker follows.
      const resource = { configNames: [LIMIT], name: topic, type: 2 }
      const limit = async (): Promise<string | undefined> => {
        const { resources } = await admin.describeConfigs({ includeSynonyms: false, resources: [resource] })
        return resources[0]?.configEntries[0]?.configValue
      }
      await expect.poll(limit).toBe(String(bytes))
    }
  })
}
