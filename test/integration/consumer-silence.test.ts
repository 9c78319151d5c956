/** A network to Postgres that falls silent without closing a connection: the consumer must not wait for it for ever. */
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { memory } from '../../src/brokers/memory/index.ts'
import { createConsumer } from '../../src/consumer/index.ts'
import { newId } from '../../src/core/ids.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { silentProxy } from '../support/silent-proxy.ts'
import { EFFECT_TABLE, effects, writeEffect } from './consumer-effect.ts'

describeWith('postgres18', 'a consumer whose connections fall silent', () => {
  test('gives them up, says so, and applies what comes over new ones', async () => {
    const database = await createTestDatabase()
    await database.pool.query(EFFECT_TABLE)
    const proxy = await silentProxy(new URL(database.url))
    const pool = new pg.Pool({ connectionString: proxy.url })
    // Idle connections end too when the network is cut.
    pool.on('error', () => {})
    const broker = memory()
    await broker.admin.createTopic('t', { partitions: 1 })
    const publisher = broker.publisher()
    await publisher.start()
    const publish = (seq: number) =>
      publisher.publish([
        {
          headers: {},
          id: newId(),
          key: 'k',
          payload: Buffer.from(JSON.stringify({ n: seq })),
          seq: String(seq),
          timeMs: Date.now(),
          topic: 't',
          type: 't',
        },
      ])
    const errors: string[] = []
    const consumer = createConsumer({
      broker,
      group: 'g',
      handle: (message, { tx }) => writeEffect(message, tx),
      inbox: { postgres: pool },
      onError: (error) => errors.push(error.message),
      topics: ['t'],
    })
    onTestFinished(async () => {
      proxy.cut()
      await consumer.stop({ timeoutMs: 100 })
      await pool.end()
      await proxy.close()
      await database.close()
    })
    const applied = async (): Promise<number> => (await effects(database.pool)).length
    await consumer.start()
    await publish(1)
    await expect.poll(applied, { timeout: 60_000 }).toBe(1)
    // The row is seen before the consumer has the answer to its COMMIT: that one must come through.
    await expect.poll(() => consumer.stats().handled, { timeout: 60_000 }).toBe(1)
    proxy.silence()
    await publish(2)
    await expect.poll(applied, { timeout: 60_000 }).toBe(2)
    await expect.poll(() => consumer.stats()).toMatchObject({ deadLettered: 0, handled: 2 })
    expect(errors).toContain('Postgres does not answer')
  })
})
