import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { startKafkaCluster, type KafkaCluster } from '../../src/testing/services/index.ts'
import { expectKeyOrder, kafkaPage, logOf, publishAll } from '../support/kafka-log.ts'
import { track } from '../support/leaks.ts'
import { describeWith } from '../support/services.ts'

describeWith('private kafka', 'a Kafka cluster of three nodes of which one dies', () => {
  let cluster: KafkaCluster
  let release: () => void
  beforeAll(async () => {
    cluster = await startKafkaCluster()
    release = track('a Kafka cluster', () => cluster.dispose())
  }, 150_000)
  afterAll(async () => {
    await cluster.dispose()
    release()
  })

  test.each([
    ['kafkajs', kafkajs],
    ['platformatic', platformatic],
  ] as const)(
    'loses nothing under %s, keeps the order of keys, and is written to again within 5 s',
    { timeout: 150_000 },
    async (_, adapter) => {
      const broker = adapter({ brokers: cluster.brokers })
      const topic = `topic-${randomUUID()}`
      await broker.admin.createTopic(topic, { partitions: 6 })
      await Promise.all([0, 1, 2, 3, 4, 5].map((partition) => cluster.inSync(topic, partition)))
      const publisher = broker.publisher()
      await publisher.start()
      const sent: OutgoingMessage[] = []
      const gaps: { readonly ledMs: number; readonly storedMs: number }[] = []
      const round = async (): Promise<void> => {
        const page = kafkaPage(topic, 200, 40)
        sent.push(...page)
        await publishAll(publisher, page)
      }
      const ledAgain = async (): Promise<void> => {
        for (let partition = 0; partition < 6; partition++) await cluster.leaderOf(topic, partition)
      }
      // Each node in its turn: one of them leads the quorum of the controllers too.
      for (const victim of cluster.nodes) {
        for (let i = 0; i < 5; i++) await round()
        const publishing = round()
        await victim.kill()
        const died = performance.now()
        const led = ledAgain().then(() => performance.now() - died)
        await publishing
        await round()
        const storedMs = performance.now() - died
        gaps.push({ ledMs: await led, storedMs })
        for (let i = 0; i < 5; i++) await round()
        await victim.start()
        await cluster.whole()
        await Promise.all([0, 1, 2, 3, 4, 5].map((partition) => cluster.inSync(topic, partition)))
      }
      await publisher.close()
      await broker.close()
      const told = gaps.map((one) => `${Math.round(one.storedMs)} (leaders ${Math.round(one.ledMs)})`).join(', ')
      console.log(`ms from the death of a node to the next stored page: ${told}`)
      for (const { ledMs, storedMs } of gaps) {
        // A machine that is so busy that the cluster alone takes as long leaves us a moment after it.
        expect(storedMs, told).toBeLessThan(Math.max(5000, ledMs + 2500))
      }
      expectKeyOrder(await logOf(cluster.brokers, topic, sent), sent)
    },
  )
})
