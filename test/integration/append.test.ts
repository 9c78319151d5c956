import type { PoolClient } from 'pg'
import { expect, test } from 'vitest'
import { timeOfId } from '../../src/core/ids.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import type { TestDatabase } from '../support/services.ts'

const event = (type: string, key: string | null = 'k') => ({ topic: 'orders', key, type, payload: { type } })

for (const version of [15, 18] as const) {
  describeWith(`postgres${version}`, `append on PostgreSQL ${version}`, () => {
    test('an event is there if and only if its transaction committed', async () => {
      await withClient(version, async (client, database) => {
        const outbox = createOutbox()
        await client.query('begin')
        await outbox.append(client, event('lost'))
        await client.query('rollback')
        await client.query('begin')
        await outbox.append(client, event('kept'))
        expect((await database.pool.query('select from outbox.record')).rowCount).toBe(0)
        await client.query('commit')
        expect(await typesOf(database)).toEqual(['kept'])
      })
    })

    test('every column is what was given, bytes untouched and hostile text included', async () => {
      await withClient(version, async (client, database) => {
        const text = `"\\{},null NULL '$1' ${'💧'} \t end\\`
        const key = `{"a,b"} \\ ' null ünï`
        const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i))
        const id = '01890a5d-ac96-774b-bcce-b302099a8057'
        const headers = { a: text, 'b-c': '', __proto__x: 'null', constructor: '{}' }
        await client.query('begin')
        const given = [
          { id: id.toUpperCase(), topic: 'null', key, type: '{}', payload: bytes, headers },
          {
            topic: text.replace('\t', ''),
            key: 'null',
            type: '""',
            payload: new Uint8Array(bytes.buffer, bytes.byteOffset + 1, 2),
          },
          { topic: 't', key: null, type: 'x', payload: new Uint8Array(0) },
          { topic: 't', type: 'x', payload: { text, list: [null, 1.5] }, headers: { 'Content-Type': 'x/y' } },
          { topic: 't', key: '', type: 'x', payload: null },
        ]
        const { ids } = await createOutbox().append(client, given)
        await client.query('commit')
        const { rows } = await database.pool.query('select * from outbox.record order by seq')
        expect(rows.map((row: { id: string }) => row.id)).toEqual(ids)
        expect(ids[0]).toBe(id)
        const json = { 'content-type': 'application/json' }
        expect(rows).toMatchObject([
          { topic: 'null', key, type: '{}', payload: bytes, headers },
          { topic: text.replace('\t', ''), key: 'null', type: '""', payload: bytes.subarray(1, 3), headers: {} },
          { topic: 't', key: null, payload: Buffer.alloc(0), headers: {} },
          {
            key: null,
            payload: Buffer.from(JSON.stringify({ text, list: [null, 1.5] })),
            headers: { 'Content-Type': 'x/y' },
          },
          { key: '', payload: Buffer.from('null'), headers: json },
        ])
        expect(Object.keys((rows[0] as { headers: object }).headers).toSorted()).toEqual(
          Object.keys(headers).toSorted(),
        )
        expect(Math.abs((timeOfId(ids[1] as string) as number) - Date.now())).toBeLessThan(10_000)
      })
    })

    test('events of several statements keep their order', async () => {
      await withClient(version, async (client, database) => {
        const types = Array.from({ length: 2_500 }, (_, n) => String(n))
        await client.query('begin')
        const { ids } = await createOutbox().append(
          client,
          types.map((type) => event(type)),
        )
        await client.query('commit')
        const { rows } = await database.pool.query('select id, type from outbox.record order by seq')
        expect(rows).toEqual(types.map((type, n) => ({ id: ids[n], type })))
      })
    })

    test('events of more bytes than a statement takes are split and all there', async () => {
      await withClient(version, async (client, database) => {
        const payload = Buffer.alloc(900_000, 1)
        await client.query('begin')
        await createOutbox().append(
          client,
          Array.from({ length: 25 }, (_, n) => ({ ...event(String(n)), payload })),
        )
        await client.query('commit')
        const { rows } = await database.pool.query(
          'select count(*)::int as n, min(octet_length(payload)), max(octet_length(payload)) from outbox.record',
        )
        expect(rows).toEqual([{ n: 25, min: 900_000, max: 900_000 }])
      })
    })

    test('the transaction id is taken before seq moves, in every form of the insert', async () => {
      await withClient(version, async (client) => {
        const inserts = [
          `select outbox.shard_of(v.k), outbox.new_id(), 't', v.k, 'x', v.p, '{}' from unnest('{a,b}'::text[], '{"",""}'::bytea[]) v(k, p)`,
          `values (1, outbox.new_id(), 't', 'k', 'x', ''::bytea, '{}'), (1, outbox.new_id(), 't', 'k', 'x', '', '{}')`,
          `values (outbox.shard_of('k'), outbox.new_id(), 't', 'k', 'x', ''::bytea, '{}')`,
        ]
        for (const insert of inserts) {
          const { rows } = await client.query<{ 'QUERY PLAN': string }>(
            `explain (verbose, costs off) insert into outbox.record (shard, id, topic, key, type, payload, headers) ${insert}`,
          )
          const output = rows.map((row) => row['QUERY PLAN']).join('\n')
          expect(output).toMatch(/Output: pg_current_xact_id\(\), nextval\(/)
          expect(output).not.toContain('shard_of(') // inlined
        }
      })
    })

    test('a pool, a client outside a transaction and one in a failed transaction write nothing', async () => {
      await withClient(version, async (client, database) => {
        const outbox = createOutbox()
        // @ts-expect-error -- a pool is refused by its type too
        await expect(outbox.append(database.pool, event('x'))).rejects.toMatchObject({
          code: 'APPEND_POOL_GIVEN',
          message: expect.stringContaining('await pool.connect()') as string,
        })
        await expect(outbox.append(client, event('x'))).rejects.toMatchObject({
          code: 'APPEND_NOT_IN_TRANSACTION',
          message: expect.stringContaining("client.query('begin')") as string,
        })
        await client.query('begin')
        await expect(client.query('select 1 / 0')).rejects.toMatchObject({ code: '22012' })
        await expect(outbox.append(client, event('x'))).rejects.toMatchObject({
          code: 'APPEND_NOT_IN_TRANSACTION',
          message: expect.stringContaining("client.query('rollback')") as string,
        })
        await client.query('rollback')
        expect(await typesOf(database)).toEqual([])
      })
    })

    test('a database that was not migrated is told as such, with the command', async () => {
      const bare = await createTestDatabase({ migrate: false, version })
      const client = await bare.pool.connect()
      await client.query('begin')
      const outbox = createOutbox({ schemas: { outbox: 'shop' } })
      await expect(outbox.append(client, { topic: 't', key: 'k', type: 'x', payload: 1 })).rejects.toMatchObject({
        code: 'SCHEMA_MISSING',
        message: expect.stringContaining("npx millrace migrate --database-url … --outbox-schema 'shop'") as string,
      })
      client.release(true)
      await bare.close()
    })

    test('a failed transaction is told as such when the database says it first', async () => {
      await withClient(version, async (client) => {
        await client.query('begin')
        await expect(client.query('select 1 / 0')).rejects.toMatchObject({ code: '22012' })
        const plain = { query: (text: string, params?: unknown[]) => client.query(text, params) }
        await expect(createOutbox().append(plain, event('x'))).rejects.toMatchObject({
          code: 'APPEND_NOT_IN_TRANSACTION',
          cause: { code: '25P02' },
        })
        await client.query('rollback')
      })
    })

    test('an invalid event among valid ones writes nothing and leaves the transaction usable', async () => {
      await withClient(version, async (client, database) => {
        const outbox = createOutbox()
        await client.query('begin')
        const append = outbox.append(client, [event('a'), { ...event('b'), key: 'nul\0' }, event('c')])
        await expect(append).rejects.toMatchObject({ code: 'APPEND_INVALID_EVENT' })
        await outbox.append(client, event('after'))
        await client.query('commit')
        expect(await typesOf(database)).toEqual(['after'])
      })
    })

    test('an append that nobody awaits still stands before the commit', async () => {
      await withClient(version, async (client, database) => {
        await client.query('begin')
        const append = createOutbox().append(client, event('x'))
        await client.query('commit')
        await append
        expect(await typesOf(database)).toEqual(['x'])
      })
    })

    test('a transaction that ends while a schema is still checking takes nothing', async () => {
      await withClient(version, async (client, database) => {
        const { promise: checked, resolve } = Promise.withResolvers<{ value: unknown }>()
        const schema = { '~standard': { version: 1, vendor: 'test', validate: () => checked } } as const
        await client.query('begin')
        const append = createOutbox({ events: { x: schema } }).append(client, { topic: 't', type: 'x', payload: {} })
        await client.query('commit')
        resolve({ value: {} })
        await expect(append).rejects.toMatchObject({ code: 'APPEND_NOT_IN_TRANSACTION' })
        expect(await typesOf(database)).toEqual([])
      })
    })
  })
}

async function withClient(
  version: 15 | 18,
  work: (client: PoolClient, database: TestDatabase) => Promise<void>,
): Promise<void> {
  const database = await createTestDatabase({ version })
  const client = await database.pool.connect()
  try {
    await work(client, database)
  } finally {
    client.release(true)
    await database.close()
  }
}

async function typesOf(database: TestDatabase): Promise<string[]> {
  const { rows } = await database.pool.query('select type from outbox.record order by seq')
  return (rows as { type: string }[]).map((row) => row.type)
}
