/** What a step of the polling capture costs: never more for a large table, an old transaction or a past backlog. */
import type pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import type { Delta } from '../../src/outbox-relay/capture/polling/delta.ts'
import { pageSelect, wideRowsSelect } from '../../src/outbox-relay/capture/polling/page-query.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { openRelaySessions } from '../../src/outbox-relay/sessions.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { ALL_SHARDS } from '../../src/outbox-relay/shards.ts'
import type { Sql } from '../../src/postgres/sql.ts'
import { appendSql, openTransaction } from '../support/outbox-writer.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

/** What a relay may hold: all, a half, a quarter, an eighth, one. */
const SHARES = [ALL_SHARDS, [0, 1, 2, 3, 8, 9, 10, 15], [1, 4, 9, 12], [3, 7], [5]]

/** Many records in one transaction, over the buckets of the ring as a day would spread them. */
async function fill(sql: Sql, count: number, keys = 1000): Promise<void> {
  await sql.query(
    `insert into outbox.record (shard, bucket, id, topic, key, type, payload)
     select outbox.shard_of('k' || n % $2), n % 8, gen_random_uuid(), 'orders', 'k' || n % $2, 't', '\\x01020304'
     from generate_series(1, $1::int) n`,
    [count, keys],
  )
}

interface Plan {
  readonly 'Node Type': string
  readonly 'Index Name'?: string
  readonly 'Shared Hit Blocks': number
  readonly 'Shared Read Blocks': number
  readonly Plans?: readonly Plan[]
}

function nodes(plan: Plan): Plan[] {
  return [plan, ...(plan.Plans ?? []).flatMap(nodes)]
}

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `cost on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    beforeEach(async () => void (database = await createTestDatabase({ version })))
    afterEach(() => database.close())

    const look = async (): Promise<{ snapshot: Snapshot; high: bigint }> => {
      const { rows } = await database.pool.query(
        `select pg_current_snapshot()::text as snapshot, pg_sequence_last_value('outbox.record_seq_seq') as high`,
      )
      return { snapshot: Snapshot.parse(rows[0].snapshot), high: BigInt(rows[0].high) }
    }

    const idOf = async (client: pg.Client): Promise<bigint> =>
      BigInt((await client.query('select pg_current_xact_id()::text as xid')).rows[0].xid)

    test('a page is read by bounded index scans: no sequential scan, no sort of the backlog, whatever the table holds', async () => {
      const sessions = await openRelaySessions(database.pool, 'outbox', systemClock)
      const explain = async (select: string): Promise<Plan> => {
        const { rows } = await sessions.reader.client.query(`explain (analyze, buffers, format json) ${select}`)
        return (rows[0] as { 'QUERY PLAN': [{ Plan: Plan }] })['QUERY PLAN'][0].Plan
      }
      const costs: number[] = []
      const plans: Plan[] = []
      for (const size of [1_000, 150_000]) {
        await fill(database.pool, size)
        // Late transactions to probe for, and one that stays open; none of other tests on this server.
        const base = await look()
        const late = await openTransaction(database.url)
        await appendSql(late, 'k1', 1)
        const open = await openTransaction(database.url)
        await appendSql(open, 'k2', 1)
        const [first, last] = [await idOf(late), await idOf(open)]
        const before = Snapshot.parse(`${base.snapshot.xmax}:${base.snapshot.xmax}:`)
        const during = Snapshot.parse(`${first}:${last + 1n}:${first},${last}`)
        await late.query('commit')
        await fill(database.pool, 500)
        const target = await look()
        for (const from of [
          { snapshot: Snapshot.NOTHING, floor: 0n },
          { snapshot: before, floor: base.high },
          { snapshot: during, floor: base.high },
        ]) {
          const delta: Delta = { base: from, target: { snapshot: target.snapshot, floor: 0n }, high: target.high }
          for (const shards of SHARES) {
            const plan = await explain(
              pageSelect('outbox', { delta, after: 0n, shards, limit: 100, inlineBytes: 4096 }),
            )
            const types = nodes(plan).map((node) => node['Node Type'])
            expect(types.filter((type) => /Seq Scan|Bitmap|Hash|Materialize/.test(type))).toEqual([])
            plans.push(plan)
            costs.push(plan['Shared Hit Blocks'] + plan['Shared Read Blocks'])
          }
        }
        const wide = await explain(wideRowsSelect('outbox', [1n, 5n, 900n]))
        expect(nodes(wide).map((node) => node['Node Type'])).not.toContain('Seq Scan')
        await open.query('rollback')
        await Promise.all([late.end(), open.end()])
      }
      const [small, large] = [costs.slice(0, costs.length / 2), costs.slice(costs.length / 2)]
      // 150 times the table: the trees are a level higher, no more.
      for (const [i, cost] of large.entries()) {
        expect(cost, JSON.stringify(plans[i + small.length], undefined, 1)).toBeLessThan((small[i] ?? 0) * 2 + 200)
      }
      sessions.close()
    })

    test('behind an open snapshot a page costs what it costs without one (trap 34)', async () => {
      const snapshot = await openTransaction(database.url)
      await snapshot.query('set transaction isolation level repeatable read')
      await snapshot.query('select 1')
      const broker = recordingBroker()
      const signals = new Signals()
      const relay = trackLifecycle(
        'relay',
        createRelay({ broker, capture: 'polling', postgres: database.pool, signals, pageSize: 500 }),
      )
      await relay.start()
      for (let n = 0; n < 20; n++) await fill(database.pool, 1000)
      await broker.until(20_000)
      await relay.stop()
      // The hot path only inserts: nothing of it leaves dead rows behind for the snapshot to keep.
      const { rows } = await database.pool.query(
        `select coalesce(sum(n_tup_upd + n_tup_del), 0)::int as changed from pg_stat_user_tables
         where schemaname = 'outbox' and (relname like 'record%' or relname like 'checkpoint%')`,
      )
      expect(rows[0].changed).toBe(0)
      await snapshot.query('commit')
      await snapshot.end()
    })
  })
}

describeWith('postgres18', 'after a catch-up of a million rows', () => {
  test('an idle poll is one trivial query, and the settling writes are few', { timeout: 180_000 }, async () => {
    const database = await createTestDatabase()
    for (let n = 0; n < 10; n++) await fill(database.pool, 100_000)
    const broker = recordingBroker()
    let published = 0
    let inverted = 0
    const keys = new Map<string, bigint>()
    broker.onStored = (message) => {
      published++
      const [key, seq] = [message.key ?? '', BigInt(message.seq)]
      if (seq <= (keys.get(key) ?? 0n)) inverted++
      keys.set(key, seq)
    }
    const signals = new Signals()
    const relay = trackLifecycle('relay', createRelay({ broker, capture: 'polling', postgres: database.pool, signals }))
    let writes = 0
    signals.on('checkpoint:written', () => void writes++)
    const caughtUp = broker.until(1_000_000)
    await relay.start()
    await caughtUp
    // Two settling steps at the most, then nothing but trivial looks.
    for (let steps = 0; steps < 3; steps++) await signals.next('capture:look')
    const before = writes
    for (let steps = 0; steps < 20; steps++) {
      const delta = await signals.next<Delta>('capture:look')
      // Nothing to scan. (Transactions of other tests on this server may end meanwhile, and are an index probe each.)
      expect(delta.high).toBe(delta.base.floor)
    }
    expect(writes - before).toBeLessThanOrEqual(1)
    expect(published).toBe(1_000_000)
    expect(inverted).toBe(0)
    await relay.stop()
    await database.close()
  })
})
