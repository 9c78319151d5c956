import pg from 'pg'
import { expect, expectTypeOf, test } from 'vitest'
import { memory } from '../../src/brokers/memory/index.ts'
import { createConsumer, type ConsumerOptions, type TransactionOf } from '../../src/consumer/index.ts'
import type { PgClient, PgPool } from '../../src/postgres/sql.ts'

const valid = {
  broker: memory(),
  group: 'billing',
  handle: () => {},
  inbox: { postgres: new pg.Pool() },
  topics: ['orders'],
}

test('all problems of the options come at once, each with what would be right', () => {
  const broken = {
    ...valid,
    concurency: 3,
    group: 'g'.repeat(201),
    groupSize: 0,
    inbox: {},
    retry: { attemps: 3 },
    topics: [],
  }
  const make = (): unknown => createConsumer(broken as never)
  expect(make).toThrow(expect.objectContaining({ code: 'CONFIG_INVALID' }))
  for (const part of [
    '6 problem',
    'did you mean `concurrency`',
    'group:',
    'groupSize:',
    'inbox:',
    'retry:',
    'topics:',
  ]) {
    expect(make).toThrow(part)
  }
})

test('a consumer connects to nothing before start, and may be stopped without one', async () => {
  const consumer = createConsumer(valid)
  await consumer.stop()
  await consumer.stopped
  await expect(consumer.start()).rejects.toMatchObject({ code: 'LIFECYCLE_STOPPED' })
})

test('the handler gets the client type of the pool that was given', () => {
  expectTypeOf<TransactionOf<pg.Pool>>().toEqualTypeOf<pg.PoolClient>()
  expectTypeOf<TransactionOf<PgPool>>().toEqualTypeOf<PgClient>()
  expectTypeOf<ConsumerOptions<pg.Pool>['handle']>().parameter(1).toHaveProperty('tx').toEqualTypeOf<pg.PoolClient>()
})
