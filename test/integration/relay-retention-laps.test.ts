/** The ring comes round while records flow: windows of a second, so that a lap takes eight. */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import { keepRetention } from '../../src/outbox-relay/retention/index.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import {
  ALL,
  checkpointHere,
  countIn,
  rememberingLogger,
  retentionOf,
  shortenWindows,
} from '../support/retention-stage.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

const RETENTION_MS = 1000

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `the ring in motion on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let pool: pg.Pool
    beforeEach(async () => {
      database = await createTestDatabase({ version })
      pool = database.pool
      await shortenWindows(pool, 1)
    })
    afterEach(() => database.close())

    const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
    const rowsLeft = async (): Promise<number> =>
      (await pool.query('select count(*)::int as n from outbox.record')).rows[0].n
    const firstOf = (broker: RecordingBroker, key: string): number[] => {
      const seen = broker.stored.map((message) => read(message.payload)).filter((one) => one.key === key)
      return [...new Set(seen.map(({ n }) => n))]
    }

    test('records flow, transactions abort and stay open, three sweep without a pause: nothing is lost', async () => {
      const broker = recordingBroker()
      const relay = trackLifecycle('relay', createRelay({ broker, postgres: pool }))
      await relay.start()
      const stopping = new AbortController()
      const errors: Error[] = []
      const sweepers = [1, 2, 3].map(() => retentionOf(pool, { retentionMs: RETENTION_MS }))
      const keeping = sweepers.map((retention) =>
        keepRetention(
          retention,
          { clock: systemClock, intervalMs: 20, logger: rememberingLogger(), onError: (error) => errors.push(error) },
          stopping.signal,
        ),
      )
      const until = performance.now() + 10_000
      const committed = new Map<string, number[]>()
      const write = async (key: string, openMs: number): Promise<void> => {
        const done: number[] = []
        committed.set(key, done)
        const client = new pg.Client({ connectionString: database.url })
        await client.connect()
        for (let n = 0; performance.now() < until; n++) {
          await client.query('begin')
          // Some have their record in the bucket while it falls due, some insert into it afterwards.
          if (n % 2 === 0) await client.query('select pg_current_xact_id()')
          else await appendSql(client, key, n)
          await sleep(openMs)
          if (n % 2 === 0) await appendSql(client, key, n)
          if (n % 5 === 4) {
            await client.query('rollback')
          } else {
            await client.query('commit')
            done.push(n)
          }
        }
        await client.end()
      }
      const quick = [1, 2, 3, 4].map((n) => write(`quick ${n}`, 1))
      const slow = [1500, 2300, 3100, 3700].map((ms) => write(`slow ${ms}`, ms))
      await Promise.all([...quick, ...slow])
      const total = [...committed.values()].reduce((sum, done) => sum + done.length, 0)
      await broker.until(total)
      while ((await rowsLeft()) > 0) await sleep(50)
      stopping.abort()
      await Promise.all(keeping)
      await relay.stop()
      for (const [key, done] of committed) expect(firstOf(broker, key), key).toEqual(done)
      expect(new Set(broker.stored.map(({ id }) => id)).size).toBe(total)
      expect(errors).toEqual([])
      expect(relay.stats().failures).toBe(0)
      // 8 windows at least were written, besides what the slow ones brought back.
      expect(sweepers.reduce((sum, retention) => sum + retention.stats().freed, 0)).toBeGreaterThanOrEqual(8)
    })

    test('a bucket that is not free takes the next lap as well: no insert fails, an alarm is given, nothing is lost', async () => {
      const logger = rememberingLogger()
      const retention = retentionOf(pool, { logger, retentionMs: RETENTION_MS })
      const secondsSql = `select date_part('epoch', now())::int as now`
      const client = await openTransaction(database.url)
      await client.query('rollback')
      await appendSql(client, 'k', 0)
      let written = 1
      const first = `select bucket::int, date_part('epoch', now())::int as begun from outbox.record`
      const { begun, bucket } = (await pool.query(first)).rows[0] as { begun: number; bucket: number }
      // Nobody relays for a lap and some more.
      for (let now = begun; now <= begun + 10; now = (await pool.query(secondsSql)).rows[0].now as number) {
        await appendSql(client, 'k', written++)
        const report = await retention.sweep()
        expect(report.buckets.filter(({ state }) => state === 'freed')).toEqual([])
        await sleep(100)
      }
      await client.end()
      expect(await rowsLeft()).toBe(written)
      const { rows: used } = await pool.query('select distinct bucket from outbox.record')
      const told = logger.lines.filter(({ fields, level }) => fields.bucket === bucket && level !== 'debug')
      expect(told.map(({ level }) => level)).toContain('error')
      expect(told[0]?.fields).toMatchObject({ state: 'unpublished', shards: [...Array(16).keys()] })
      expect(told.filter(({ text }) => text.includes('the ring has come round to it'))).toHaveLength(1)
      const broker = recordingBroker()
      const relay = trackLifecycle('relay', createRelay({ broker, postgres: pool }))
      await relay.start()
      await broker.until(written)
      while ((await rowsLeft()) > 0) {
        await retention.sweep()
        await sleep(50)
      }
      await relay.stop()
      expect(firstOf(broker, 'k')).toEqual(Array.from({ length: written }, (_, n) => n))
      expect(retention.stats().freed).toBeGreaterThanOrEqual(used.length)
    })

    test('the age is asked again under the lock: a sweep that stood still until the next lap empties nothing', async () => {
      await pool.query(
        `insert into outbox.record (bucket, shard, id, topic, key, type, payload)
         select n, 0, outbox.new_id(), 'orders', 'k', 'x', '' from generate_series(0, 7) n`,
      )
      await checkpointHere(pool, ALL)
      const signals = new Signals()
      let held: number | undefined
      signals.on('retention:reclaim', async (bucket: number) => {
        held ??= bucket
        if (held !== bucket) return
        const currentSql = `select (date_part('epoch', now())::int % 8) = $1 as current`
        while (!(await pool.query(currentSql, [bucket])).rows[0].current) await sleep(20)
      })
      // Long enough for what comes after the wait to be done before the bucket is due again.
      const { buckets } = await retentionOf(pool, { retentionMs: 4 * RETENTION_MS, signals }).sweep()
      expect(buckets[held as number]?.state).toBe('changed')
      expect(await countIn(pool, held as number)).toBe(1)
    })

    test('a bucket of two laps is kept until the newer one is old enough', async () => {
      const broker = recordingBroker()
      const relay = trackLifecycle('relay', createRelay({ broker, postgres: pool }))
      await relay.start()
      const nowIn = async (): Promise<{ now: number; bucket: number }> =>
        (await pool.query(`select date_part('epoch', now())::int as now, date_part('epoch', now())::int % 8 as bucket`))
          .rows[0]
      const first = await nowIn()
      await pool.query(
        `insert into outbox.record (bucket, shard, id, topic, key, type, payload)
         values ($1, 0, outbox.new_id(), 'orders', 'k', 'x', '{"key":"k","n":0}')`,
        [first.bucket],
      )
      await broker.until(1)
      // Nobody sweeps for a lap; then the bucket is written again, and both laps are published.
      while ((await nowIn()).now < first.now + 8) await sleep(20)
      await pool.query(
        `insert into outbox.record (bucket, shard, id, topic, key, type, payload)
         values ($1, 0, outbox.new_id(), 'orders', 'k', 'x', '{"key":"k","n":1}')`,
        [first.bucket],
      )
      await broker.until(2)
      const retention = retentionOf(pool, { retentionMs: 3000 })
      let freedAt: number | undefined
      while (freedAt === undefined) {
        const { buckets } = await retention.sweep()
        if (buckets[first.bucket]?.state === 'freed') freedAt = (await nowIn()).now
        else expect(await rowsLeft()).toBe(2)
        await sleep(50)
      }
      // The second lap's window is the second `first.now + 8`; it ended at + 9.
      expect(freedAt).toBeGreaterThanOrEqual(first.now + 9 + 3)
      await relay.stop()
    })
  })
}
