/** Private servers with an outbox, for tests that crash, promote, restore and copy them. */
import pg from 'pg'
import { onTestFinished } from 'vitest'
import { type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import { type PostgresServer, type PostgresVersion, startPostgres } from '../../src/testing/services/index.ts'
import { track, trackLifecycle } from './leaks.ts'
import { read } from './outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from './recording-broker.ts'
import { within } from './services.ts'

/** Disposes it when the test is over. */
export function disposed<T extends { dispose(): Promise<void> }>(name: string, server: T): T {
  const dispose = (): Promise<void> => server.dispose()
  const release = track(name, dispose)
  onTestFinished(async () => {
    await dispose()
    release()
  })
  return server
}

/** A pool that survives its server, and ends with the test. */
export function poolOf(url: string, options: pg.PoolConfig = {}): pg.Pool {
  const pool = new pg.Pool({ ...options, connectionString: url })
  pool.on('error', () => {})
  onTestFinished(async () => {
    if (!pool.ending) await within(pool.end(), 5000)
  })
  return pool
}

/** A private server with a migrated outbox. */
export async function outboxServer(
  version: PostgresVersion,
  settings: Record<string, string> = {},
): Promise<{ server: PostgresServer; pool: pg.Pool }> {
  const server = disposed('PostgreSQL', await startPostgres({ version, settings }))
  const pool = poolOf(server.url)
  await migrate(pool)
  return { server, pool }
}

/** Another database of the server, with a migrated outbox. */
export async function outboxDatabase(server: PostgresServer, name: string): Promise<{ url: string; pool: pg.Pool }> {
  const admin = poolOf(server.url)
  await admin.query(`create database ${name} template template0`)
  const url = server.url.replace(/postgres$/, name)
  const pool = poolOf(url)
  await migrate(pool)
  return { url, pool }
}

/** Starts a relay, which polls unless it is told otherwise, into a broker of its own. */
export async function relayInto(
  pool: pg.Pool,
  options: Partial<RelayOptions> = {},
): Promise<{ relay: ReturnType<typeof createRelay>; broker: RecordingBroker }> {
  const broker = recordingBroker()
  const relay = trackLifecycle('relay', createRelay({ broker, capture: 'polling', postgres: pool, ...options }))
  await relay.start()
  return { relay, broker }
}

/** What a relay says that must not start. */
export async function refusalOf(pool: pg.Pool): Promise<Error & { code?: string }> {
  const relay = trackLifecycle('relay', createRelay({ broker: recordingBroker(), capture: 'polling', postgres: pool }))
  relay.start().catch(() => {})
  let accepted!: ReturnType<typeof setTimeout>
  const works = new Promise<Error>((resolve) => {
    accepted = setTimeout(() => resolve(relay.stop().then(() => new Error('the relay was not refused'))), 60_000)
  })
  const refused = relay.stopped.then(
    () => new Error('the relay stopped'),
    (error: unknown) => error as Error,
  )
  return Promise.race([refused, works]).finally(() => clearTimeout(accepted))
}

/** What was published of each key, each event once, in the order of its first appearance. */
export function byKey(broker: RecordingBroker): Record<string, number[]> {
  const keys: Record<string, number[]> = {}
  const seen = new Set<string>()
  for (const message of broker.stored) {
    if (seen.has(message.id)) continue
    seen.add(message.id)
    const { key, n } = read(message.payload)
    ;(keys[key] ??= []).push(n)
  }
  return keys
}

/** 1 … n. */
export function upTo(n: number, from = 1): number[] {
  return Array.from({ length: n - from + 1 }, (_, i) => from + i)
}
