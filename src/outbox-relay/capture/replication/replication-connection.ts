/**
 * A replication connection of our own, made as the pool makes its connections: the same `Client` class, options, TLS
 * and password, in whatever form they were given. `pg` connects and authenticates; then the socket is ours.
 */
import type { Socket } from 'node:net'
import { type Clock, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { PgPool, SqlResult } from '../../../postgres/sql.ts'
import { standbyRefused } from '../../preconditions.ts'
import { makeReadSocket, takeOver } from './read-socket.ts'
import { refused } from './server-report.ts'

/** How the connection shows in `pg_stat_activity` and `pg_stat_replication`. */
export const REPLICATION_APPLICATION_NAME = 'millrace-relay-wal'

/** What a replication connection is made from. */
export interface ReplicationConnectionOptions {
  readonly clock: Clock
  /** A `pg.Pool`; none of its connections is taken. */
  readonly pool: PgPool
  /** Gives the connection up while it is being made. */
  readonly signal?: AbortSignal | undefined
  /** For messages. */
  readonly slot: string
  /** How long connecting may take. */
  readonly timeoutMs: number
}

/** A connection that takes replication commands, and plain SQL without parameters. */
export interface ReplicationConnection {
  readonly processId: number
  /** As `server_version_num`: 180004. */
  readonly serverVersion: number
  /** 0: the server waits for ever. */
  readonly walSenderTimeoutMs: number
  /** Closes the socket at once. Idempotent. */
  destroy(): void
  /** Runs a command. Not once the socket is taken. */
  query(text: string): Promise<SqlResult>
  /** Takes the socket away from `pg`: what the server sends from now on is the caller's (see `takeOver`). */
  takeSocket(onChunk: (chunk: Buffer) => void): Socket
}

/** The parts of a `pg.Client` that are used. */
interface Client {
  readonly connection?: { readonly stream: Socket }
  connect(): Promise<unknown>
  on(event: 'error', listener: (error: Error) => void): unknown
  query(text: string): Promise<SqlResult>
}

type ClientClass = new (options: object) => Client

// bytea_output, should a field ever come as text; client_min_messages, because a notice is how PostgreSQL 18 says that
// the publication is gone, and a role may have silenced them.
const SETUP_SQL = `
  select pg_catalog.set_config('application_name', '${REPLICATION_APPLICATION_NAME}', false),
         pg_catalog.set_config('bytea_output', 'hex', false),
         pg_catalog.set_config('client_min_messages', 'notice', false),
         pg_catalog.pg_backend_pid()::text as pid,
         (select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout')::text as timeout,
         pg_catalog.current_setting('server_version_num')::text as version,
         pg_catalog.pg_is_in_recovery()::text as standby`

/** Connects. */
export async function openReplicationConnection(options: ReplicationConnectionOptions): Promise<ReplicationConnection> {
  const { clock, pool, signal, slot, timeoutMs } = options
  if (signal?.aborted) throw givenUp(slot)
  const client = makeClient(pool)
  let failure: MillraceError | undefined
  // What goes wrong while nobody waits is told by the socket, too; without a listener `pg` would end the process.
  client.on('error', () => {})
  const destroy = (): void => void client.connection?.stream.destroy()
  const abort = (): void => {
    failure = givenUp(slot)
    destroy()
  }
  signal?.addEventListener('abort', abort, { once: true })
  try {
    const opening = setUp(client)
    const settings = await withDeadline(clock, opening, timeoutMs, () => silent(timeoutMs))
    return {
      ...settings,
      destroy,
      query: (text) => client.query(text),
      takeSocket: (onChunk) => takeSocket(client, onChunk),
    }
  } catch (error) {
    destroy()
    throw failure ?? asFailure(error, slot)
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

/** An error of `pg`, as one of ours: with an SQLSTATE when the server sent it. */
export function asFailure(error: unknown, slot: string): Error {
  if (error instanceof MillraceError) return error
  const { code, detail, hint, message } = error as Error & { code?: string; detail?: string; hint?: string }
  // An errno has letters only at its beginning: ECONNREFUSED.
  if (code !== undefined && /^[0-9A-Z]{5}$/.test(code) && /\d/.test(code))
    return refused({ detail, hint, message, sqlstate: code }, slot)
  return new MillraceError('CONNECTION_LOST', `no replication connection to Postgres: ${message}`, { cause: error })
}

function makeClient(pool: PgPool): Client {
  const { Client: PoolClient, options } = pool as { Client?: ClientClass; options?: object }
  if (typeof PoolClient !== 'function' || typeof options !== 'object')
    throw new MillraceError(
      'CONFIG_INVALID',
      'replication makes a connection of its own as the pool would, and this pool does not say how: give a pg.Pool, or set capture to polling',
    )
  // The pool hides its password from enumeration, and so do we.
  const copy = Object.defineProperties({}, Object.getOwnPropertyDescriptors(options))
  if (!('stream' in copy) || copy.stream === undefined) Object.assign(copy, { stream: makeReadSocket })
  const client = new PoolClient(Object.assign(copy, { keepAlive: true, pipeline: false, replication: 'database' }))
  if (client.connection === undefined)
    throw new MillraceError(
      'CONFIG_INVALID',
      'replication needs the socket, which pg-native hides: make the pool by pg and not by pg.native, or set capture to polling',
    )
  return client
}

interface Setup {
  readonly pid: string
  readonly timeout: string
  readonly version: string
  readonly standby: string
}

async function setUp(
  client: Client,
): Promise<Pick<ReplicationConnection, 'processId' | 'serverVersion' | 'walSenderTimeoutMs'>> {
  await client.connect()
  const { rows } = await client.query(SETUP_SQL)
  const { pid, timeout, version, standby } = rows[0] as Setup
  if (standby === 'true') throw standbyRefused()
  return { processId: Number(pid), serverVersion: Number(version), walSenderTimeoutMs: Number(timeout) }
}

/** The last answer is read to its end, so nothing of the stream is in `pg`'s parser. */
function takeSocket(client: Client, onChunk: (chunk: Buffer) => void): Socket {
  const socket = (client.connection as { stream: Socket }).stream
  takeOver(socket, onChunk)
  return socket
}

function givenUp(slot: string): MillraceError {
  return new MillraceError('CONNECTION_LOST', `replication slot ${slot}: given up while connecting`)
}

function silent(timeoutMs: number): MillraceError {
  return new MillraceError('CONNECTION_LOST', `no replication connection to Postgres within ${timeoutMs} ms`)
}
