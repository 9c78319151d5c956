/** A bucket of the outbox is emptied when all in it is old and published, and never before. */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Timer, systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import { type Relay, createRelay } from '../../src/outbox-relay/relay.ts'
import { keepRetention } from '../../src/outbox-relay/retention/index.ts'
import { lookInto } from '../../src/outbox-relay/retention/published.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { openTransaction, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import {
  ALL,
  appendInto,
  bucketAgo,
  checkpointHere,
  countIn,
  rememberingLogger,
  retentionOf,
  sweepUntil,
  sweptState,
} from '../support/retention-stage.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `retention on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let pool: pg.Pool
    let old: number
    let young: number
    beforeEach(async () => {
      database = await createTestDatabase({ version })
      pool = database.pool
      old = await bucketAgo(pool, 4)
      young = await bucketAgo(pool, 1)
    })
    afterEach(() => database.close())

    const relayOf = (broker: RecordingBroker): Relay => trackLifecycle('relay', createRelay({ broker, postgres: pool }))

    test('a base does not see the transaction of its own upper bound', async () => {
      await database.pool.query(
        `insert into outbox.record (tx, bucket, shard, id, topic, type, payload)
         values ('1000', 0, 0, gen_random_uuid(), 'orders', 't', '')`,
      )
      const [unseen, seen] = [Snapshot.parse('1000:1000:'), Snapshot.parse('1001:1001:')]
      const found = await lookInto(database.pool, 'outbox.record_0', [unseen, seen])
      expect([...found.unseenBy]).toEqual([unseen])
    })

    test('a bucket that is old and published is emptied, one that is young or being written is kept', async () => {
      const broker = recordingBroker()
      const relay = relayOf(broker)
      await relay.start()
      const current = await bucketAgo(pool, 0)
      for (const [n, bucket] of [old, old, young, current].entries()) await appendInto(pool, bucket, 'k', n)
      await broker.until(4)
      const logger = rememberingLogger()
      const retention = retentionOf(pool, { logger })
      await sweepUntil(retention, old, 'freed')
      expect([await countIn(pool, old), await countIn(pool, young), await countIn(pool, current)]).toEqual([0, 1, 1])
      expect((await sweptState(retention, old)).state).toBe('empty')
      expect((await sweptState(retention, young)).state).toBe('young')
      expect(retention.stats()).toMatchObject({ freed: 1, kept: [], alarms: 0, failures: 0 })
      expect(logger.lines.filter(({ level }) => level === 'info')).toMatchObject([{ fields: { bucket: old } }])
      await appendInto(pool, old, 'k', 4)
      await broker.until(5)
      await relay.stop()
      expect(broker.stored.map((message) => read(message.payload).n)).toEqual([0, 1, 2, 3, 4])
      expect(relay.stats().failures).toBe(0)
    })

    test('a relay sweeps by itself, unless it is told to leave it to others, and stops its sweeps with it', async () => {
      // The wait between two sweeps is 45 s with this clock, and is over at once.
      const setTimer = (callback: () => void, ms: number): Timer =>
        systemClock.setTimer(callback, ms === 45_000 ? 20 : ms)
      const clock = { ...systemClock, random: () => 0.5, setTimer }
      const broker = recordingBroker()
      const options = { broker, clock, postgres: pool }
      const other = trackLifecycle('relay', createRelay({ ...options, retentionMs: 0 }))
      await other.start()
      await appendInto(pool, old, 'k', 1)
      await broker.until(1)
      await pool.query('select pg_sleep(0.3)')
      expect(other.stats().retention.sweeps).toBe(0)
      const relay = trackLifecycle('relay', createRelay({ ...options, retentionMs: 8 * 3_600_000 }))
      await relay.start()
      while ((await countIn(pool, old)) > 0) await pool.query('select pg_sleep(0.02)')
      while (relay.stats().retention.freed === 0) await pool.query('select pg_sleep(0.02)')
      await Promise.all([relay.stop(), other.stop()])
      const { sweeps } = relay.stats().retention
      await pool.query('select pg_sleep(0.2)')
      expect(relay.stats().retention.sweeps).toBe(sweeps)
    })

    test('an event that is not published is kept, however old its bucket is (trap 29)', async () => {
      await checkpointHere(pool, ALL)
      await appendInto(pool, old, 'k', 1)
      const retention = retentionOf(pool)
      expect((await sweptState(retention, old)).state).toBe('unpublished')
      const broker = recordingBroker()
      const relay = relayOf(broker)
      await relay.start()
      await broker.until(1)
      await sweepUntil(retention, old, 'freed')
      await relay.stop()
    })

    test('an event of a transaction that ran while the checkpoint was taken is kept: its id is below the xmax', async () => {
      const late = await openTransaction(database.url)
      await late.query('select pg_current_xact_id()')
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      await appendInto(late, old, 'k', 2)
      await late.query('commit')
      await late.end()
      const { rows } = await pool.query(
        `select bool_and(r.tx < pg_snapshot_xmax(c.base)) as below from outbox.record r, outbox.checkpoint c`,
      )
      expect(rows[0].below).toBe(true)
      expect((await sweptState(retentionOf(pool), old)).state).toBe('unpublished')
      expect(await countIn(pool, old)).toBe(2)
    })

    test('what is committed between the look and the lock is seen under the lock (trap 37)', async () => {
      const late = await openTransaction(database.url)
      await late.query('select pg_current_xact_id()')
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      const signals = new Signals()
      const off = signals.on('retention:reclaim', async () => {
        off()
        await appendInto(pool, old, 'k', 2)
      })
      const retention = retentionOf(pool, { signals })
      expect((await sweptState(retention, old)).state).toBe('changed')
      expect(await countIn(pool, old)).toBe(2)
      // And likewise for a transaction whose id is below the xmax.
      await pool.query(`truncate outbox.record_${old}`)
      await appendInto(pool, old, 'k', 3)
      await pool.query(`truncate outbox.checkpoint`)
      await checkpointHere(pool, ALL)
      const again = signals.on('retention:reclaim', async () => {
        again()
        await appendInto(late, old, 'k', 4)
        await late.query('commit')
      })
      expect((await sweptState(retention, old)).state).toBe('changed')
      expect(await countIn(pool, old)).toBe(2)
      await late.end()
    })

    test('what is committed while the lock is waited for is seen, whatever isolation the role has by default', async () => {
      await pool.query(`alter database ${database.name} set default_transaction_isolation = 'repeatable read'`)
      const sweeping = new pg.Pool({ connectionString: database.url })
      sweeping.on('error', () => {})
      await appendInto(pool, old, 'k', 0)
      for (let n = 1, state = ''; state !== 'changed'; n++) {
        expect(n).toBeLessThan(200)
        await pool.query('truncate outbox.checkpoint')
        await checkpointHere(pool, ALL)
        const late = await openTransaction(database.url)
        await appendInto(late, old, 'k', n)
        const signals = new Signals()
        const swept = new AbortController()
        let committed: Promise<unknown> | undefined
        signals.on('retention:reclaim', () => void (committed = commitOnceWaitedFor(pool, late, swept.signal)))
        state = (await sweptState(retentionOf(sweeping, { signals }), old)).state
        swept.abort()
        await committed
        await late.end()
        // Its time was up before the commit: again.
        if (state !== 'changed') expect(state).toBe('locked')
        expect(await countIn(pool, old)).toBe(n + 1)
      }
      await sweeping.end()
    })

    test('a bucket of a transaction that has not ended is kept; its event is published, then the bucket is emptied', async () => {
      const broker = recordingBroker()
      const relay = relayOf(broker)
      await relay.start()
      await appendInto(pool, old, 'k', 1)
      await broker.until(1)
      const long = await openTransaction(database.url)
      await appendInto(long, old, 'k', 2)
      const retention = retentionOf(pool)
      await sweepUntil(retention, old, 'locked')
      await long.query('commit')
      await long.end()
      await broker.until(2)
      await sweepUntil(retention, old, 'freed')
      await relay.stop()
      expect(broker.stored.map((message) => read(message.payload).n)).toEqual([1, 2])
    })

    test('a long transaction that inserts after its bucket was emptied loses nothing, and the bucket is emptied again', async () => {
      const broker = recordingBroker()
      const relay = relayOf(broker)
      await relay.start()
      const long = await openTransaction(database.url)
      await long.query('select pg_current_xact_id()')
      await appendInto(pool, old, 'k', 1)
      await broker.until(1)
      const retention = retentionOf(pool)
      await sweepUntil(retention, old, 'freed')
      await appendInto(long, old, 'k', 2)
      expect((await sweptState(retention, old)).state).toBe('empty')
      await long.query('commit')
      await long.end()
      await broker.until(2)
      await sweepUntil(retention, old, 'freed')
      expect(retention.stats().freed).toBe(2)
      await relay.stop()
    })

    test('a shard without a checkpoint keeps the bucket, and the alarm names both', async () => {
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, '{0,1,2,4,5,6,7,8,9,10,11,12,13,14}')
      await expectKept(/shards 3, 15 have no checkpoint/, [3, 15])
      await checkpointHere(pool, '{3,15}')
      await sweepUntil(retentionOf(pool), old, 'freed')
    })

    test('a checkpoint that lags keeps the bucket: each shard is asked by its own newest row', async () => {
      await checkpointHere(pool, ALL)
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, '{0,1,2,3,4,5,6,8,9,10,11,12,13,14,15}')
      await expectKept(/the checkpoint of shard 7 has not passed all of it, written \d+ s ago/, [7])
      await checkpointHere(pool, '{7}')
      await sweepUntil(retentionOf(pool), old, 'freed')
    })

    test('an open delta publishes nothing yet: the base counts and not the target', async () => {
      await checkpointHere(pool, ALL)
      await appendInto(pool, old, 'k', 1)
      await pool.query(
        `insert into outbox.checkpoint (bucket, shards, epoch, base, base_floor, target, target_floor, high, after)
         select 0, shards, 1, base, 0, pg_current_snapshot(), 0, 1000, 0 from outbox.checkpoint`,
      )
      expect((await sweptState(retentionOf(pool), old)).state).toBe('unpublished')
    })

    test('a checkpoint that another cluster wrote frees nothing', async () => {
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      await pool.query(`update outbox.checkpoint set epoch = epoch`)
      await expectKept(/the checkpoint of shards 0, .* is of another cluster/, [...Array(16).keys()])
    })

    /** Two sweeps keep the bucket and raise one alarm. */
    async function expectKept(text: RegExp, shards: readonly number[]): Promise<void> {
      const logger = rememberingLogger()
      const errors: Error[] = []
      const retention = retentionOf(pool, { logger, onError: (error) => errors.push(error) })
      for (let n = 0; n < 3; n++) expect((await sweptState(retention, old)).state).toBe('unpublished')
      expect(await countIn(pool, old)).toBeGreaterThan(0)
      const told = logger.lines.filter(({ level }) => level === 'warn' || level === 'error')
      expect(told).toMatchObject([{ level: 'warn', fields: { bucket: old, shards, state: 'unpublished' } }])
      expect(told[0]?.text).toMatch(text)
      expect(told[0]?.text).toContain(`bucket ${old} `)
      expect(told[0]?.fields.ageMs).toBeGreaterThan(EIGHT_HOURS)
      expect(errors).toMatchObject([{ code: 'RETENTION_STALLED' }])
      expect(retention.stats()).toMatchObject({ alarms: 1, kept: [{ bucket: old, state: 'unpublished' }] })
    }

    test('while a backup holds the bucket no insert waits longer than the lock timeout, and none into other buckets', async () => {
      await appendInto(pool, old, 'k', 0)
      await checkpointHere(pool, ALL)
      const backup = await openTransaction(database.url)
      await backup.query(`lock table outbox.record_${old} in access share mode`)
      const waits = { old: 0, young: 0 }
      let sweeping = true
      const write = async (which: keyof typeof waits, bucket: number): Promise<void> => {
        const client = new pg.Client({ connectionString: database.url })
        await client.connect()
        // An insert that waits longer fails here, instead of being slow on a busy machine.
        await client.query(`set lock_timeout = '2s'`)
        while (sweeping) {
          const begun = performance.now()
          await client.query('begin')
          await appendInto(client, bucket, which, 1)
          waits[which] = Math.max(waits[which], performance.now() - begun)
          // Nothing unpublished may stay, or no sweep would ask for the lock.
          await client.query('rollback')
        }
        await client.end()
      }
      const writers = [write('old', old), write('young', young)]
      for (const writer of writers) writer.catch(() => {})
      // Each is a relay that has not met the lock before, and does not back off yet.
      for (let n = 0; n < 10; n++) expect((await sweptState(retentionOf(pool), old)).state).toBe('locked')
      // One that has met it asks again later.
      const asked: unknown[] = []
      const signals = new Signals()
      signals.on('retention:reclaim', (bucket: number) => asked.push(bucket))
      const patient = retentionOf(pool, { clock: { ...systemClock, monotonic: () => 0, random: () => 0.5 }, signals })
      for (let n = 0; n < 3; n++) expect((await sweptState(patient, old)).state).toBe('locked')
      expect(asked).toEqual([old])
      sweeping = false
      await Promise.all(writers)
      process.stdout.write(`PostgreSQL ${version}: the longest insert took ${JSON.stringify(waits)} ms\n`)
      expect(waits.old).toBeLessThan(10_000)
      await backup.query('commit')
      await backup.end()
      await checkpointHere(pool, ALL)
      await sweepUntil(retentionOf(pool), old, 'freed')
    })

    test('emptying a bucket locks that bucket alone: inserts into others pass beside it', async () => {
      const emptying = await openTransaction(database.url)
      await emptying.query(`truncate outbox.record_${old}`)
      const { rows } = await emptying.query(
        `select distinct relation::regclass::text as relation from pg_locks
         where pid = pg_backend_pid() and locktype = 'relation' and relation::regclass::text like 'outbox.%'`,
      )
      expect(rows.filter(({ relation }) => !relation.startsWith(`outbox.record_${old}`))).toEqual([])
      const writer = await pool.connect()
      await writer.query(`set lock_timeout = '5s'`)
      await appendInto(writer, young, 'k', 1)
      writer.release(true)
      await emptying.query('rollback')
      await emptying.end()
    })

    test('many sweeps at once empty a bucket once', async () => {
      for (let n = 0; n < 200; n++) await appendInto(pool, old, 'k', n)
      await checkpointHere(pool, ALL)
      const before = await fileOf(old)
      const sweepers = Array.from({ length: 6 }, () => retentionOf(pool))
      const reports = await Promise.all(sweepers.map((retention) => sweptState(retention, old)))
      const states = reports.map(({ state }) => state)
      if (!states.includes('freed')) expect(states).toContain('locked')
      await sweepUntil(retentionOf(pool), old, states.includes('freed') ? 'empty' : 'freed')
      expect(states.filter((state) => state === 'freed').length).toBeLessThanOrEqual(1)
      expect(await fileOf(old)).not.toBe(before)
    })

    test('a sweep that comes second does not empty the bucket again, and does not wait for the first', async () => {
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      const signals = new Signals()
      signals.on('retention:reclaim', async () => {
        await sweepUntil(retentionOf(pool), old, 'freed')
      })
      expect((await sweptState(retentionOf(pool, { signals }), old)).state).toBe('changed')
      await appendInto(pool, old, 'k', 2)
      await pool.query('truncate outbox.checkpoint')
      await checkpointHere(pool, ALL)
      const first = await openTransaction(database.url)
      await first.query(
        `select pg_advisory_xact_lock((${0x6d696c6c}::bigint << 32) | 'outbox.record_${old}'::regclass::oid::bigint)`,
      )
      expect((await sweptState(retentionOf(pool), old)).state).toBe('elsewhere')
      await first.query('commit')
      await first.end()
      await sweepUntil(retentionOf(pool), old, 'freed')
    })

    const fileOf = async (bucket: number): Promise<string> =>
      (await pool.query(`select pg_relation_filepath('outbox.record_${bucket}') as file`)).rows[0].file

    test('a role that may truncate the partitions and read no payload is enough', async () => {
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      const role = `retention_${database.name}`
      await pool.query(`create role ${role} login`)
      try {
        await pool.query(`grant usage on schema outbox to ${role}; grant select on outbox.checkpoint to ${role}`)
        for (let n = 0; n < 8; n++) await pool.query(`grant select (tx), truncate on outbox.record_${n} to ${role}`)
        const restricted = await restrictedPool(role)
        await sweepUntil(retentionOf(restricted), old, 'freed')
        await restricted.end()
      } finally {
        await pool.query(`drop owned by ${role}; drop role ${role}`)
      }
    })

    test('a role without the right is told which it is, and the sweeps go on', async () => {
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      const role = `powerless_${database.name}`
      await pool.query(`create role ${role} login`)
      const stopping = new AbortController()
      try {
        await pool.query(
          `grant usage on schema outbox to ${role}; grant select on all tables in schema outbox to ${role}`,
        )
        const restricted = await restrictedPool(role)
        const retention = retentionOf(restricted)
        const told = new Promise<Error>((resolve) => {
          const options = { clock: systemClock, intervalMs: 10, logger: rememberingLogger(), onError: resolve }
          void keepRetention(retention, options, stopping.signal).then(() => restricted.end())
        })
        expect(await told).toMatchObject({ code: 'RETENTION_DENIED' })
        expect((await told).message).toMatch(/grant it select on checkpoint, and select \(tx\), truncate on record_0/)
        while (retention.stats().failures < 3) await pool.query('select pg_sleep(0.02)')
        stopping.abort()
        expect(await countIn(pool, old)).toBe(1)
      } finally {
        stopping.abort()
        await pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where usename = '${role}'`)
        await pool.query(`drop owned by ${role}; drop role ${role}`)
      }
    })

    /** Connects as the superuser of the test and becomes the role. */
    async function restrictedPool(role: string): Promise<pg.Pool> {
      const url = new URL(database.url)
      url.searchParams.set('options', `-c role=${role}`)
      const restricted = new pg.Pool({ connectionString: url.href })
      restricted.on('error', () => {})
      return restricted
    }

    test("a ring that is not the migration's is left alone", async () => {
      await appendInto(pool, old, 'k', 1)
      await checkpointHere(pool, ALL)
      await pool.query('alter table outbox.record alter column bucket set default 0')
      await expect(retentionOf(pool).sweep()).rejects.toMatchObject({ code: 'RETENTION_STALLED' })
      expect(await countIn(pool, old)).toBe(1)
    })

    test('a look probes the index a few times, however full the bucket is', async () => {
      await pool.query(
        `insert into outbox.record (bucket, shard, id, topic, key, type, payload)
         select $1, n % 16, outbox.new_id(), 't', n::text, 'x', '' from generate_series(1, 20000) n`,
        [old],
      )
      await pool.query('analyze outbox.record')
      const open = await Promise.all(Array.from({ length: 5 }, () => openTransaction(database.url)))
      for (const client of open) await client.query('select pg_current_xact_id()')
      await pool.query('select pg_current_xact_id()')
      const { rows } = await pool.query('select pg_current_snapshot()::text as base')
      const client = await pool.connect()
      await client.query('set enable_seqscan = off; set enable_bitmapscan = off')
      let plan: unknown
      const explaining = {
        query: async (text: string, params?: unknown[]) => {
          const explained = await client.query(`explain (analyze, buffers, format json) ${text}`, params)
          plan = explained.rows[0]['QUERY PLAN'][0].Plan
          return client.query(text, params)
        },
      }
      const base = Snapshot.parse(rows[0].base)
      // Other tests' transactions may be among them.
      expect(base.inProgress.size).toBeGreaterThanOrEqual(5)
      const found = await lookInto(explaining, `outbox.record_${old}`, [base])
      expect(found).toEqual({ empty: false, unseenBy: new Set() })
      const { 'Shared Hit Blocks': hit, 'Shared Read Blocks': got } = plan as Record<string, number>
      expect((hit ?? 0) + (got ?? 0)).toBeLessThan(200)
      expect(JSON.stringify(plan)).not.toMatch(/Seq Scan|Hash|Merge/)
      client.release(true)
      for (const one of open) await one.end()
    })

    test('stopping does not wait for a sweep that waits', async () => {
      const holding = await openTransaction(database.url)
      await holding.query('lock table outbox.checkpoint in access exclusive mode')
      const retention = retentionOf(pool)
      const stopping = new AbortController()
      const kept = keepRetention(
        retention,
        { clock: systemClock, intervalMs: 1, logger: rememberingLogger() },
        stopping.signal,
      )
      const waiting = `select count(*)::int as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
      while ((await pool.query(waiting)).rows[0].n === 0) await pool.query('select pg_sleep(0.01)')
      const begun = performance.now()
      stopping.abort()
      await kept
      expect(performance.now() - begun).toBeLessThan(20_000)
      await holding.query('rollback')
      await holding.end()
    })
  })
}

const EIGHT_HOURS = 8 * 3_600_000

/** Commits once somebody waits for the transaction's lock, or nobody will any more. */
async function commitOnceWaitedFor(pool: pg.Pool, client: pg.Client, given: AbortSignal): Promise<void> {
  const waiting = `select count(*)::int as n from pg_locks where not granted and locktype = 'relation'
                   and database = (select oid from pg_database where datname = current_database())`
  while (!given.aborted && (await pool.query(waiting)).rows[0].n === 0);
  await client.query('commit')
}
