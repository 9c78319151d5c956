/** What the capture's proof rests on, checked before each term, and the errors when it does not hold. */
import { MillraceError } from '../core/errors.ts'
import { type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { schemaFlag } from './certificate.ts'

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
  if (cache !== '1' || increment !== '1' || cycle) {
    throw sequenceAltered(sequence, `altered (cache ${cache}, increment ${increment}${cycle ? ', cycle' : ''})`)
  }
  await requireSequenceAbove(sql, schema, sequence)
}

/**
 * Logical replication copies records and no sequences: what lies above the sequence's value would never be read. The
 * sequence's value is not older than the records, which the statement's snapshot shows. Reads the end of record_seq_shard.
 */
async function requireSequenceAbove(sql: Sql, schema: string, sequence: string): Promise<void> {
  const { rows } = await sql.query(
    `select largest::text as largest, last::text as last
     from (select max(seq) as largest, coalesce(pg_sequence_last_value($1::regclass), 0) as last
           from ${quoteIdentifier(schema)}.record) r where largest > last`,
    [sequence],
  )
  const behind = rows[0] as { largest: string; last: string } | undefined
  if (behind === undefined) return
  throw new MillraceError(
    'SEQUENCE_ALTERED',
    `the sequence ${sequence} stands at ${behind.last}, and the outbox holds a record with seq ${behind.largest}: the records ` +
      `came with a logical copy, which leaves sequences behind, or the sequence was set back; events would be lost. Stop every ` +
      `relay and run: millrace checkpoint re-anchor${schemaFlag(schema)} (it sets the sequence, and publishes again what the ` +
      `outbox holds; with --dry-run to see first what that is)`,
  )
}

/** The sequence does not rise one by one any more. */
export function sequenceAltered(sequence: string, how: string): MillraceError {
  return new MillraceError(
    'SEQUENCE_ALTERED',
    `the sequence ${sequence} has been ${how}, and events would be lost; ` +
      `if it was set back, run: millrace checkpoint re-anchor (it sets it above every seq in the outbox); ` +
      `if it was altered, run: alter sequence ${sequence} cache 1 increment 1 no cycle`,
  )
}
