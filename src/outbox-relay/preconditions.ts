/** What the capture's proof rests on, checked before each term, and the errors when it does not hold. */
import { MillraceError } from '../core/errors.ts'
import { type Sql, quoteIdentifier } from '../postgres/sql.ts'

/** The sequence behind `record.seq`, as text for `regclass`. */
export function recordSequence(schema: string): string {
  return `${quoteIdentifier(schema)}.record_seq_seq`
}

/** A pool with several hosts may lead each connection to another server. */
export async function refuseStandby(sql: Sql): Promise<void> {
  const { rows } = await sql.query('select pg_is_in_recovery() as standby')
  if ((rows[0] as { standby: boolean }).standby) throw standbyRefused()
}

/** Capture reads the primary only. */
export function standbyRefused(): MillraceError {
  return new MillraceError(
    'STANDBY_REFUSED',
    'the database is a standby: its snapshots leave out running transactions, and events would be lost; connect to the primary',
  )
}

/** Both connections must lead to one server: during a failover two may call themselves primary. */
export async function requireOneServer(reader: Sql, writer: Sql): Promise<void> {
  const self = `select pid, backend_start::text as start from pg_stat_activity where pid = pg_backend_pid()`
  const { rows } = await writer.query(self)
  const { pid, start } = rows[0] as { pid: number; start: string }
  const seen = await reader.query(
    'select from pg_stat_activity where pid = $1 and backend_start = $2::text::timestamptz',
    [pid, start],
  )
  if (seen.rows.length === 1) return
  throw new MillraceError(
    'CONNECTION_LOST',
    'the two connections of the relay lead to different servers, or through a pooler; connect it to one server itself',
  )
}

/** A sequence that hands out values in blocks lets a later transaction take a lower value: the floor would not hold. */
export async function checkSequence(sql: Sql, schema: string): Promise<void> {
  const sequence = recordSequence(schema)
  const { rows } = await sql.query(
    `select seqcache::text as cache, seqincrement::text as increment, seqcycle as cycle
     from pg_sequence where seqrelid = $1::regclass`,
    [sequence],
  )
  const { cache, increment, cycle } = rows[0] as { cache: string; increment: string; cycle: boolean }
  if (cache === '1' && increment === '1' && !cycle) return
  throw sequenceAltered(sequence, `altered (cache ${cache}, increment ${increment}${cycle ? ', cycle' : ''})`)
}

/** The sequence does not rise one by one any more. */
export function sequenceAltered(sequence: string, how: string): MillraceError {
  return new MillraceError(
    'SEQUENCE_ALTERED',
    `the sequence ${sequence} has been ${how}, and events would be lost; ` +
      `if it was set back, set it above every seq in the outbox with setval; ` +
      `if it was altered, run: alter sequence ${sequence} cache 1 increment 1 no cycle`,
  )
}
