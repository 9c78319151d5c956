import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import type { Broker } from '../../src/brokers/broker.ts'
import { createMemoryBroker, serveMemory } from '../../src/brokers/memory/index.ts'
import { createConsumer } from '../../src/consumer/index.ts'
import { newId } from '../../src/core/ids.ts'
import { migrate } from '../../src/postgres/index.ts'
import { startPostgres } from '../../src/testing/services/index.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { createTestDatabase, describeWith, services } from '../support/services.ts'
import { brokerAt, type ChildPlan } from './consumer-child.ts'
import { byKey, EFFECT_TABLE, effects, numbered, range, writeEffect } from './consumer-effect.ts'
import { stage } from './consumer-stage.ts'

/** Stores numbered messages of 50 keys on a new topic of four partitions. */
async function publish(broker: Broker, count: number): Promise<string> {
  const topic = `crash-${randomUUID()}`
  await broker.admin.createTopic(topic, { partitions: 4 })
  const publisher = broker.publisher()
  await publisher.start()
  const batch = numbered(count, 50).map(({ key, payload }, i) => ({
    headers: {},
    id: newId(),
    key,
    payload: Buffer.from(payload),
    seq: String(i + 1),
    timeMs: Date.now(),
    topic,
    type: 'number.made',
  }))
  expect(await publisher.publish(batch)).toEqual([])
  await publisher.close()
  return topic
}

for (const kind of ['memory', 'kafka', 'nats'] as const) {
  describeWith(kind === 'memory' ? 'postgres18' : ['postgres18', kind], `a consumer that is killed, on ${kind}`, () => {
    test(
      'kill -9 between effect and commit, then another consumer: every effect once, in order per key',
      { timeout: 120_000 },
      async () => {
        const database = await createTestDatabase()
        onTestFinished(() => database.close())
        await database.pool.query(EFFECT_TABLE)
        const address = kind === 'memory' ? await servedMemory() : (services()[kind] as string)
        const broker = brokerAt(kind, address)
        onTestFinished(() => broker.close())
        const topic = await publish(broker, 2000)
        onTestFinished(() => broker.admin.deleteTopic(topic))

        const group = `group-${randomUUID()}`
        const sessionTimeoutMs = 6000
        const plan: ChildPlan = {
          address,
          broker: kind,
          databaseUrl: database.url,
          dieAfter: 20,
          group,
          sessionTimeoutMs,
          topic,
        }
        const program = fileURLToPath(new URL('consumer-child.ts', import.meta.url))
        const child = spawn(process.execPath, [program, JSON.stringify(plan)], {
          stdio: ['ignore', 'ignore', 'inherit'],
        })
        onTestFinished(() => void child.kill('SIGKILL'))
        expect(await once(child, 'exit')).toEqual([null, 'SIGKILL'])
        // A COMMIT that was sent before the kill is still carried out: only when its backends are gone is it all there.
        const backends = `select count(*)::int as n from pg_stat_activity
          where datname = current_database() and backend_type = 'client backend'`
        await expect
          .poll(async () => (await database.pool.query(backends)).rows[0].n - database.pool.totalCount, {
            interval: 20,
          })
          .toBe(0)
        const before = (await effects(database.pool)).length
        expect(before).toBeGreaterThan(0)
        expect(before).toBeLessThan(2000)

        const consumer = trackLifecycle(
          'consumer',
          createConsumer({
            broker,
            group,
            handle: (message, { tx }) => writeEffect(message, tx),
            inbox: { postgres: database.pool },
            sessionTimeoutMs,
            topics: [topic],
          }),
        )
        onTestFinished(() => consumer.stop())
        await consumer.start()
        await expect.poll(() => consumer.stats().handled, { interval: 50, timeout: 60_000 }).toBe(2000 - before)
        await consumer.stop()
        expect(consumer.stats()).toMatchObject({ deadLettered: 0 })
        expect(consumer.stats().duplicates).toBeGreaterThan(0)
        const written = await effects(database.pool)
        expect(new Set(written.map((effect) => effect.id)).size).toBe(2000)
        expect(written).toHaveLength(2000)
        for (const numbers of byKey(written).values()) expect(numbers).toEqual(range(40))
      },
    )
  })
}

async function servedMemory(): Promise<string> {
  const server = await serveMemory(createMemoryBroker())
  onTestFinished(() => server.close())
  return server.url
}

describeWith('private postgres18', 'a consumer whose Postgres is restarted', () => {
  for (const mode of ['fast', 'immediate'] as const) {
    test(
      `${mode} restarts in mid-stream lose nothing, double nothing and burn no attempt`,
      { timeout: 120_000 },
      async () => {
        const server = await startPostgres()
        onTestFinished(() => server.dispose())
        const pool = new pg.Pool({ connectionString: server.url })
        // A restart ends idle connections, too.
        pool.on('error', () => {})
        onTestFinished(() => pool.end())
        await migrate(pool)
        await pool.query(EFFECT_TABLE)
        const attempts = new Set<number>()
        let restarting: Promise<void> | undefined
        const database = { close: () => Promise.resolve(), name: 'postgres', pool, url: server.url }
        const { broker, consumer, errors, finished } = await stage(
          {
            handle: async (message, { attempt, tx }) => {
              attempts.add(attempt)
              await writeEffect(message, tx)
              // One transaction is open all the while, however long the server takes to go.
              const held = restarting
              restarting = undefined
              await held
            },
            retry: { attempts: 1 },
          },
          database,
        )
        const total = 12_000
        broker.deliver(0, numbered(total, 50))
        for (const share of [0.2, 0.5]) {
          await finished(total * share)
          const before = errors.length
          restarting = server.restart(mode)
          await restarting
          await expect.poll(() => errors.length).toBeGreaterThan(before)
        }
        await finished(total)
        expect([...attempts]).toEqual([1])
        expect(consumer.stats().deadLettered).toBe(0)
        const written = await effects(pool)
        expect(written).toHaveLength(total)
        for (const numbers of byKey(written).values()) expect(numbers).toEqual(range(total / 50))
        await consumer.stop()
      },
    )
  }
})
