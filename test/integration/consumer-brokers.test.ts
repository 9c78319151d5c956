import { randomUUID } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { createMemoryBroker, memory } from '../../src/brokers/memory/index.ts'
import { createConsumer, type Consumer } from '../../src/consumer/index.ts'
import { newId } from '../../src/core/ids.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { createTestDatabase, describeWith, services } from '../support/services.ts'
import { brokerAt } from './consumer-child.ts'
import { byKey, EFFECT_TABLE, effects, numbered, range, writeEffect } from './consumer-effect.ts'

const PARTITIONS = 6

for (const kind of ['memory', 'kafka', 'nats', 'platformatic'] as const) {
  const server = kind === 'platformatic' ? 'kafka' : kind === 'memory' ? undefined : kind
  describeWith(server === undefined ? 'postgres18' : ['postgres18', server], `consumers of a group, on ${kind}`, () => {
    test(
      'members join and leave under load, and every copy of a message comes too: every effect once, in order per key',
      { timeout: 120_000 },
      async () => {
        const database = await createTestDatabase()
        onTestFinished(() => database.close())
        await database.pool.query(EFFECT_TABLE)
        const host = createMemoryBroker()
        const connect = () => (server === undefined ? memory({ host }) : brokerAt(kind, services()[server] as string))
        const publishing = connect()
        onTestFinished(() => publishing.close())
        const topic = `group-${randomUUID()}`
        const group = `group-${randomUUID()}`
        await publishing.admin.createTopic(topic, { partitions: PARTITIONS })
        onTestFinished(() => publishing.admin.deleteTopic(topic))
        const publisher = publishing.publisher()
        await publisher.start()
        let seq = 0
        const publish = async (from: number, perKey: number): Promise<void> => {
          const batch = numbered(perKey * 60, 60, from).map(({ key, payload }) => ({
            headers: {},
            id: newId(),
            key,
            payload: Buffer.from(payload),
            seq: String(++seq),
            timeMs: Date.now(),
            topic,
            type: 'number.made',
          }))
          expect(await publisher.publish(batch)).toEqual([])
          // The whole batch again, as a relay does that never got the answer. JetStream drops it by itself.
          expect(await publisher.publish(batch)).toEqual([])
        }
        const join = async (): Promise<Consumer> => {
          const broker = connect()
          const consumer = trackLifecycle(
            'consumer',
            createConsumer({
              broker,
              commitIntervalMs: 100,
              group,
              handle: (message, { tx }) => writeEffect(message, tx),
              inbox: { postgres: database.pool },
              maxInFlight: 300,
              sessionTimeoutMs: 6000,
              topics: [topic],
            }),
          )
          onTestFinished(async () => {
            await consumer.stop()
            await broker.close()
          })
          await consumer.start()
          return consumer
        }
        const effectsReach = (count: number): Promise<void> =>
          expect
            .poll(
              async () =>
                (await database.pool.query<{ n: number }>('select count(*)::int as n from effect')).rows[0]?.n,
              { interval: 100, timeout: 60_000 },
            )
            .toBeGreaterThanOrEqual(count)

        const first = await join()
        await publish(0, 20)
        await effectsReach(100)
        const second = await join()
        await publish(20, 20)
        await effectsReach(1500)
        const third = await join()
        await publish(40, 20)
        await first.stop()
        await publish(60, 20)
        await effectsReach(4800)
        await publisher.close()
        await Promise.all([second.stop(), third.stop()])
        const written = await effects(database.pool)
        expect(written).toHaveLength(4800)
        expect(new Set(written.map((effect) => effect.id)).size).toBe(4800)
        for (const numbers of byKey(written).values()) expect(numbers).toEqual(range(80))
        const handled = [first, second, third].map((consumer) => consumer.stats().handled)
        expect(handled.reduce((sum, n) => sum + n)).toBe(4800)
      },
    )
  })
}
