import { createHash } from 'node:crypto'
import { expect, test } from 'vitest'
import { isUuid, timeOfId } from '../../src/core/ids.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

const APPEND = 'select outbox.append($1, $2, $3, $4::bytea, $5::jsonb) as id'
const KEYS = ['', 'k', 'order-1', 'Ünï', '鍵', '💧', 'a'.repeat(2048), "'; drop table outbox.record --"]

for (const version of [15, 18] as const) {
  describeWith(`postgres${version}`, `the SQL function outbox.append on PostgreSQL ${version}`, () => {
    test('puts every key into the shard that the library and any other language compute', async () => {
      const database = await createTestDatabase({ version })
      for (const key of KEYS) await database.pool.query(APPEND, ['t', key, 'x', '\\x00', '{}'])
      const client = await database.pool.connect()
      await client.query('begin')
      await createOutbox().append(
        client,
        KEYS.map((key) => ({ topic: 't', key, type: 'x', payload: key })),
      )
      await client.query('commit')
      client.release()
      const { rows } = await database.pool.query('select key, array_agg(shard) as shards from outbox.record group by 1')
      expect(rows).toHaveLength(KEYS.length)
      for (const { key, shards } of rows as { key: string; shards: number[] }[]) {
        const shard = createHash('sha256').update(key).digest().readUInt16BE(0) % 16
        expect(shards).toEqual([shard, shard])
      }
      await database.close()
    })

    test('gives ids that are uuid v7 of the current time, and spreads events without a key by them', async () => {
      const database = await createTestDatabase({ version })
      const from = Date.now()
      const { rows } = await database.pool.query(
        `select outbox.append('t', null, 'x', '\\x00')::text as id, (extract(epoch from clock_timestamp()) * 1000)::float8 as now
         from generate_series(1, 1000)`,
      )
      for (const { id, now } of rows as { id: string; now: number }[]) {
        expect(isUuid(id)).toBe(true)
        expect(id[14]).toBe('7')
        expect('89ab').toContain(id[19])
        const time = timeOfId(id) as number
        expect(Math.abs(time - from)).toBeLessThan(10_000)
        expect(time).toBeLessThanOrEqual(now)
        expect(now - time).toBeLessThan(5_000)
      }
      expect(new Set(rows.map((row: { id: string }) => row.id)).size).toBe(1000)
      const shards = await database.pool.query('select count(distinct shard)::int as n from outbox.record')
      expect(shards.rows).toEqual([{ n: 16 }])
      await database.close()
    })

    test.each([
      ['an empty topic', ['', 'k', 'x', '\\x00', '{}']],
      ['no topic', [null, 'k', 'x', '\\x00', '{}']],
      ['an empty type', ['t', 'k', '', '\\x00', '{}']],
      ['no payload', ['t', 'k', 'x', null, '{}']],
      ['a topic with a line break', ['t\n', 'k', 'x', '\\x00', '{}']],
      ['a type with a control character', ['t', 'k', 'x\u0001', '\\x00', '{}']],
      ['a key with CR', ['t', 'k\r', 'x', '\\x00', '{}']],
      ['a key of 2049 bytes', ['t', 'é'.repeat(1024) + 'x', 'x', '\\x00', '{}']],
      ['a topic of 256 bytes', ['t'.repeat(256), 'k', 'x', '\\x00', '{}']],
      ['headers that are no object', ['t', 'k', 'x', '\\x00', '["a"]']],
      ['a header that is no string', ['t', 'k', 'x', '\\x00', '{"a":1}']],
      ['a header that is null', ['t', 'k', 'x', '\\x00', '{"a":null}']],
      ['a header with LF', ['t', 'k', 'x', '\\x00', '{"a":"b\\nmillrace-id: 1"}']],
      ['a header whose name is no token', ['t', 'k', 'x', '\\x00', '{"a b":"c"}']],
      ['a header whose name ends in LF', ['t', 'k', 'x', '\\x00', '{"a\\n":"c"}']],
      ['a header without a name', ['t', 'k', 'x', '\\x00', '{"":"c"}']],
      ['a header of ours', ['t', 'k', 'x', '\\x00', '{"MillRace-Id":"c"}']],
      [
        '65 headers',
        [
          't',
          'k',
          'x',
          '\\x00',
          JSON.stringify(Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`h${i}`, '']))),
        ],
      ],
      ['1000001 bytes', ['t', 'k', 'x', Buffer.alloc(999_999), '{}']],
      ['1000001 bytes by its headers', ['t', 'k', 'x', Buffer.alloc(999_995), '{"ab":"c"}']],
    ] as [string, unknown[]][])('refuses %s, with a hint', async (_, params) => {
      const database = await createTestDatabase({ version })
      const error: unknown = await database.pool.query(APPEND, params).catch((caught: unknown) => caught)
      expect(error).toMatchObject({ code: '22023', hint: expect.stringMatching(/\w.*\.$/) as string })
      expect((await database.pool.query('select from outbox.record')).rowCount).toBe(0)
      await database.close()
    })

    test('takes an event of exactly 1000000 bytes, and null headers for none', async () => {
      const database = await createTestDatabase({ version })
      await database.pool.query(APPEND, ['t', 'k', 'x', Buffer.alloc(1_000_000 - 3 - 3), '{"ab":"c"}'])
      await database.pool.query(APPEND, ['t', 'k', 'x', '\\x', null])
      const { rows } = await database.pool.query('select headers from outbox.record order by seq')
      expect(rows).toEqual([{ headers: { ab: 'c' } }, { headers: {} }])
      await database.close()
    })

    test('works from a trigger of a business table, with an empty search_path and in a schema of another name', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      await migrate(database.pool, { schemas: { inbox: 'in', outbox: 'Shop "outbox"' } })
      await database.pool.query(
        `create table public.orders (id text primary key, total int);
         create function public.publish() returns trigger language plpgsql as $$
         begin
           perform "Shop ""outbox""".append('orders', new.id, 'order.' || lower(tg_op),
             convert_to(to_jsonb(new)::text, 'UTF8'), '{"source":"trigger"}');
           return null;
         end $$;
         create trigger publish after insert or update on public.orders for each row execute function public.publish()`,
      )
      const client = await database.pool.connect()
      await client.query("set search_path = ''")
      await client.query("insert into public.orders values ('a', 1), ('b', 2)")
      await client.query("begin; update public.orders set total = 3 where id = 'a'; rollback")
      await client.query("update public.orders set total = 4 where id = 'b'")
      const { rows } = await client.query(
        'select key, type, convert_from(payload, \'UTF8\')::jsonb as payload, headers from "Shop ""outbox""".record order by seq',
      )
      expect(rows).toEqual([
        { key: 'a', type: 'order.insert', payload: { id: 'a', total: 1 }, headers: { source: 'trigger' } },
        { key: 'b', type: 'order.insert', payload: { id: 'b', total: 2 }, headers: { source: 'trigger' } },
        { key: 'b', type: 'order.update', payload: { id: 'b', total: 4 }, headers: { source: 'trigger' } },
      ])
      client.release(true)
      await database.close()
    })

    test('append_json takes JSON as a trigger has it, backslashes and quotes included, and says so in a header', async () => {
      const database = await createTestDatabase({ version })
      await database.pool.query(
        `create table orders (id text primary key, note text);
         create function publish() returns trigger language plpgsql as $$
         begin
           perform outbox.append_json('orders', new.id, 'order.placed', to_jsonb(new));
           return null;
         end $$;
         create trigger publish after insert on orders for each row execute function publish()`,
      )
      const note = 'C:\\dir "quoted" ☃'
      await database.pool.query('insert into orders values ($1, $2)', ['o', note])
      await database.pool.query(`select outbox.append_json('t', 'k', 'x', '1', '{"content-type":"text/plain"}')`)
      const { rows } = await database.pool.query<{ payload: Buffer; headers: object }>(
        'select payload, headers from outbox.record order by seq',
      )
      expect(JSON.parse(String(rows[0]?.payload))).toEqual({ id: 'o', note })
      expect(rows.map(({ headers }) => headers)).toEqual([
        { 'content-type': 'application/json' },
        { 'content-type': 'text/plain' },
      ])
      await expect(database.pool.query(`select outbox.append_json('t', 'k', 'x', null)`)).rejects.toThrow(
        'payload is null',
      )
      await database.close()
    })

    test('a role that may only insert can use it and the library, and can read nothing back', async () => {
      const database = await createTestDatabase({ version })
      const role = `writer_${database.name}`
      await database.pool.query(
        `create role ${role}; grant usage on schema outbox to ${role}; grant insert on outbox.record to ${role}`,
      )
      const client = await database.pool.connect()
      await client.query(`begin; set local role ${role}`)
      await client.query(APPEND, ['t', 'k', 'x', '\\x00', '{}'])
      await createOutbox().append(client, { topic: 't', key: 'k', type: 'x', payload: {} })
      await client.query('commit')
      expect((await client.query('select from outbox.record')).rowCount).toBe(2)
      await client.query(`set role ${role}`)
      await expect(client.query('select from outbox.record')).rejects.toMatchObject({ code: '42501' })
      await client.query(`reset role; drop owned by ${role}; drop role ${role}`)
      client.release()
      await database.close()
    })
  })
}
