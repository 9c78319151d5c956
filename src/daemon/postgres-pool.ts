import type { Pool, PoolConfig } from 'pg'
import { MillraceError } from '../core/errors.ts'
import { outliveLostClients } from '../postgres/take-client.ts'
import { explainError } from './explain-error.ts'

/** A pool of the command line. */
export interface PostgresPoolOptions {
  /** How the connections are named in `pg_stat_activity`; a name in the URL goes first. */
  readonly applicationName: string
  /** Without it `pg` reads PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD itself. */
  readonly databaseUrl: string | undefined
  /** The most connections at once. */
  readonly max: number
  /** An idle connection broke; the pool goes on with a new one. */
  onError(error: Error): void
}

const CONNECT_TIMEOUT_MS = 10_000

/** True for a text that `pg` can read as the address of a database. */
export function isDatabaseUrl(text: string): boolean {
  return /^postgres(ql)?:\/\//.test(text) && URL.canParse(text)
}

/** Makes the pool, which connects to nothing yet. */
export async function createPostgresPool(options: PostgresPoolOptions): Promise<Pool> {
  const { default: pg } = await import('pg').catch((cause: unknown) => {
    throw new MillraceError('PEER_MISSING', 'Postgres is reached through the package pg. Run: npm i pg', { cause })
  })
  const config: PoolConfig = {
    application_name: options.applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    max: options.max,
  }
  if (options.databaseUrl !== undefined) config.connectionString = options.databaseUrl
  const pool = new pg.Pool(config)
  pool.on('error', (error) => options.onError(error))
  outliveLostClients(pool)
  return pool
}

/** Makes sure that the database answers, so that a wrong address is told from everything that may fail later. */
export async function requireDatabase(pool: Pool): Promise<void> {
  try {
    await pool.query('select 1')
  } catch (cause) {
    const why = explainError(cause)
    throw new MillraceError('DATABASE_UNREACHABLE', `cannot use the database: ${why}. ${hintOf(cause, why)}.`, {
      cause,
    })
  }
}

/** What to look at, by what the server or the socket says. `pg` has no code for a password that was not given. */
function hintOf(error: unknown, text: string): string {
  if (text.startsWith('SASL')) return 'It asks for a password: put it into the URL, or into PGPASSWORD'
  switch ((error as { code?: unknown }).code) {
    case 'ECONNREFUSED':
      return 'Nothing listens there: check host and port, and that Postgres runs'
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return 'The host name is unknown: check the host'
    case '28000':
    case '28P01':
      return 'It refuses this user: check user, password and pg_hba.conf'
    case '42501':
      return 'Its role lacks a right: grant it what the relay needs on the outbox schema'
    case '3D000':
      return 'It is not there: check the name, or create it'
    default:
      return 'Check the address, and that Postgres answers there'
  }
}
