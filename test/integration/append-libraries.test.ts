/** append in the transaction of each library that services write with: the library itself, against a real server. */
import { sql as drizzleSql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/postgres-js'
import knex from 'knex'
import { CompiledQuery, Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import postgres from 'postgres'
import { DataSource } from 'typeorm'
import { expect, test } from 'vitest'
import type { MillraceError } from '../../src/core/errors.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import type { Transaction } from '../../src/postgres/transaction.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { prismaClient } from '../support/prisma-client.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

/** A library, as its users open it. */
interface Library {
  close(): Promise<void>
  /** What hands out transactions, and is none. */
  readonly database: unknown
  /** Runs the work in a transaction. */
  transaction(work: (tx: Transaction, write: (n: number) => Promise<unknown>) => Promise<void>): Promise<unknown>
}

const WRITE = 'insert into thing values ($1)'

const LIBRARIES: Record<string, (url: string) => Promise<Library>> = {
  'drizzle on postgres.js': async (url) => {
    const client = postgres(url, { max: 2, onnotice: () => {} })
    const database = drizzle(client)
    return {
      close: () => client.end(),
      database,
      transaction: (work) =>
        database.transaction((tx) => work(tx, async (n) => tx.execute(drizzleSql`insert into thing values (${n})`))),
    }
  },
  Knex: async (url) => {
    const database = knex({ client: 'pg', connection: url, pool: { max: 2, min: 0 } })
    return {
      close: () => database.destroy(),
      database,
      transaction: (work) => database.transaction((trx) => work(trx, async (n) => trx('thing').insert({ n }))),
    }
  },
  Kysely: async (url) => {
    const pool = new pg.Pool({ connectionString: url, max: 2 })
    pool.on('error', () => {})
    const database = new Kysely<{ thing: { n: number } }>({ dialect: new PostgresDialect({ pool }) })
    return {
      close: () => database.destroy(),
      database,
      transaction: (work) =>
        database.transaction().execute((trx) => work(trx, (n) => trx.executeQuery(CompiledQuery.raw(WRITE, [n])))),
    }
  },
  'postgres.js': async (url) => {
    const database = postgres(url, { max: 2, onnotice: () => {} })
    return {
      close: () => database.end(),
      database,
      transaction: (work) => database.begin((tx) => work(tx, async (n) => tx`insert into thing values (${n})`)),
    }
  },
  Prisma: async (url) => {
    const database = prismaClient(url)
    return {
      close: () => database.$disconnect(),
      database,
      transaction: (work) => database.$transaction((tx) => work(tx, (n) => tx.$queryRawUnsafe(WRITE, n))),
    }
  },
  TypeORM: async (url) => {
    const database = await new DataSource({ type: 'postgres', url }).initialize()
    return {
      close: () => database.destroy(),
      database,
      transaction: (work) => database.transaction((manager) => work(manager, (n) => manager.query(WRITE, [n]))),
    }
  },
}

const event = (type: string) => ({ topic: 't', key: 'k', type, payload: { type } })

for (const [name, open] of Object.entries(LIBRARIES)) {
  describeWith('postgres18', `append in a transaction of ${name}`, () => {
    test('the event is there if and only if the data is', async () => {
      await using stage = await stageOf(open)
      const outbox = createOutbox()
      await stage.library.transaction(async (tx, write) => {
        await write(1)
        await outbox.append(tx, event('kept'))
        expect(await stage.types()).toEqual([])
      })
      const thrown = new Error('no')
      const lost = stage.library.transaction(async (tx, write) => {
        await write(2)
        await outbox.append(tx, [event('lost'), event('lost')])
        throw thrown
      })
      await expect(lost).rejects.toBe(thrown)
      expect(await stage.types()).toEqual(['kept'])
      expect((await stage.pool.query('select n from thing')).rows).toEqual([{ n: 1 }])
    })

    test('every column is what was given, one event or many, in schemas of odd names', async () => {
      await using stage = await stageOf(open, { inbox: 'in ? $1', outbox: `out ? $2 "x" 'y'` })
      const outbox = createOutbox({ schemas: stage.schemas })
      const text = `"\\{},null ?? \\? $1 '$2' ${'💧'} \t end\\`
      const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i))
      const given = {
        headers: { a: text, 'b-c': '', n: '17' },
        key: text,
        payload: bytes,
        topic: 'a topic?',
        type: '{}',
      }
      await stage.library.transaction(async (tx) => {
        await outbox.append(tx, given)
        await outbox.append(tx, [
          given,
          { ...given, key: null, payload: { text } },
          { ...given, payload: Buffer.alloc(0) },
        ])
      })
      const { rows } = await stage.pool.query(`select * from "out ? $2 ""x"" 'y'".record order by seq`)
      expect(rows).toMatchObject([
        given,
        given,
        {
          ...given,
          headers: { ...given.headers, 'content-type': 'application/json' },
          key: null,
          payload: Buffer.from(JSON.stringify({ text })),
        },
        { ...given, payload: Buffer.alloc(0) },
      ])
    })

    test('what hands out transactions is refused, with the fix', async () => {
      await using stage = await stageOf(open)
      const refused: MillraceError = await createOutbox()
        .append(stage.library.database as Transaction, event('x'))
        .then(
          () => expect.unreachable(),
          (error: MillraceError) => error,
        )
      expect(refused.code).toBe('APPEND_POOL_GIVEN')
      expect(refused.message).toMatch(/outbox\.append\((tx|trx|manager), event\)/)
    })

    test('a transaction that has ended takes no event', async () => {
      await using stage = await stageOf(open)
      let ended!: Transaction
      await stage.library.transaction(async (tx, write) => {
        await write(1)
        ended = tx
      })
      const late = createOutbox().append(ended, event('late'))
      await expect(late).rejects.toMatchObject({ code: 'APPEND_NOT_IN_TRANSACTION' })
      expect(await stage.types()).toEqual([])
    })

    test('a database that is not migrated, and a transaction that has failed, are told as such', async () => {
      await using stage = await stageOf(open)
      const outbox = createOutbox({ schemas: { outbox: 'nowhere' } })
      const codes: unknown[] = []
      await stage.library
        .transaction(async (tx) => {
          for (let times = 0; times < 2; times++) {
            await outbox.append(tx, event('x')).catch((error: MillraceError) => codes.push(error.code))
          }
        })
        .catch(() => {})
      expect(codes).toEqual(['SCHEMA_MISSING', 'APPEND_NOT_IN_TRANSACTION'])
    })
  })
}

async function stageOf(open: (url: string) => Promise<Library>, schemas = { inbox: 'inbox', outbox: 'outbox' }) {
  const database = await createTestDatabase({ migrate: false, version: 18 })
  await migrate(database.pool, { schemas })
  await database.pool.query('create table thing (n integer primary key)')
  const library = await open(database.url)
  return {
    library,
    pool: database.pool,
    schemas,
    types: async (): Promise<string[]> => {
      const { rows } = await database.pool.query<{ type: string }>('select type from outbox.record order by seq')
      return rows.map(({ type }) => type)
    },
    [Symbol.asyncDispose]: async () => {
      await library.close()
      await database.close()
    },
  }
}
