/** A replication slot: how it stands, how it is made, freed and dropped. */
import { type Clock, delay, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { PgPool, Sql } from '../../../postgres/sql.ts'
import { asFailure, openReplicationConnection } from './replication-connection.ts'
import { checkSlotName } from './slot-name.ts'
import { type WalPosition, parseWalPosition } from './wal-position.ts'

/** A slot as `pg_replication_slots` shows it. */
export interface SlotState {
  /** The walsender that holds it; undefined when nobody does. */
  readonly activePid: number | undefined
  /** How far its reader has acknowledged. */
  readonly confirmedFlushLsn: WalPosition | undefined
  readonly database: string | undefined
  /** Whether it is kept on a standby, too; false before PostgreSQL 17. */
  readonly failover: boolean
  /** Why it is lost, from PostgreSQL 17 on: `wal_removed`, `idle_timeout`, … */
  readonly invalidationReason: string | undefined
  /** It will never stream again: its WAL is gone, or it was invalidated. */
  readonly lost: boolean
  readonly plugin: string | undefined
  readonly restartLsn: WalPosition | undefined
  /** `reserved`, `extended`, `unreserved` (about to be lost) or `lost`. */
  readonly walStatus: string | undefined
}

// As JSON, because its columns differ from version to version.
const READ_SQL = 'select to_jsonb(s) as slot from pg_catalog.pg_replication_slots s where slot_name = $1'

/** How the slot stands; undefined when there is none of this name. */
export async function readSlot(sql: Sql, slot: string): Promise<SlotState | undefined> {
  const { rows } = await sql.query(READ_SQL, [slot])
  const row = (rows[0] as { slot: Row } | undefined)?.slot
  if (row === undefined) return undefined
  const walStatus = row.wal_status ?? undefined
  const invalidationReason = row.invalidation_reason ?? undefined
  return {
    activePid: row.active_pid ?? undefined,
    confirmedFlushLsn: positionOf(row.confirmed_flush_lsn),
    database: row.database ?? undefined,
    failover: row.failover ?? false,
    invalidationReason,
    lost: walStatus === 'lost' || invalidationReason !== undefined || row.conflicting === true,
    plugin: row.plugin ?? undefined,
    restartLsn: positionOf(row.restart_lsn),
    walStatus,
  }
}

interface Row {
  readonly active_pid: number | null
  readonly confirmed_flush_lsn: string | null
  readonly conflicting?: boolean | null
  readonly database: string | null
  readonly failover?: boolean
  readonly invalidation_reason?: string | null
  readonly plugin: string | null
  readonly restart_lsn: string | null
  readonly wal_status: string | null
}

function positionOf(text: string | null): WalPosition | undefined {
  return text === null ? undefined : parseWalPosition(text)
}

/** How a slot is made. */
export interface CreateSlotOptions {
  readonly clock: Clock
  /** How long connecting may take, milliseconds; making the slot takes as long as it takes. Default: 10000. */
  readonly connectTimeoutMs?: number
  /** A `pg.Pool`, for its options: none of its connections is taken, but for an abort. */
  readonly pool: PgPool
  /** Gives up. The server is told to stop waiting, and keeps no slot. */
  readonly signal?: AbortSignal
  readonly slot: string
}

/** A slot that was made. */
export interface CreatedSlot {
  /** What commits after it is streamed. */
  readonly consistentPoint: WalPosition
}

/** `failover` is known from here on. */
const FAILOVER_VERSION = 170_000

const CONNECT_TIMEOUT_MS = 10_000
const TERMINATE_TIMEOUT_MS = 5000

/**
 * Makes a logical slot for pgoutput, one that survives a failover where the server can. The server first waits for every
 * transaction that runs now, which may take long: hence the signal, and a connection of its own.
 */
export async function createSlot(options: CreateSlotOptions): Promise<CreatedSlot> {
  const { clock, connectTimeoutMs: timeoutMs = CONNECT_TIMEOUT_MS, pool, signal, slot } = options
  checkSlotName(slot)
  const connection = await openReplicationConnection({ clock, pool, signal, slot, timeoutMs })
  let aborting: Promise<void> | undefined
  const abort = (): void => void (aborting = terminate(connection.processId, options).then(() => connection.destroy()))
  signal?.addEventListener('abort', abort, { once: true })
  try {
    if (signal?.aborted) throw givenUp(slot)
    const how =
      connection.serverVersion >= FAILOVER_VERSION ? `(SNAPSHOT 'nothing', FAILOVER true)` : 'NOEXPORT_SNAPSHOT'
    const { rows } = await connection.query(`CREATE_REPLICATION_SLOT "${slot}" LOGICAL pgoutput ${how}`)
    const { consistent_point: point } = rows[0] as { consistent_point: string }
    return { consistentPoint: parseWalPosition(point) }
  } catch (error) {
    throw signal?.aborted ? givenUp(slot) : asFailure(error, slot)
  } finally {
    signal?.removeEventListener('abort', abort)
    await aborting
    connection.destroy()
  }
}

/** A walsender that waits for a transaction does not notice that its client has gone. */
async function terminate(processId: number, options: CreateSlotOptions): Promise<void> {
  const { clock, pool } = options
  const done = pool.query('select pg_catalog.pg_terminate_backend($1)', [processId])
  const late = (): Error => new MillraceError('CONNECTION_LOST', 'Postgres does not answer')
  // What cannot be told to stop stops by itself when it has waited enough; its connection is closed either way.
  await withDeadline(clock, done, TERMINATE_TIMEOUT_MS, late).catch(() => {})
}

function givenUp(slot: string): MillraceError {
  return new MillraceError('CONNECTION_LOST', `replication slot ${slot}: given up while it was being made`)
}

/** Drops the slot; nothing happens when there is none. A slot that is held is an error: free it first. */
export async function dropSlot(sql: Sql, slot: string): Promise<void> {
  const text =
    'select pg_catalog.pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots where slot_name = $1'
  await sql.query(text, [slot]).catch((error: unknown) => {
    const failure = asFailure(error, slot)
    // Somebody else dropped it in the same moment.
    if (failure instanceof MillraceError && failure.details.sqlstate === '42704') return
    throw failure
  })
}

/** What freeing a slot needs. */
export interface FreeSlotOptions {
  readonly clock: Clock
  readonly slot: string
  readonly sql: Sql
  /** How long it may take, milliseconds. */
  readonly timeoutMs: number
}

const FREE_INTERVAL_MS = 20

/**
 * Ends the walsender that holds the slot, whoever reads from it, and waits until the slot is free: true, or false when it
 * is still held by the deadline. Only who owns the lease may call it.
 */
export async function freeSlot(options: FreeSlotOptions): Promise<boolean> {
  const { clock, slot, sql, timeoutMs } = options
  const text = `select pg_catalog.pg_terminate_backend(active_pid)
    from pg_catalog.pg_replication_slots where slot_name = $1 and active_pid is not null`
  const deadline = clock.monotonic() + timeoutMs
  const late = (): Error => new MillraceError('CONNECTION_LOST', 'Postgres does not answer')
  for (;;) {
    const leftMs = deadline - clock.monotonic()
    if (leftMs <= 0) return false
    const { rows } = await withDeadline(clock, sql.query(text, [slot]), leftMs, late)
    if (rows.length === 0) return true
    await delay(clock, Math.min(FREE_INTERVAL_MS, leftMs))
  }
}
