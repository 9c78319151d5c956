/**
 * Makes the slot anew while the relay polls: publication first, then the slot, for what is written before the publication
 * is there would be missing from the stream. The old one goes before either, so that it makes the server keep nothing while
 * the publication cannot be made. Making a slot waits for every transaction that runs now; meanwhile nothing stands still.
 */
import { type Clock, delay } from '../../../core/clock.ts'
import { MillraceError, isMillraceError } from '../../../core/errors.ts'
import type { Logger } from '../../../core/logger.ts'
import type { PgPool, Sql } from '../../../postgres/sql.ts'
import { ensurePublication, publicationChanged, readFingerprint } from './publication.ts'
import { createSlot, dropSlot, freeSlot, readSlot } from './slot.ts'
import type { WalPlace } from './wal-place.ts'

/** What it needs. */
export interface SlotMakerOptions {
  /** Throws LEASE_LOST when the shards are no longer ours: the slot may be another relay's, and is left alone. */
  readonly assertHeld: () => void
  readonly clock: Clock
  readonly logger: Logger
  readonly pool: PgPool
  readonly schema: string
  readonly slot: string
  /** A connection for looks and for the publication. */
  readonly sql: Sql
}

/** A slot that was made. */
export interface MadeSlot {
  readonly place: WalPlace
  readonly publication: string
  /**
   * A transaction id that was assigned when the slot was there. What a snapshot does not see that sees all up to it, the
   * slot streams. (A snapshot taken later is not enough: a commit may stand in the WAL before the slot's place and not be
   * visible yet, while it waits for its flush or for a standby.)
   */
  readonly xid: bigint
}

/** How long who holds the slot may take to let it go. */
const FREE_TIMEOUT_MS = 5000

/** How long it waits after a failure. */
const RETRY_INTERVAL_MS = 30_000

/** Tries until it has made the slot, or the signal aborts. */
export async function makeSlot(options: SlotMakerOptions, signal: AbortSignal): Promise<MadeSlot | undefined> {
  const { clock, logger, slot } = options
  while (!signal.aborted) {
    try {
      return await tryToMake(options, signal)
    } catch (error) {
      if (signal.aborted || isMillraceError(error, 'LEASE_LOST')) return undefined
      logger.error(
        { slot, error: (error as Error).message, retryMs: RETRY_INTERVAL_MS },
        'the replication slot cannot be made; polling goes on',
      )
      await delay(clock, RETRY_INTERVAL_MS, signal)
    }
  }
  return undefined
}

async function tryToMake(options: SlotMakerOptions, signal: AbortSignal): Promise<MadeSlot> {
  const { assertHeld, clock, pool, schema, slot, sql } = options
  const old = await readSlot(sql, slot)
  if (old !== undefined) {
    const { rows } = await sql.query('select current_database() as name')
    const { name } = rows[0] as { name: string }
    if (old.plugin !== 'pgoutput' || old.database !== name) throw foreignSlot(slot, old.database)
    assertHeld()
    await freeSlot({ clock, sql, slot, timeoutMs: FREE_TIMEOUT_MS })
    assertHeld()
    await dropSlot(sql, slot)
  }
  const publication = await ensurePublication(sql, schema)
  assertHeld()
  const { consistentPoint } = await createSlot({ clock, pool, signal, slot })
  const made = await readSlot(sql, slot)
  if (made?.confirmedFlushLsn !== consistentPoint) throw anotherServer(slot)
  const xid = await assignedXid(sql)
  if ((await readFingerprint(sql, schema)) !== publication) throw publicationChanged(schema)
  return { place: { lsn: consistentPoint }, publication, xid }
}

async function assignedXid(sql: Sql): Promise<bigint> {
  const { rows } = await sql.query('select pg_catalog.pg_current_xact_id()::text as xid')
  return BigInt((rows[0] as { xid: string }).xid)
}

function anotherServer(slot: string): MillraceError {
  return new MillraceError(
    'CONNECTION_LOST',
    `the replication slot ${slot} was made and is not there: the pool leads each connection to another server; connect the relay to one`,
  )
}

/** Slots are the whole server's, and somebody else's is not ours to drop. */
function foreignSlot(slot: string, database: string | undefined): MillraceError {
  return new MillraceError(
    'REPLICATION_FAILED',
    `the replication slot ${slot} serves something else (database ${database ?? 'none'}); give the relay a slot of another name`,
  )
}
