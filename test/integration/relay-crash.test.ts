/** What a crash, a restart and a standby do to the polling capture, against PostgreSQL servers of the test's own. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { Signals } from '../../src/core/signals.ts'
import type { Checkpoint } from '../../src/outbox-relay/checkpoint-log.ts'
import { type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import type { PgPool } from '../../src/postgres/sql.ts'
import { type PostgresServer, startPostgres } from '../../src/testing/services/index.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { track, trackLifecycle } from '../support/leaks.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import { describeWith } from '../support/services.ts'

async function started(
  version: 15 | 18,
  settings: Record<string, string> = {},
): Promise<{ server: PostgresServer; pool: pg.Pool }> {
  const server = await startPostgres({ version, settings })
  const pool = new pg.Pool({ connectionString: server.url })
  pool.on('error', () => {})
  const dispose = async (): Promise<void> => {
    // A relay that a failure left at work gives its connections back when the server has gone.
    const ended = pool.end()
    await server.dispose()
    await ended
  }
  const release = track('PostgreSQL', dispose)
  onTestFinished(async () => {
    await dispose()
    release()
  })
  await migrate(pool)
  return { server, pool }
}

for (const version of [18, 15] as const) {
  describeWith(`private postgres${version}`, `crashes of PostgreSQL ${version}`, () => {
    const setUp = async (pool: pg.Pool, options: Partial<RelayOptions> = {}) => {
      const broker = recordingBroker()
      const signals = new Signals()
      const relay = trackLifecycle(
        'relay',
        createRelay({ broker, capture: 'polling', postgres: pool, signals, ...options }),
      )
      await relay.start()
      return { broker, signals, relay }
    }

    test('a row that a crash takes back is not published, and the event that gets its transaction id is (trap 38)', async () => {
      // Nobody but the relay writes the WAL: the asynchronous commit is lost unless the relay makes it durable.
      const { server, pool } = await started(version, {
        autovacuum: 'off',
        bgwriter_lru_maxpages: '0',
        checkpoint_timeout: '1h',
        wal_writer_delay: '10s',
      })
      await stopWalWriter(pool)
      // The relay comes back only when it may: the id that the crash took back must go to the event that follows.
      let gate = Promise.resolve()
      const postgres: PgPool = {
        query: (text, params) => pool.query(text, params),
        connect: () => gate.then(() => pool.connect()),
      }
      // Neither is it the renewal of a lease.
      const { broker, signals, relay } = await setUp(pool, { leaseTtlMs: 600_000, postgres })
      // It writes after an event until the floor of its base has passed it, and not again for ten seconds.
      const settled = signals.next<Checkpoint>('checkpoint:written', ({ base, open }) => !open && base.floor === 1n)
      await appendSql(pool, 'k', 0)
      await broker.until(1)
      await settled

      let goOn!: () => void
      const held = new Promise<void>((resolve) => (goOn = resolve))
      const seen = new Promise<void>((resolve) => {
        const off = signals.on('capture:open', () => {
          off()
          resolve()
          return held
        })
      })
      const lost = await openTransaction(server.url)
      await lost.query('set local synchronous_commit = off')
      const { rows: before } = await lost.query('select pg_current_xact_id()::text as xid')
      await appendSql(lost, 'k', 1)
      await lost.query('commit')
      await seen
      let openGate!: () => void
      gate = new Promise<void>((resolve) => (openGate = resolve))
      await server.kill()
      goOn()
      await server.start()

      const { rows } = await retried(() => pool.query('select count(*)::int as n from outbox.record'))
      expect(rows[0].n, 'the crash took the row back; without that the test shows nothing').toBe(1)
      const next = await openTransaction(server.url)
      const { rows: after } = await next.query('select pg_current_xact_id()::text as xid')
      expect(after[0].xid, 'the transaction id is used again; without that the test shows nothing').toBe(before[0].xid)
      await appendSql(next, 'k', 2)
      await next.query('commit')
      openGate()
      await broker.until(2)
      expect(broker.stored.map((message) => read(message.payload).n)).toEqual([0, 2])
      await next.end()
      await lost.end()
      await relay.stop()
    })

    for (const mode of ['fast', 'immediate'] as const) {
      test(`a ${mode} restart of the server in the middle of a stream loses nothing and inverts no key`, async () => {
        const { server, pool } = await started(version)
        const { broker, relay } = await setUp(pool, { pageSize: 50 })
        let next = 1
        const write = async (count: number): Promise<void> => {
          for (const until = next + count; next < until; next++) {
            await retried(() => appendOnce(pool, next))
          }
        }
        await write(300)
        await broker.until(1)
        const writing = write(300)
        await server.restart(mode)
        await writing
        await broker.until(600)
        await relay.stop()
        const first = firstAppearances(broker.stored.map((message) => read(message.payload).n))
        expect(first).toEqual(Array.from({ length: 600 }, (_, i) => i + 1))
        expect(relay.stats().failures).toBeGreaterThan(0)
      })
    }

    test('a standby is refused, with the reason (trap 40)', async () => {
      const { server, pool } = await started(version)
      await server.stop('fast')
      // Recovery without a primary to follow: a hot standby that never ends.
      await writeFile(join(server.dataDir, 'standby.signal'), '')
      await server.start()
      const relay = createRelay({ broker: recordingBroker(), postgres: pool })
      await expect(relay.start()).rejects.toMatchObject({
        code: 'STANDBY_REFUSED',
        message: expect.stringContaining('primary'),
      })
      await relay.stop().catch(() => {})
    })
  })
}

/** Makes the WAL writer stand still while it sleeps: awake it may hold the lock that every commit takes. */
async function stopWalWriter(pool: pg.Pool): Promise<void> {
  const asleep = `select pid from pg_stat_activity where backend_type = 'walwriter' and wait_event = 'WalWriterMain'`
  for (;;) {
    const { rows } = await pool.query<{ pid: number }>(asleep)
    const pid = rows[0]?.pid
    if (pid !== undefined) {
      process.kill(pid, 'SIGSTOP')
      if ((await pool.query(asleep)).rows[0]?.pid === pid) return
      process.kill(pid, 'SIGCONT')
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Appends event n unless an earlier try, whose answer was lost, did. */
async function appendOnce(pool: pg.Pool, n: number): Promise<void> {
  const client = await pool.connect()
  const ignore = (): void => {}
  client.on('error', ignore)
  let broken = true
  try {
    const { rows } = await client.query(`select from outbox.record where payload = $1`, [body(n)])
    if (rows.length === 0) await client.query(`select outbox.append('orders', 'k', 't', $1)`, [body(n)])
    broken = false
  } finally {
    client.removeListener('error', ignore)
    client.release(broken)
  }
}

function body(n: number): Buffer {
  return Buffer.from(JSON.stringify({ key: 'k', n }))
}

/** Runs it until the server is back. */
async function retried<T>(run: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + 60_000
  for (;;) {
    try {
      return await run()
    } catch (error) {
      if (performance.now() > deadline) throw error
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}

function firstAppearances(numbers: readonly number[]): number[] {
  return [...new Set(numbers)]
}
