import { createHash, randomUUID } from 'node:crypto'
import type pg from 'pg'
import { beforeAll, afterAll, expect, test } from 'vitest'
import { newId } from '../../src/core/ids.ts'
import { Inbox, inboxKey, UNTIMED_BUCKET, type DeadLetter } from '../../src/inbox/index.ts'
import { createTestDatabase, describeWith, type TestDatabase } from '../support/services.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `the inbox on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let pool: pg.Pool
    beforeAll(async () => {
      database = await createTestDatabase({ version })
      pool = database.pool
    })
    afterAll(() => database.close())

    const inTransaction = async <T>(work: (client: pg.PoolClient) => Promise<T>, end = 'commit'): Promise<T> => {
      const client = await pool.connect()
      try {
        await client.query('begin')
        const result = await work(client)
        await client.query(end)
        return result
      } finally {
        client.release()
      }
    }
    const inboxOf = (): Inbox => new Inbox({ consumer: `consumer-${randomUUID()}` })
    const claim = (inbox: Inbox, ids: string[], end?: string): Promise<string[]> =>
      inTransaction(async (client) => [...(await inbox.claim(client, ids.map(inboxKey)))], end)

    test('tells which of many ids are new, once each, whatever their order', async () => {
      const inbox = inboxOf()
      const [a, b, c] = [newId(), newId(), newId()] as [string, string, string]
      expect((await claim(inbox, [b, a, b])).toSorted()).toEqual([a, b].toSorted())
      expect(await claim(inbox, [c, b, a])).toEqual([c])
      expect(await claim(inbox, [a])).toEqual([])
    })

    test('a claim that was rolled back never was', async () => {
      const inbox = inboxOf()
      const id = newId()
      expect(await claim(inbox, [id], 'rollback')).toEqual([id])
      expect(await claim(inbox, [id])).toEqual([id])
    })

    test('each consumer has its own memory', async () => {
      const id = newId()
      expect(await claim(inboxOf(), [id])).toEqual([id])
      expect(await claim(inboxOf(), [id])).toEqual([id])
    })

    for (const [end, expected] of [
      ['commit', 'finds a duplicate'],
      ['rollback', 'has it new'],
    ] as const) {
      test(`of two that claim an id at once the second waits for the first, and after its ${end} ${expected}`, async () => {
        const inbox = inboxOf()
        const id = newId()
        let second: Promise<string[]> | undefined
        await inTransaction(async (client) => {
          await inbox.claim(client, [inboxKey(id)])
          second = claim(inbox, [id])
          await expect
            .poll(async () => {
              const { rowCount } = await pool.query(
                `select from pg_stat_activity where datname = $1 and wait_event_type = 'Lock' and query like 'insert into%'`,
                [database.name],
              )
              return rowCount
            })
            .toBe(1)
        }, end)
        expect(await second).toEqual(end === 'commit' ? [] : [id])
      })
    }

    test('every kind of id has one row: uuid v7 in the bucket of its time, the others in the untimed one', async () => {
      const inbox = inboxOf()
      const timed = newId()
      const ids = [timed, randomUUID(), 'orders/7/1234', timed.toUpperCase(), '', '\0', 'é'.repeat(100_000)]
      expect(await claim(inbox, ids)).toHaveLength(ids.length)
      expect(await claim(inbox, ids)).toEqual([])
      const { rows } = await pool.query<{ bucket: number; id: string }>(
        'select bucket, id from inbox.message where id = any($1)',
        [ids.map((id) => inboxKey(id).id)],
      )
      expect(rows).toHaveLength(ids.length)
      for (const { bucket, id } of rows) {
        if (id === timed) expect([0, 1, 2, 3, 4, 5, 6, 7]).toContain(bucket)
        else expect(bucket).toBe(UNTIMED_BUCKET)
      }
    })

    test('an id that is no uuid is the SHA-256 of its text as a uuid v8, for ever', () => {
      const digest = createHash('sha256').update('orders/7/1234').digest('hex')
      const { id } = inboxKey('orders/7/1234')
      expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
      expect(id.slice(0, 13).replaceAll('-', '')).toBe(digest.slice(0, 12))
      expect(inboxKey('orders/7/1234')).toEqual({ bucket: UNTIMED_BUCKET, id: 'dc5e9f75-7e4c-88bf-8f25-a068f84ba9c8' })
    })

    test('claims by the unique index alone: no plan reads a partition through', async () => {
      const { rows } = await pool.query<Record<'QUERY PLAN', string>>(
        `explain insert into inbox.message (bucket, consumer, id) select m.bucket, 'c', m.id ` +
          `from unnest('{1}'::smallint[], '{${newId()}}'::uuid[]) as m (bucket, id) on conflict do nothing returning id`,
      )
      expect(rows.map((row) => row['QUERY PLAN']).join('\n')).not.toMatch(/Scan on message/)
    })

    test('a dead letter keeps everything, however hostile, and its row keeps the message out', async () => {
      const inbox = inboxOf()
      const id = `no uuid \0 ${'x'.repeat(10_000)}`
      const traceId = '0af7651916cd43dd8448eb211c80319c'
      const letter: DeadLetter = {
        attempts: 3,
        error: new Error('outer', { cause: Object.create(null) as unknown }),
        firstFailedAtMs: Date.UTC(2026, 0, 1),
        key: inboxKey(id),
        message: {
          headers: { 'a\0b': 'half \ud800', traceparent: `00-${traceId}-b7ad6b7169203331-01` },
          id,
          key: 'k\0',
          partition: 3,
          payload: Buffer.from([0, 255, 1]),
          position: 2n ** 60n,
          timeMs: 0,
          topic: 'orders',
          type: 'order.placed',
        },
      }
      expect(await inTransaction((client) => inbox.deadLetter(client, letter))).toBe(true)
      expect(await inTransaction((client) => inbox.deadLetter(client, letter))).toBe(false)
      expect(await claim(inbox, [id])).toEqual([])
      const { rows } = await pool.query<Record<string, unknown>>('select * from inbox.dead_letter where id = $1', [
        letter.key.id,
      ])
      expect(rows).toEqual([
        expect.objectContaining({
          attempts: 3,
          first_failed_at: new Date(letter.firstFailedAtMs),
          headers: { 'a\ufffdb': 'half \ufffd', traceparent: letter.message.headers['traceparent'] },
          key: 'k\ufffd',
          partition: 3,
          payload: letter.message.payload,
          position: String(2n ** 60n),
          topic: 'orders',
          trace_id: traceId,
          type: 'order.placed',
        }),
      ])
      expect(rows[0]?.['error']).toMatch(/outer/)
    })

    test('a message that was handled cannot become a dead letter', async () => {
      const inbox = inboxOf()
      const id = newId()
      await claim(inbox, [id])
      const message = { headers: {}, id, key: null, payload: null, timeMs: 0, topic: 't', type: 'x' }
      const stored = await inTransaction((client) =>
        inbox.deadLetter(client, {
          attempts: 1,
          error: 'why',
          firstFailedAtMs: 0,
          key: inboxKey(id),
          message: { ...message, partition: 0, position: 1n },
        }),
      )
      expect(stored).toBe(false)
      expect((await pool.query('select from inbox.dead_letter where id = $1', [id])).rowCount).toBe(0)
    })

    test('a database without the tables is named as such, with the command that makes them', async () => {
      const inbox = new Inbox({ consumer: 'c', schema: 'elsewhere' })
      await expect(inbox.probe(pool)).rejects.toMatchObject({
        code: 'SCHEMA_MISSING',
        message: expect.stringContaining('millrace migrate') as string,
      })
    })

    test('an effect is durable also where commits are asynchronous', async () => {
      const inbox = inboxOf()
      await inbox.probe(pool)
      expect(inbox.beginText).toBe('begin')
      await inbox.probe({
        query: async (text, params) => {
          const client = await pool.connect()
          try {
            await client.query('set synchronous_commit = off')
            return await client.query(text, params)
          } finally {
            client.release(true)
          }
        },
      })
      const client = await pool.connect()
      try {
        await client.query('set synchronous_commit = off')
        await client.query(inbox.beginText)
        expect((await client.query('show synchronous_commit')).rows).toEqual([{ synchronous_commit: 'on' }])
        await client.query('commit')
      } finally {
        client.release(true)
      }
    })
  })
}
