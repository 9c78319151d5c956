/** The polling capture against real PostgreSQL: the ways in which a reader of a table loses, repeats or reorders. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Signals } from '../../src/core/signals.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `polling on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let broker: RecordingBroker
    let signals: Signals

    beforeEach(async () => {
      database = await createTestDatabase({ version })
      broker = recordingBroker()
      signals = new Signals()
    })
    afterEach(() => database.close())

    const relayOf = (options: Partial<RelayOptions> = {}): Relay =>
      trackLifecycle('relay', createRelay({ broker, capture: 'polling', postgres: database.pool, signals, ...options }))
    const numbers = (): number[] => broker.stored.map((message) => read(message.payload).n)
    /** Resolves when the capture has looked at the table once more, from now on, and found nothing to publish. */
    const idle = async (): Promise<void> => {
      await signals.next('capture:look')
      await signals.next('capture:look')
    }

    test('a record that took a low seq and commits late is published (trap 1)', async () => {
      const relay = relayOf()
      await relay.start()
      const late = await openTransaction(database.url)
      await appendSql(late, 'a', 1)
      await appendSql(database.pool, 'b', 2)
      await broker.until(1)
      await idle()
      expect(numbers()).toEqual([2])
      await late.query('commit')
      await broker.until(2)
      expect(numbers()).toEqual([2, 1])
      await late.end()
      await relay.stop()
    })

    test('a transaction that stays open delays nobody else, and its own records come when it commits (trap 2)', async () => {
      const long = await openTransaction(database.url)
      await appendSql(long, 'long', 0)
      const relay = relayOf()
      await relay.start()
      for (let n = 1; n <= 50; n++) await appendSql(database.pool, 'k', n)
      await broker.until(50)
      await long.query('rollback')
      await idle()
      expect(numbers()).toEqual(Array.from({ length: 50 }, (_, i) => i + 1))
      await long.end()
      await relay.stop()
    })

    test('along a key the order is that of commits and not of transaction ids (trap 3)', async () => {
      await database.pool.query('create table aggregate (id text primary key, n int)')
      await database.pool.query(`insert into aggregate values ('k', 0)`)
      const older = await openTransaction(database.url)
      await older.query('select pg_current_xact_id()')
      const younger = await openTransaction(database.url)
      await younger.query(`update aggregate set n = 1 where id = 'k'`)
      await appendSql(younger, 'k', 1)
      const update = older.query(`update aggregate set n = 2 where id = 'k'`)
      await younger.query('commit')
      await update
      await appendSql(older, 'k', 2)
      await older.query('commit')
      const relay = relayOf()
      await relay.start()
      await broker.until(2)
      expect(numbers()).toEqual([1, 2])
      await Promise.all([older.end(), younger.end()])
      await relay.stop()
    })

    test('three relays at once do not race each other for the records of a key (trap 4)', async () => {
      const relays = [relayOf({ pageSize: 3 }), relayOf({ pageSize: 3 }), relayOf({ pageSize: 3 })]
      for (let n = 1; n <= 60; n++) await appendSql(database.pool, 'k', n)
      await Promise.all(relays.map((relay) => relay.start()))
      for (let n = 61; n <= 120; n++) await appendSql(database.pool, 'k', n)
      await broker.until(120)
      await Promise.all(relays.map((relay) => relay.stop()))
      expect(numbers()).toEqual(Array.from({ length: 120 }, (_, i) => i + 1))
    })

    test('the order is that of seq, wherever the rows lie in the table (trap 5)', async () => {
      for (let n = 1; n <= 100; n++) await appendSql(database.pool, 'k', n)
      // An update moves a row to the end of its table, as a restore or a rewrite may.
      await database.pool.query(`update outbox.record set topic = topic where seq % 3 = 1`)
      await database.pool.query(`update outbox.record set topic = topic where seq < 20`)
      const { rows } = await database.pool.query('select seq::int from outbox.record')
      const physical = rows.map((row) => row.seq)
      expect(physical).not.toEqual(physical.toSorted((a, b) => a - b))
      const relay = relayOf({ pageSize: 7 })
      await relay.start()
      await broker.until(100)
      await relay.stop()
      expect(numbers()).toEqual(Array.from({ length: 100 }, (_, i) => i + 1))
    })

    test('what a subtransaction rolled back is not published, what is around it is', async () => {
      const client = await openTransaction(database.url)
      await appendSql(client, 'k', 1)
      await client.query('savepoint s')
      await appendSql(client, 'k', 2)
      await client.query('rollback to s')
      await appendSql(client, 'k', 3)
      await client.query('commit')
      const relay = relayOf()
      await relay.start()
      await broker.until(2)
      await idle()
      expect(numbers()).toEqual([1, 3])
      await client.end()
      await relay.stop()
    })

    test('a relay goes on where the last one stopped, and repeats nothing after a clean stop', async () => {
      const first = relayOf()
      await first.start()
      for (let n = 1; n <= 10; n++) await appendSql(database.pool, 'k', n)
      await broker.until(10)
      await first.stop()
      for (let n = 11; n <= 20; n++) await appendSql(database.pool, 'k', n)
      const second = relayOf()
      await second.start()
      await broker.until(20)
      await idle()
      expect(numbers()).toEqual(Array.from({ length: 20 }, (_, i) => i + 1))
      await second.stop()
    })

    test('records commit, abort and wait while the relay is not there, and it finds exactly the committed ones', async () => {
      const prior = relayOf()
      await prior.start()
      await prior.stop()
      const open = await openTransaction(database.url)
      await appendSql(open, 'open', 1)
      const aborted = await openTransaction(database.url)
      await appendSql(aborted, 'aborted', 2)
      await appendSql(database.pool, 'k', 3)
      await aborted.query('rollback')
      const relay = relayOf()
      await relay.start()
      await broker.until(1)
      await open.query('commit')
      await broker.until(2)
      await idle()
      expect(numbers()).toEqual([3, 1])
      await Promise.all([open.end(), aborted.end()])
      await relay.stop()
    })

    test('pages are bounded in count and in bytes, and a record larger than a page is a page', async () => {
      const sizes: { count: number; bytes: number }[] = []
      broker.answer = (batch) => {
        sizes.push({ count: batch.length, bytes: batch.reduce((sum, message) => sum + message.payload.length, 0) })
        return []
      }
      const client = await openTransaction(database.url)
      const lengths = [
        ...Array<number>(30).fill(100),
        200_000,
        ...Array<number>(30).fill(9000),
        50,
        300_000,
        300_000,
        1,
      ]
      for (const [n, length] of lengths.entries()) {
        const payload = Buffer.alloc(length, n)
        await client.query(`select outbox.append('orders', 'k', 't', $1)`, [payload])
      }
      await client.query('commit')
      const relay = relayOf({ pageSize: 20, pageBytes: 64 * 1024 })
      await relay.start()
      await broker.until(lengths.length)
      expect(broker.stored.map((message) => message.payload.length)).toEqual(lengths)
      for (const [n, message] of broker.stored.entries())
        expect(message.payload.every((byte) => byte === n % 256)).toBe(true)
      for (const { count, bytes } of sizes) {
        expect(count).toBeLessThanOrEqual(20)
        if (count > 1) expect(bytes).toBeLessThanOrEqual(64 * 1024)
      }
      await client.end()
      await relay.stop()
    })

    test('every field of a record arrives as it was appended', async () => {
      const relay = relayOf()
      await relay.start()
      const headers = { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', note: 'grüße "%" \\ ☃' }
      const { rows } = await database.pool.query(`select outbox.append('t', 'schlüssel ☃', 'typ', $1, $2) as id`, [
        Buffer.from([0, 255, 10, 13, 92, 128]),
        headers,
      ])
      const before = Date.now()
      await database.pool.query(`select outbox.append('t', null, 'typ', '')`)
      await broker.until(2)
      const [first, second] = broker.stored
      expect(first).toMatchObject({ id: rows[0].id, topic: 't', key: 'schlüssel ☃', type: 'typ', seq: '1' })
      expect({ ...first?.headers }).toEqual(headers)
      expect(first?.payload).toEqual(Buffer.from([0, 255, 10, 13, 92, 128]))
      expect(Math.abs((first?.timeMs ?? 0) - before)).toBeLessThan(10_000)
      expect(second).toMatchObject({ key: null, payload: Buffer.alloc(0), seq: '2' })
      await relay.stop()
    })
  })
}
