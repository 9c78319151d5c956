/** A relay that polls leaves a slot of earlier streaming alone, and says what it costs. */
import type { Logger } from '../../../core/logger.ts'
import type { Sql } from '../../../postgres/sql.ts'
import { slotName } from './slot-name.ts'

const PINNED_SQL = `
  select slot_name as slot, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint::text as bytes
  from pg_replication_slots where slot_name = $1 and not active and restart_lsn is not null`

/**
 * Warns when the relay's slot is there and nobody reads from it: the server keeps its log for it, until the disk is full.
 * The relay does not drop it: events that were appended to the WAL alone are nowhere else.
 */
export async function warnOfLeftoverSlot(
  sql: Sql,
  options: { readonly logger: Logger; readonly schema: string; readonly slot?: string | undefined },
): Promise<void> {
  const { rows: names } = await sql.query('select current_database() as name')
  const slot = options.slot ?? slotName((names[0] as { name: string }).name, options.schema)
  const { rows } = await sql.query(PINNED_SQL, [slot])
  const pinned = rows[0] as { slot: string; bytes: string } | undefined
  if (pinned === undefined) return
  options.logger.warn(
    pinned,
    `the replication slot ${slot} is not read and makes the server keep its log; if no relay is to stream again, run: ` +
      `select pg_drop_replication_slot('${slot}')`,
  )
}
