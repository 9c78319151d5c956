/**
 * Writes events into the WAL alone: frames of them in transactional logical messages, which only a replication slot
 * reads. Before the first one it looks whether there is a slot to read them, because without one the server takes them
 * all the same and they reach nobody.
 */
import { MillraceError } from '../core/errors.ts'
import { WAL_EVENT_PREFIX, encodeWalEvents } from '../core/wal-event.ts'
import type { Sql } from '../postgres/sql.ts'
import type { EventRow } from './event-rows.ts'

/** A frame is decoded in one piece on the other side. */
const MAX_FRAME_BYTES = 4 * 1024 * 1024

const EMIT_SQL = 'select pg_catalog.pg_logical_emit_message(true, $1::text, $2::bytea)'

// The slots of relays on this database; by its own name, when it was given one.
const READER_SQL = `
  select current_setting('wal_level') as level, exists (
    select from pg_catalog.pg_replication_slots where database = current_database() and plugin = 'pgoutput'
      and case when $1::text is null then starts_with(slot_name, 'millrace_') else slot_name = $1::text end) as read`

/** Writes rows into the WAL for one outbox. */
export class WalOnlyStatement {
  readonly #prefix: string
  readonly #slot: string | undefined
  #checked = false

  constructor(schema: string, slot: string | undefined) {
    this.#prefix = WAL_EVENT_PREFIX + schema
    this.#slot = slot
  }

  /** Writes the rows, in order. It asks for the transaction before each statement: it may have ended in between. */
  async run(transaction: () => Sql, rows: readonly EventRow[]): Promise<void> {
    if (!this.#checked) await this.#check(transaction())
    for (let from = 0; from < rows.length;) {
      let bytes = 0
      let to = from
      while (to < rows.length && (to === from || bytes < MAX_FRAME_BYTES)) bytes += (rows[to++] as EventRow).sizeBytes
      await transaction().query(EMIT_SQL, [this.#prefix, encodeWalEvents(rows.slice(from, to))])
      from = to
    }
  }

  async #check(sql: Sql): Promise<void> {
    const { rows } = await sql.query(READER_SQL, [this.#slot ?? null])
    const { level, read } = rows[0] as { level: string; read: boolean }
    if (level !== 'logical') {
      throw unread(`wal_level is ${level}; run: alter system set wal_level = 'logical', and restart the server`)
    }
    if (!read)
      throw unread('this database has no replication slot of a relay; start a relay with capture replication first')
    this.#checked = true
  }
}

function unread(why: string): MillraceError {
  return new MillraceError('WAL_ONLY_UNREAD', `an event in the WAL alone would reach nobody: ${why}`)
}
