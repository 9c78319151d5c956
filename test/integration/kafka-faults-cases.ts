import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Broker, Publisher } from '../../src/brokers/broker.ts'
import type { KafkaOptions } from '../../src/brokers/kafka/kafka-options.ts'
import { delay, systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { startKafka, type PrivateServer } from '../../src/testing/services/index.ts'
import { freePort } from '../../src/testing/services/ports.ts'
import { expectKeyOrder, kafkaMessage, kafkaPage, logOf, publishAll } from '../support/kafka-log.ts'
import { kafkaProxy, type KafkaProxy } from '../support/kafka-proxy.ts'
import { track } from '../support/leaks.ts'
import { describeWith } from '../support/services.ts'
import type { KafkaAdapter } from './kafka-member-cases.ts'

/** What a publisher must hold on any Kafka client. */
export function faultsCases(name: string, adapter: KafkaAdapter): void {
  describeWith('private kafka', `the ${name} publisher over a network that fails`, () => {
    let kafka: PrivateServer
    let proxy: KafkaProxy
    beforeAll(async () => {
      const port = await freePort()
      proxy = await kafkaProxy(port)
      // Every client, also one that learns the address from the cluster, comes through the proxy.
      kafka = await startKafka({ port, properties: { 'advertised.listeners': `PLAINTEXT://${proxy.address}` } })
    })
    afterAll(async () => {
      await proxy.close()
      await kafka.dispose()
    })

    async function make(
      timeoutMs: number,
      partitions = 1,
      options: Partial<KafkaOptions> = {},
    ): Promise<{ broker: Broker; publisher: Publisher; topic: string; end: () => Promise<void> }> {
      const broker = adapter({ brokers: proxy.address, ...options })
      const topic = `topic-${randomUUID()}`
      await broker.admin.createTopic(topic, { partitions })
      const publisher = broker.publisher({ timeoutMs })
      await publisher.start()
      const end = async (): Promise<void> => {
        release()
        await publisher.close()
        await broker.close()
      }
      const release = track(`a ${name} publisher`, end)
      return { broker, end, publisher, topic }
    }

    test('e2 is not sent while the outcome of e1, of the same key, is unknown', async () => {
      // Each message fills a batch of its own, so that e1 and e2 are two requests.
      const { end, publisher, topic } = await make(4000, 1, { maxMessageBytes: 2048 })
      expect(await publisher.publish([kafkaMessage(topic, 'k', 'e0')])).toEqual([])
      const [e1, e2, other] = [
        kafkaMessage(topic, 'k', Buffer.alloc(1500)),
        kafkaMessage(topic, 'k', Buffer.alloc(1500)),
        kafkaMessage(topic, 'other', Buffer.alloc(1500)),
      ] as const
      const swallowed = proxy.swallow(1)
      const unresolved = await publisher.publish([e1, e2, other])
      await swallowed
      expect(unresolved.find((one) => one.index === 0)).toMatchObject({ class: 'retry', outcome: 'unknown' })
      expect(unresolved.find((one) => one.index === 1)).toMatchObject({ class: 'retry', outcome: 'unsent' })
      // The broker has e1, and e2 has not been near it.
      expect((await logOf([proxy.address], topic, [e1])).get('k')).not.toContain(e2.id)
      // Nor the next time, whether e1 is sent then or there is no time to connect.
      void proxy.swallow(1)
      const [again, waiting] = (await publisher.publish([e1, e2])).map((one) => one.outcome)
      expect(['failed', 'unknown']).toContain(again)
      expect(waiting).toBe('unsent')
      void proxy.swallow(0)
      await publishAll(publisher, [e1, e2])
      const log = (await logOf([proxy.address], topic, [e1, e2])).get('k') as string[]
      expect(log.filter((id) => id === e2.id)).toHaveLength(1)
      expect(log.indexOf(e2.id), 'e2 after the last of e1').toBeGreaterThan(log.lastIndexOf(e1.id))
      expect(log.filter((id) => id === e1.id).length, 'e1 was stored at each attempt').toBeGreaterThan(1)
      await end()
    })

    test('one batch of unknown outcome is repeated whole and in order', async () => {
      const { end, publisher, topic } = await make(4000, 3)
      const [first, second] = [kafkaPage(topic, 200, 10), kafkaPage(topic, 200, 10)]
      await publishAll(publisher, first)
      const swallowed = proxy.swallow(1)
      const unresolved = await publisher.publish(second)
      await swallowed
      expect(unresolved.map((one) => one.outcome)).toEqual(second.map(() => 'unknown'))
      await publishAll(publisher, second)
      const log = await logOf([proxy.address], topic, [...first, ...second])
      for (const [key, own] of Map.groupBy(second, (one) => String(one.key))) {
        const ids = own.map((one) => one.id)
        const stored = (log.get(key) ?? []).filter((id) => ids.includes(id))
        expect(stored.length, `copies of ${key}`).toBeGreaterThan(ids.length)
        for (let at = 0; at < stored.length; at += ids.length) expect(stored.slice(at, at + ids.length)).toEqual(ids)
      }
      await end()
    })

    test('a connection that is half open costs one deadline, and nothing is lost', async () => {
      const { end, publisher, topic } = await make(4000, 6)
      const sent = kafkaPage(topic, 300, 20)
      expect(await publisher.publish(sent)).toEqual([])
      proxy.freeze()
      const page = kafkaPage(topic, 300, 20)
      sent.push(...page)
      const began = performance.now()
      const unresolved = await publisher.publish(page)
      expect(unresolved.map((one) => one.outcome)).toEqual(page.map(() => 'unknown'))
      // Over a new connection.
      await publishAll(publisher, page)
      expect(performance.now() - began).toBeLessThan(15_000)
      expectKeyOrder(await logOf([proxy.address], topic, sent), sent)
      await end()
    })

    test('a connection that is cut while a page is on its way keeps nobody waiting', async () => {
      const { end, publisher, topic } = await make(10_000, 6)
      const sent: OutgoingMessage[] = []
      for (let round = 0; round < 8; round++) {
        const page = kafkaPage(topic, 300, 20)
        sent.push(...page)
        const swallowed = proxy.swallow(1)
        const publishing = publishAll(publisher, page)
        // The broker has stored it, and nobody was told.
        await swallowed
        proxy.cut()
        await publishing
      }
      expectKeyOrder(await logOf([proxy.address], topic, sent), sent)
      await end()
    })

    test('a slow broker is waited for: every message is stored once', async () => {
      const { end, publisher, topic } = await make(20_000, 6)
      const sent = kafkaPage(topic, 50, 20)
      expect(await publisher.publish(sent)).toEqual([])
      proxy.slow(700)
      try {
        for (let round = 0; round < 3; round++) {
          const page = kafkaPage(topic, 300, 20)
          sent.push(...page)
          expect(await publisher.publish(page)).toEqual([])
        }
      } finally {
        proxy.slow(0)
      }
      const log = await logOf([proxy.address], topic, sent)
      expect([...log.values()].flat()).toHaveLength(sent.length)
      expectKeyOrder(log, sent)
      await end()
    })

    test('a broker that is restarted is written to again within 3 s of its start', { timeout: 240_000 }, async () => {
      const { end, publisher, topic } = await make(10_000, 6)
      const sent: OutgoingMessage[] = []
      const backMs: number[] = []
      const round = async (): Promise<void> => {
        const page = kafkaPage(topic, 300, 20)
        sent.push(...page)
        await publishAll(publisher, page)
      }
      await round()
      const backAfter = async (way: 'restart' | 'kill'): Promise<number> => {
        const publishing = round()
        let upAt: Promise<number>
        if (way === 'restart') upAt = kafka.restart().then(() => performance.now())
        else {
          await kafka.kill()
          // Long enough for whatever waits longer and longer between attempts to be at its longest.
          upAt = delay(systemClock, 4000)
            .then(() => kafka.start())
            .then(() => performance.now())
        }
        await publishing
        const up = await upAt
        await round()
        return performance.now() - up
      }
      // A wait that has grown is too long each time; a machine that stands still for a moment, now and then.
      for (const way of ['restart', 'kill'] as const) {
        let ms = await backAfter(way)
        for (let again = 0; ms >= 3000 && again < 2; again++) ms = await backAfter(way)
        backMs.push(ms)
      }
      console.log(`ms from the start of the broker to the next stored page: ${backMs.map(Math.round).join(', ')}`)
      expect(Math.max(...backMs)).toBeLessThan(3000)
      expectKeyOrder(await logOf([proxy.address], topic, sent), sent)
      await end()
    })
  })
}
