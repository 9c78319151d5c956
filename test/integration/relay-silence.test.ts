/** A network that falls silent without closing a connection: nothing may wait for it for ever (trap 27). */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Relay, createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'
import { type SilentProxy, silentProxy } from '../support/silent-proxy.ts'

describeWith('postgres18', 'a relay behind a network that falls silent', () => {
  let database: TestDatabase
  let proxy: SilentProxy
  let pool: pg.Pool
  let broker: RecordingBroker
  let relay: Relay

  beforeEach(async () => {
    database = await createTestDatabase()
    proxy = await silentProxy(new URL(database.url))
    pool = new pg.Pool({ connectionString: proxy.url })
    pool.on('error', () => {})
    broker = recordingBroker()
    relay = trackLifecycle('relay', createRelay({ broker, capture: 'polling', postgres: pool, leaseTtlMs: 3000 }))
    await relay.start()
    await appendSql(database.pool, 'k', 1)
    await broker.until(1)
  })
  afterEach(async () => {
    await relay.stop()
    await proxy.close()
    await pool.end()
    await database.close()
  })

  const goesOn = async (): Promise<void> => {
    await appendSql(database.pool, 'k', 2)
    await broker.until(2)
    expect([...new Set(broker.stored.map((message) => read(message.payload).n))]).toEqual([1, 2])
    expect(relay.stats().failures).toBeGreaterThan(0)
  }

  test('both connections: the term ends by the time the lease runs out', async () => {
    proxy.newcomers('refused')
    proxy.silence()
    while (relay.stats().failures === 0) await database.pool.query('select pg_sleep(0.02)')
    proxy.newcomers('served')
    await goesOn()
  })

  test('the reading one alone, while the other keeps the lease', async () => {
    const { rows } = await database.pool.query<{ client_port: number }>(
      `select client_port from pg_stat_activity
       where datname = current_database() and application_name = 'millrace-relay-reader'`,
    )
    proxy.silence(rows[0]?.client_port)
    await goesOn()
  })

  test('new connections, while a term opens', async () => {
    proxy.newcomers('silent')
    proxy.cut()
    while (relay.stats().failures === 0) await database.pool.query('select pg_sleep(0.02)')
    // Long enough for the next term to be waiting in the middle of its opening.
    await database.pool.query('select pg_sleep(0.5)')
    proxy.newcomers('served')
    await goesOn()
  })
})

describeWith('postgres18', 'a pool with one connection', () => {
  test('is told that the relay needs two', async () => {
    const database = await createTestDatabase()
    const pool = new pg.Pool({ connectionString: database.url, max: 1 })
    pool.on('error', () => {})
    const relay = trackLifecycle('relay', createRelay({ broker: recordingBroker(), postgres: pool }))
    await expect(relay.start()).rejects.toThrow(/no second connection.*max/)
    await relay.stop().catch(() => {})
    await pool.end()
    await database.close()
  })
})
