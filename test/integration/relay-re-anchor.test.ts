/** An outbox that came as rows is refused, and `millrace checkpoint re-anchor` makes it this cluster's own. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import type pg from 'pg'
import { expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { CheckpointLog } from '../../src/outbox-relay/checkpoint-log.ts'
import { reportCheckpoints } from '../../src/outbox-relay/checkpoint-report.ts'
import { Lease } from '../../src/outbox-relay/lease.ts'
import { reAnchor } from '../../src/outbox-relay/re-anchor.ts'
import { appendSql, openTransaction } from '../support/outbox-writer.ts'
import { burnTransactionIds, copyOutbox } from '../support/outbox-copy.ts'
import { byKey, outboxDatabase, outboxServer, refusalOf, relayInto, upTo } from '../support/outbox-server.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { runCommand } from './cli-process.ts'

/** Appends n from … to of the keys a and b, and publishes all but the last `unpublished` of each. */
async function fill(pool: pg.Pool, count: number, unpublished: number): Promise<void> {
  for (let n = 1; n <= count - unpublished; n++) for (const key of ['a', 'b']) await appendSql(pool, key, n)
  const { relay, broker } = await relayInto(pool)
  await broker.until(2 * (count - unpublished))
  await relay.stop()
  for (let n = count - unpublished + 1; n <= count; n++) for (const key of ['a', 'b']) await appendSql(pool, key, n)
}

/** What a user does: looks, sees that it is refused and by which command to go on, tries it, runs it. */
async function goOnByCommand(url: string, pool: pg.Pool, code: string, records: number): Promise<void> {
  const error = await refusalOf(pool)
  expect(error).toMatchObject({ code })
  const command = /run: millrace (checkpoint re-anchor)\b/.exec(error.message)?.[1]?.split(' ') ?? []
  const state = `select md5(string_agg(r::text, '' order by seq)) as r, (select count(*) from outbox.checkpoint) as c,
                        pg_sequence_last_value('outbox.record_seq_seq') as s from outbox.record r`
  const before = (await pool.query(state)).rows
  const args = ['--database-url', url]

  const shown = await runCommand(['checkpoint', 'show', ...args])
  expect(shown).toMatchObject({ code: 1, err: '' })
  expect(shown.out).toContain('millrace checkpoint re-anchor')

  const tried = await runCommand([...command, ...args, '--dry-run'])
  expect(tried.code).toBe(0)
  expect(tried.err).toContain(`${records} of ${records} records would be published again`)
  expect(tried.out).toMatch(/^begin;\n[^]*commit;\n$/)
  const unasked = await runCommand([...command, ...args])
  expect(unasked).toMatchObject({ code: 1, out: '' })
  expect(unasked.err).toContain('--yes')
  expect((await pool.query(state)).rows, 'nothing has changed yet').toEqual(before)

  const done = await runCommand([...command, ...args, '--yes'])
  expect(done).toMatchObject({ code: 0, err: '' })
  expect(done.out).toContain(`done: ${records} of ${records} records are published again`)
  const sound = await runCommand(['checkpoint', 'show', ...args, '--json'])
  expect(JSON.parse(sound.out)).toMatchObject({ sound: true })
  expect(sound.code).toBe(0)
}

for (const version of [18, 15] as const) {
  describeWith(`private postgres${version}`, `an outbox that came as rows, on PostgreSQL ${version}`, () => {
    test(
      'dump and restore: refused below, above and beside the old ids; the command publishes all, in order',
      { timeout: 180_000 },
      async () => {
        const { server: old, pool: source } = await outboxServer(version)
        await burnTransactionIds(source, 3000)
        await fill(source, 30, 5)
        const { server } = await outboxServer(version)
        for (const [where, cluster] of [
          ['below', server],
          ['above', server],
          ['beside', old],
        ] as const) {
          const { url, pool } = await outboxDatabase(cluster, `restored_${where}`)
          if (where === 'above') await burnTransactionIds(pool, 20_000)
          await copyOutbox(source, pool)
          const xid = 'select (max(tx) >= pg_snapshot_xmax(pg_current_snapshot())) as foreign from outbox.record'
          expect(
            (
              await pool.query(`select max(tx::text::bigint)::text::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) as foreign
          from outbox.record`)
            ).rows[0].foreign,
            xid,
          ).toBe(where === 'below')
          await goOnByCommand(url, pool, 'CHECKPOINT_UNCERTIFIED', 60)
          const { relay, broker } = await relayInto(pool)
          for (let n = 31; n <= 33; n++) for (const key of ['a', 'b']) await appendSql(pool, key, n)
          await broker.until(66)
          await relay.stop()
          expect(byKey(broker), where).toEqual({ a: upTo(33), b: upTo(33) })
        }
      },
    )

    test(
      'logical replication: refused, the sequence too; what was appended on top keeps its order behind the copy',
      { timeout: 180_000 },
      async () => {
        const { server: old, pool: source } = await outboxServer(version)
        const { server, pool } = await outboxServer(version)
        await fill(source, 20, 0)
        await pool.query('truncate outbox.lease, outbox.migration')
        await source.query('create publication everything for tables in schema outbox')
        const from = `host=127.0.0.1 port=${old.port} user=postgres dbname=postgres`
        await pool.query(`create subscription copy connection '${from}' publication everything`)
        await expect
          .poll(
            async () =>
              (await pool.query(`select every(srsubstate = 'r') as ready from pg_subscription_rel`)).rows[0].ready,
            { timeout: 60_000 },
          )
          .toBe(true)
        // Now they arrive one by one, checkpoints as well.
        const { relay: first, broker: before } = await relayInto(source)
        for (let n = 21; n <= 40; n++) for (const key of ['a', 'b']) await appendSql(source, key, n)
        await before.until(40)
        await first.stop()
        const newest = 'select max(n)::int as n from outbox.checkpoint'
        const there = (await source.query(newest)).rows[0].n
        await expect.poll(async () => (await pool.query(newest)).rows[0].n, { timeout: 60_000 }).toBe(there)
        await pool.query('drop subscription copy')
        // What went long ago leaves numbers free, which the sequence gives out here a second time.
        await pool.query('delete from outbox.record where seq <= 4')

        for (let n = 41; n <= 50; n++) for (const key of ['a', 'b']) await appendSql(pool, key, n)
        await goOnByCommand(server.url, pool, 'SEQUENCE_ALTERED', 96)
        for (let n = 51; n <= 53; n++) for (const key of ['a', 'b']) await appendSql(pool, key, n)
        const { relay, broker } = await relayInto(pool, { pageSize: 7 })
        await broker.until(102)
        await relay.stop()
        expect(byKey(broker)).toEqual({ a: upTo(53, 3), b: upTo(53, 3) })
      },
    )

    test(
      'a row whose new xmin happens to be the old id is refused too: the cluster is another',
      { timeout: 120_000 },
      async () => {
        const { pool: source } = await outboxServer(version)
        await fill(source, 5, 0)
        const { pool } = await outboxServer(version)
        await burnTransactionIds(pool, 5000)
        await copyOutbox(source, pool)
        await pool.query('update outbox.checkpoint set writer = pg_current_xact_id()')
        const { rows } = await pool.query('select count(*)::int as n from outbox.checkpoint where xmin = writer::xid')
        expect(rows[0].n).toBeGreaterThan(0)
        const error = await refusalOf(pool)
        expect(error).toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
        const { groups } = await reportCheckpoints(pool)
        expect(groups[0]).toMatchObject({ certified: false, reason: expect.stringContaining('written in the cluster') })
      },
    )
  })

  describeWith(`postgres${version}`, `re-anchoring on PostgreSQL ${version}`, () => {
    test('is refused while a relay holds shards, by name, and changes nothing', async () => {
      const database = await createTestDatabase({ version })
      const { pool, url } = database
      await fill(pool, 5, 0)
      const { relay } = await relayInto(pool)
      await expect.poll(() => relay.stats().state).toBe('relaying')
      const holder = (await pool.query('select distinct holder from outbox.lease')).rows[0].holder
      const refused = await runCommand(['checkpoint', 're-anchor', '--yes', '--database-url', url])
      expect(refused).toMatchObject({ code: 1, out: '' })
      expect(refused.err).toContain(holder)
      const shown = JSON.parse((await runCommand(['checkpoint', 'show', '--json', '--database-url', url])).out)
      expect(shown).toMatchObject({ sound: true, groups: [{ owner: holder }] })
      await relay.stop()
      const { relay: next, broker } = await relayInto(pool)
      await appendSql(pool, 'a', 6)
      await broker.until(1)
      await next.stop()
      expect(byKey(broker)).toEqual({ a: [6] })
      await database.close()
    })

    test('fences a relay that stood still: it writes no checkpoint of before', async () => {
      const database = await createTestDatabase({ version })
      const { pool } = database
      await fill(pool, 5, 0)
      const owner = await pool.connect()
      const lease = await Lease.acquire(owner, { clock: systemClock, holder: 'asleep', schema: 'outbox', ttlMs: 1 })
      if (lease === undefined) throw new Error('no lease')
      const log = new CheckpointLog(owner, 'outbox', lease)
      const [loaded] = await log.load()
      if (loaded === undefined) throw new Error('no checkpoint')
      await pool.query('select pg_sleep(0.01)')
      expect(await reAnchor(pool)).toMatchObject({ done: true, records: 10, again: 10 })
      await expect(log.write(loaded.checkpoint)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      expect((await pool.query('select from outbox.checkpoint')).rowCount).toBe(0)
      owner.release(true)
      await database.close()
    })

    test('waits for no lock longer than it may', async () => {
      const database = await createTestDatabase({ version })
      const { pool, url } = database
      await fill(pool, 5, 0)
      const other = await openTransaction(url)
      await other.query('select from outbox.lease where shard = 3 for update')
      await expect(reAnchor(pool, { lockTimeoutMs: 50 })).rejects.toMatchObject({ code: 'CHECKPOINT_IN_USE' })
      await other.end()
      await reAnchor(pool)
      await database.close()
    })

    test(
      'from a time on: only what is newer is published again, and whatever commits later',
      { timeout: 120_000 },
      async () => {
        const source = await createTestDatabase({ version })
        await fill(source.pool, 10, 0)
        await source.pool.query('select pg_sleep(0.05)')
        const from = new Date((await source.pool.query('select clock_timestamp() as now')).rows[0].now as Date)
        await source.pool.query('select pg_sleep(0.05)')
        for (let n = 11; n <= 15; n++) for (const key of ['a', 'b']) await appendSql(source.pool, key, n)
        const database = await createTestDatabase({ version })
        const { url, pool } = database
        await copyOutbox(source.pool, pool)
        // Ids that this cluster has not reached, as in one that is younger than the old one, and will reach.
        await pool.query(`update outbox.record
          set tx = (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 5000)::text::xid8`)
        const open = await openTransaction(url)
        await appendSql(open, 'late', 1)
        const done = await runCommand([
          'checkpoint',
          're-anchor',
          '--yes',
          '--from',
          from.toISOString(),
          '--database-url',
          url,
        ])
        expect(done).toMatchObject({ code: 0, err: '' })
        expect(done.out).toContain('10 of 30 records are published again')
        await burnTransactionIds(pool, 8000)
        const { relay, broker } = await relayInto(pool)
        await broker.until(10)
        await open.query('commit')
        await appendSql(pool, 'a', 16)
        await broker.until(12)
        await relay.stop()
        expect(byKey(broker)).toEqual({ a: upTo(16, 11), b: upTo(15, 11), late: [1] })
        await open.end()
        await database.close()
        await source.close()
      },
    )

    test('the statements in the documents do it by hand', async () => {
      const guide = await readFile(path.resolve(import.meta.dirname, '../../docs/guarantees.md'), 'utf8')
      const statements = /```sql\n(begin;[^`]*delete from outbox.checkpoint;[^`]*commit;\n)```/.exec(guide)?.[1] ?? ''
      expect(statements).not.toBe('')
      const source = await createTestDatabase({ version })
      await fill(source.pool, 5, 0)
      const database = await createTestDatabase({ version })
      const { pool } = database
      await copyOutbox(source.pool, pool)
      await pool.query(`update outbox.record set tx = (tx::text::bigint + 1000000000)::text::xid8`)
      expect(await refusalOf(pool)).toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
      await pool.query(statements)
      const { relay, broker } = await relayInto(pool)
      await broker.until(10)
      await relay.stop()
      expect(byKey(broker)).toEqual({ a: upTo(5), b: upTo(5) })
      await database.close()
      await source.close()
    })

    test('the SQL of a dry run does the same by itself', async () => {
      const database = await createTestDatabase({ version })
      const { pool } = database
      await fill(pool, 5, 0)
      const { sql, done } = await reAnchor(pool, { dryRun: true })
      expect(done).toBe(false)
      await pool.query(sql)
      const { relay, broker } = await relayInto(pool)
      await broker.until(10)
      await relay.stop()
      expect(byKey(broker)).toEqual({ a: upTo(5), b: upTo(5) })
      await database.close()
    })

    test(
      'a sequence that was set back below what is there is refused at the start as well',
      { timeout: 120_000 },
      async () => {
        const database = await createTestDatabase({ version })
        const { pool, url } = database
        await fill(pool, 5, 0)
        await pool.query(`select setval('outbox.record_seq_seq', 4)`)
        for (let n = 6; n <= 8; n++) for (const key of ['a', 'b']) await appendSql(pool, key, n)
        await pool.query(`select setval('outbox.record_seq_seq', 9)`)
        await goOnByCommand(url, pool, 'SEQUENCE_ALTERED', 16)
        const { relay, broker } = await relayInto(pool, { pageSize: 1 })
        await broker.until(16)
        await relay.stop()
        expect(byKey(broker)).toEqual({ a: upTo(8), b: upTo(8) })
        await database.close()
      },
    )
  })
}
