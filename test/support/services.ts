import pg from 'pg'
import { describe, expect, inject, test } from 'vitest'
import { quoteIdentifier } from '../../src/postgres/sql.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import {
  remedyFor,
  type PostgresVersion,
  type ServiceAddresses,
  type ServiceName,
} from '../../src/testing/services/index.ts'
import { track } from './leaks.ts'

/** Where the services of this run are; one that is missing is left out. */
export function services(): ServiceAddresses {
  return inject('services')
}

/** A service of the run, or the means to start a private one, for tests that stop and kill it. */
export type Need = ServiceName | `private ${ServiceName}`

/**
 * Runs the suite when every service it needs is there. Otherwise it is counted and printed as skipped, or, with
 * REQUIRE_REAL=1, fails with what to do about it.
 */
export function describeWith(needs: Need | readonly Need[], name: string, suite: () => void): void {
  const missing = [needs].flat().filter((need) => !isMet(need))
  if (missing.length === 0) {
    describe(name, suite)
  } else if (process.env.REQUIRE_REAL === '1') {
    describe(name, () => {
      test(`needs ${missing.join(', ')}`, () => {
        expect.unreachable(missing.map((need) => `${need} is missing: ${remedyFor(serviceOf(need))}`).join('\n'))
      })
    })
  } else {
    console.log(`skipped for want of ${missing.join(', ')}: ${name}`)
    describe.skip(name, suite)
  }
}

function isMet(need: Need): boolean {
  const service = serviceOf(need)
  return service === need ? services()[service] !== undefined : inject('startable').includes(service)
}

function serviceOf(need: Need): ServiceName {
  return need.replace('private ', '') as ServiceName
}

/** A database of one test's own. */
export interface TestDatabase {
  readonly name: string
  readonly pool: pg.Pool
  readonly url: string
  /** Closes the pool and drops the database, whoever is still connected. */
  close(): Promise<void>
}

let databases = 0

/** Makes a fresh database: empty, or with the migrations applied. The leak guard fails a test that does not close it. */
export async function createTestDatabase(
  options: { readonly migrate?: boolean; readonly version?: PostgresVersion } = {},
): Promise<TestDatabase> {
  const version = options.version ?? 18
  const server = services()[`postgres${version}`]
  if (server === undefined) throw new Error(`No PostgreSQL ${version}: ${remedyFor(`postgres${version}`)}`)
  const name = `test_${inject('runId')}_${process.pid}_${++databases}`
  const template = options.migrate === false ? 'template0' : await migratedTemplate(server)
  await asAdmin(server, (admin) =>
    admin.query(`create database ${quoteIdentifier(name)} template ${quoteIdentifier(template)}`),
  )
  const url = urlOf(server, name)
  const pool = new pg.Pool({ connectionString: url })
  // A server that is stopped on purpose ends idle connections; whoever needs them learns it from the next query.
  pool.on('error', () => {})
  let closing: Promise<void> | undefined
  const close = (): Promise<void> => (closing ??= end())
  const release = track(`database ${name}`, close)
  const end = async (): Promise<void> => {
    release()
    // After a failure somebody may still hold connections of it, and loses them with the database.
    await within(pool.end(), CLOSE_TIMEOUT_MS)
    await asAdmin(server, (admin) => dropDatabase(admin, name))
  }
  return { close, name, pool, url }
}

const CLOSE_TIMEOUT_MS = 5000

/** Waits for it, but not for ever: a test that failed must end, and say why. */
export async function within(promise: Promise<unknown>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, timeoutMs)))
  promise.catch(() => {})
  await Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/**
 * Waits, for a while, until the server has let go of what was ended: pool.end() is answered before, and a connection that is
 * ended by force meanwhile emits an error that nobody listens to any more.
 */
async function quiet(admin: pg.Client, name: string): Promise<void> {
  for (const until = performance.now() + CLOSE_TIMEOUT_MS; performance.now() < until;) {
    const { rowCount } = await admin.query('select from pg_stat_activity where datname = $1', [name])
    if (rowCount === 0) return
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** An idle replication slot goes with its database; one that is read keeps it until its reader has gone. */
async function dropDatabase(admin: pg.Client, name: string): Promise<void> {
  for (let tries = 1; ; tries++) {
    await admin.query(
      'select pg_terminate_backend(active_pid) from pg_replication_slots where database = $1 and active_pid is not null',
      [name],
    )
    if (tries === 1) await quiet(admin, name)
    try {
      await admin.query(`drop database if exists ${quoteIdentifier(name)} with (force)`)
      return
    } catch (error) {
      if ((error as { code?: string }).code !== OBJECT_IN_USE || tries === 200) throw error
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }
}

const OBJECT_IN_USE = '55006'

const templates = new Map<string, Promise<string>>()

/** The database to copy: migrated once per run and server, by whichever worker asks first. */
function migratedTemplate(server: string): Promise<string> {
  let template = templates.get(server)
  if (template === undefined) templates.set(server, (template = makeTemplate(server)))
  return template
}

async function makeTemplate(server: string): Promise<string> {
  const name = `template_${inject('runId')}`
  await asAdmin(server, async (admin) => {
    await admin.query("select pg_advisory_lock(hashtext('millrace test template'))")
    const { rowCount } = await admin.query('select from pg_database where datname = $1', [name])
    if (rowCount !== 0) return
    const draft = `${name}_draft`
    await admin.query(`drop database if exists ${quoteIdentifier(draft)} with (force)`)
    await admin.query(`create database ${quoteIdentifier(draft)} template template0`)
    const pool = new pg.Pool({ connectionString: urlOf(server, draft), max: 1 })
    pool.on('error', () => {})
    try {
      await migrate(pool)
    } finally {
      await pool.end()
    }
    await admin.query(`alter database ${quoteIdentifier(draft)} rename to ${quoteIdentifier(name)}`)
  })
  return name
}

async function asAdmin(server: string, work: (admin: pg.Client) => Promise<unknown>): Promise<void> {
  const admin = new pg.Client({ connectionString: server })
  await admin.connect()
  try {
    await work(admin)
  } finally {
    await admin.end()
  }
}

function urlOf(server: string, database: string): string {
  const url = new URL(server)
  url.pathname = `/${database}`
  return url.href
}
