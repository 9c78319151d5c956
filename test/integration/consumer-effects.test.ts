import { sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { expect, test } from 'vitest'
import { newId } from '../../src/core/ids.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { describeWith } from '../support/services.ts'
import { byKey, effects, numbered, range, writeEffect } from './consumer-effect.ts'
import { stage } from './consumer-stage.ts'

describeWith('postgres18', 'the effect of a message', () => {
  test('happens once, however often and wherever the message is delivered', async () => {
    const { broker, consumer, database, finished } = await stage()
    broker.assign(1)
    const first = broker.deliver(0, numbered(300, 7))
    await finished(300)
    // Again on the same partition, on another, and twice within one hand-over.
    const copies = first.map(({ id, key, payload }) => ({ id, key, payload: String(payload) }))
    broker.deliver(0, copies)
    broker.deliver(1, [...copies.slice(0, 50), ...copies.slice(0, 50)])
    const id = newId()
    broker.deliver(1, [{ id }, { id }, { id }])
    await finished(703)
    expect(consumer.stats()).toMatchObject({ deadLettered: 0, duplicates: 402, handled: 301, received: 703 })
    const written = await effects(database.pool)
    expect(written).toHaveLength(301)
    expect(new Set(written.map((effect) => effect.id)).size).toBe(301)
  })

  test('comes in the order of its key, with many keys at once and many in one transaction', async () => {
    const { broker, database, finished } = await stage()
    broker.deliver(0, numbered(3000, 13))
    await finished(3000)
    for (const [key, numbers] of byKey(await effects(database.pool))) {
      expect(numbers, `${key}`).toEqual(range(numbers.length))
    }
    const { rows } = await database.pool.query<{ n: number }>('select count(distinct xmin::text)::int as n from effect')
    expect(rows[0]?.n).toBeLessThan(600)
  })

  test('a single message runs at once, in a transaction of its own', async () => {
    const { broker, database, finished } = await stage()
    for (let i = 1; i <= 5; i++) {
      broker.deliver(0, [{ key: 'k' }])
      await finished(i)
    }
    const { rows } = await database.pool.query<{ n: number }>('select count(distinct xmin::text)::int as n from effect')
    expect(rows[0]?.n).toBe(5)
  })

  test('may be written with drizzle and may append to the outbox, all in one transaction', async () => {
    const outbox = createOutbox()
    const { broker, database, errors, finished } = await stage({
      handle: async (message, { attempt, tx }) => {
        await drizzle(tx).execute(sql`insert into effect (id, key) values (${message.id}, ${message.key})`)
        await outbox.append(tx, { key: 'k', payload: {}, topic: 'next', type: 'effect.made' })
        if (attempt === 1) throw new Error('once more')
      },
    })
    broker.deliver(0, [{ key: 'a' }])
    await finished(1)
    expect(errors).toHaveLength(1)
    expect(await effects(database.pool)).toHaveLength(1)
    const { rows } = await database.pool.query(
      `select from inbox.message m join effect e on e.xmin::text = m.xmin::text join outbox.record r on r.xmin::text = m.xmin::text`,
    )
    expect(rows).toHaveLength(1)
  })

  test('is not lost when the handler swallows the error of a statement and Postgres answers COMMIT with ROLLBACK', async () => {
    const { broker, consumer, database, errors, finished } = await stage({
      handle: async (message, { attempt, tx }) => {
        await writeEffect(message, tx)
        if (attempt === 1) await tx.query('select 1 / 0').catch(() => {})
      },
    })
    broker.deliver(0, [{ key: 'a' }])
    await finished(1)
    expect(errors).toEqual([expect.objectContaining({ code: 'EFFECT_ROLLED_BACK' })])
    expect(await effects(database.pool)).toHaveLength(1)
    expect(consumer.stats()).toMatchObject({ handled: 1, retried: 1 })
  })

  test('a handler that tries to commit by itself fails, and commits nothing', async () => {
    const { broker, database, errors, finished } = await stage({
      handle: async (message, { tx }) => {
        await writeEffect(message, tx)
        await tx.query('commit')
      },
    })
    broker.deliver(0, [{ key: 'a' }])
    await finished(1)
    expect(errors).toHaveLength(3)
    expect(errors[0]).toMatchObject({ code: 'EFFECT_TRANSACTION_MISUSED' })
    expect(await effects(database.pool)).toEqual([])
  })

  test('a query that was not awaited never lands in the transaction of another message', async () => {
    let late: Promise<PromiseSettledResult<void>[]> | undefined
    const { broker, database, finished } = await stage({
      handle: async (message, { tx }) => {
        await writeEffect(message, tx)
        if (message.key === 'a') {
          // Only after the handler has ended.
          const ended = new Promise((resolve) => setImmediate(resolve))
          late = Promise.allSettled([ended.then(() => writeEffect(message, tx))])
        }
      },
    })
    broker.deliver(0, [{ key: 'a' }, { key: 'b' }, { key: 'b' }])
    await finished(3)
    expect(await late).toMatchObject([{ reason: { code: 'EFFECT_TRANSACTION_MISUSED' } }])
    expect(await effects(database.pool)).toHaveLength(3)
  })
})
