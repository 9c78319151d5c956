import { drizzle } from 'drizzle-orm/node-postgres'
import type { NodePgDatabase } from 'drizzle-orm/node-postgres'
import { drizzle as drizzlePostgresJs } from 'drizzle-orm/postgres-js'
import type { Knex } from 'knex'
import type { Kysely, Transaction as KyselyTrx } from 'kysely'
import type pg from 'pg'
import postgres from 'postgres'
import type { EntityManager, QueryRunner } from 'typeorm'
import { expectTypeOf, test } from 'vitest'
import { fromDrizzle } from '../../drizzle/schema.ts'
import type { Transaction } from '../../src/postgres/transaction.ts'
import type { PgClient, PgPool, Sql } from '../../src/postgres/sql.ts'
import { createOutbox } from '../../src/producer/index.ts'
import type { AppendResult, Outbox, StandardSchema } from '../../src/producer/index.ts'
import type { PrismaClient, PrismaTransactionClient } from '../support/prisma-client.ts'

interface Order {
  readonly id: string
}
declare const tx: pg.PoolClient
declare const placed: StandardSchema<Order, Order & { at: Date }>
declare const paid: StandardSchema<{ amount: number }>

/** Checked by the compiler, never run. */
function never(check: () => unknown): void {
  void check
}

test('pg and drizzle fit the ports as they are, and what is not a transaction does not', () => {
  expectTypeOf<pg.Pool>().toExtend<PgPool>()
  expectTypeOf<pg.PoolClient>().toExtend<PgClient>()
  expectTypeOf<pg.Client>().toExtend<Sql>()
  expectTypeOf<pg.PoolClient>().toExtend<Transaction>()
  expectTypeOf<pg.Client>().toExtend<Transaction>()
  expectTypeOf<Sql>().toExtend<Transaction>()
  expectTypeOf<ReturnType<typeof fromDrizzle>>().toExtend<Transaction>()
  expectTypeOf<pg.Pool>().not.toExtend<Transaction>()
  expectTypeOf<NodePgDatabase>().not.toExtend<Transaction>()
  expectTypeOf<ReturnType<typeof drizzle>>().not.toExtend<Transaction>()
  expectTypeOf<Promise<pg.PoolClient>>().not.toExtend<Transaction>()
  expectTypeOf<string>().not.toExtend<Transaction>()
  const db = drizzle.mock()
  type DrizzleTx = Parameters<Parameters<typeof db.transaction>[0]>[0]
  expectTypeOf<DrizzleTx>().toExtend<Transaction>()
  expectTypeOf<DrizzleTx>().toExtend<Parameters<typeof fromDrizzle>[0]>()
})

test('the transactions of other libraries are taken, and what hands them out is not', () => {
  expectTypeOf<KyselyTrx<{ thing: { n: number } }>>().toExtend<Transaction>()
  expectTypeOf<Kysely<{ thing: { n: number } }>>().not.toExtend<Transaction>()
  expectTypeOf<Knex.Transaction>().toExtend<Transaction>()
  expectTypeOf<Knex>().not.toExtend<Transaction>()
  expectTypeOf<postgres.TransactionSql>().toExtend<Transaction>()
  expectTypeOf<postgres.Sql>().not.toExtend<Transaction>()
  expectTypeOf<PrismaTransactionClient>().toExtend<Transaction>()
  expectTypeOf<PrismaClient>().not.toExtend<Transaction>()
  expectTypeOf<EntityManager>().toExtend<Transaction>()
  expectTypeOf<QueryRunner>().toExtend<Transaction>()
  const db = drizzlePostgresJs(postgres())
  expectTypeOf<Parameters<Parameters<typeof db.transaction>[0]>[0]>().toExtend<Transaction>()
  expectTypeOf<typeof db>().not.toExtend<Transaction>()
})

test('without a catalog any type and any payload is taken, and the rest of an event is checked', () => {
  const outbox = createOutbox()
  expectTypeOf(outbox).toEqualTypeOf<Outbox>()
  never(() => {
    expectTypeOf(outbox.append(tx, { topic: 't', type: 'x', payload: 1 })).toEqualTypeOf<Promise<AppendResult>>()
    void outbox.append(tx, [{ topic: 't', key: null, type: 'x', payload: Buffer.alloc(0), headers: { a: 'b' } }])
    // @ts-expect-error -- no topic
    void outbox.append(tx, { type: 'x', payload: 1 })
    // @ts-expect-error -- no payload
    void outbox.append(tx, { topic: 't', type: 'x' })
    // @ts-expect-error -- a key is text
    void outbox.append(tx, { topic: 't', key: 7, type: 'x', payload: 1 })
    // @ts-expect-error -- a header is text
    void outbox.append(tx, { topic: 't', type: 'x', payload: 1, headers: { a: 1 } })
  })
})

test('with a catalog the payload is that of the type, as the schema takes it', () => {
  never(() => {
    const outbox = createOutbox({ events: { 'order.paid': paid, 'order.placed': placed } })
    expectTypeOf(outbox).toExtend<Outbox<{ 'order.paid': { amount: number }; 'order.placed': Order }>>()
    void outbox.append(tx, { topic: 't', type: 'order.placed', payload: { id: 'a' } })
    void outbox.append(tx, [
      { topic: 't', type: 'order.placed', payload: { id: 'a' } },
      { topic: 't', type: 'order.paid', payload: { amount: 1 } },
    ])
    // @ts-expect-error -- the payload of another type
    void outbox.append(tx, { topic: 't', type: 'order.placed', payload: { amount: 1 } })
    // @ts-expect-error -- no such type
    void outbox.append(tx, { topic: 't', type: 'order.plcaed', payload: { id: 'a' } })
  })
})

test('types alone make a catalog too', () => {
  const outbox = createOutbox<{ 'order.placed': Order }>()
  never(() => {
    void outbox.append(tx, { topic: 't', type: 'order.placed', payload: { id: 'a' } })
    // @ts-expect-error -- not the payload of the type
    void outbox.append(tx, { topic: 't', type: 'order.placed', payload: 'a' })
  })
})
