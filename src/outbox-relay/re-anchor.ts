/**
 * Re-anchoring: makes an outbox that came with a dump or a logical copy this cluster's own, by publishing again what it
 * holds. One transaction:
 *
 * 1. The leases are taken from whoever had them, and their epochs rise: a relay that stood still writes nothing later.
 * 2. The sequence is set above every `seq`; logical replication leaves it where it was. Records that were appended here
 *    meanwhile, with numbers that are taken already, are given new ones, behind all that came with the copy.
 * 3. Records whose `tx` this cluster has not yet ended are given this transaction's: their own ids belong to others here,
 *    or to nobody yet. The rest stays as it is: an id that ended long ago is seen by every snapshot to come, whosever it
 *    was. So nothing is rewritten where this cluster is ahead of the old one, everything where it is younger.
 * 4. The log is emptied, which is how a new outbox begins: from before its first record. With `from` it gets one row
 *    instead, and all newer records are given this transaction's id. The row's snapshot was taken as the first thing,
 *    before this transaction had an id, so that it sees none of them; what is older is put where it does see it. Its
 *    floor is 0, which is below any record.
 *
 * Order is that of `seq` throughout. Appends go on meanwhile, except in the case of a sequence that must be set: then the
 * outbox is locked against them, so that no record with a number from before is still under way.
 */
import { MillraceError } from '../core/errors.ts'
import { OptionCheck } from '../core/options.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import { takeSession } from '../postgres/session.ts'
import { type PgPool, type SchemaNames, type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { gone } from './lease.ts'
import { recordSequence } from './preconditions.ts'

/** How an outbox is re-anchored. */
export interface ReAnchorOptions {
  /** Count, and say the SQL; change nothing. Default: false. */
  readonly dryRun?: boolean
  /**
   * Publish again only records of this time or later, by the time in their id; older ones count as published. Give it when
   * you know up to when everything was published. Too late a time loses events. Default: everything.
   */
  readonly from?: Date
  /** How long to wait for a lock that a relay or a backup holds, milliseconds. Default: 5000. */
  readonly lockTimeoutMs?: number
  /** Where the outbox is. Default: `outbox`. */
  readonly schemas?: Partial<SchemaNames>
}

/** What re-anchoring means for the records that are in the outbox. */
export interface ReAnchorReport {
  /** False after a dry run. */
  readonly done: boolean
  /** How many records the outbox holds, and how many of them are published again. */
  readonly records: number
  readonly again: number
  /** The times of the first and the last record that is published again; null when there is none that tells. */
  readonly oldest: Date | null
  readonly newest: Date | null
  /** How many records must be written again for it. */
  readonly rewritten: number
  /** The statements, one transaction. */
  readonly sql: string
}

const KNOWN: readonly (keyof ReAnchorOptions)[] = ['dryRun', 'from', 'lockTimeoutMs', 'schemas']

/** The milliseconds in a uuid v7; null for an id of another kind. */
const ID_MS = `case when substr(id::text, 15, 1) = '7'
  then ('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint end`

/** Not ended for every snapshot to come. */
const UNENDED = 'tx >= pg_snapshot_xmin(pg_current_snapshot())'

// Two scans of the outbox.
const countSql = (schema: string, again: string, rewritten: string): string => `
  select count(*)::float8 as records, (count(*) filter (where ${again}))::float8 as again,
         (min(ms) filter (where ${again}))::float8 as oldest, (max(ms) filter (where ${again}))::float8 as newest,
         (count(*) filter (where ${rewritten}))::float8 as rewritten, coalesce(max(seq), 0)::text as largest,
         (count(*) - count(distinct seq))::float8 as twins, coalesce(pg_sequence_last_value($1::regclass), 0)::text as last
  from (select tx, seq, ${ID_MS} as ms from ${schema}.record) r`

interface Counts {
  readonly records: number
  readonly again: number
  readonly oldest: number | null
  readonly newest: number | null
  readonly rewritten: number
  readonly largest: string
  readonly twins: number
  readonly last: string
}

/**
 * Publishes again everything the outbox holds, in the order of each key, when the next relay starts; consumers drop what
 * they know. For an outbox whose checkpoint is refused with CHECKPOINT_UNCERTIFIED.
 *
 * @throws MillraceError CHECKPOINT_IN_USE while a relay holds a shard or a lock is not to be had; nothing has changed.
 * @example
 * const { again } = await reAnchor(pool)
 */
export async function reAnchor(pool: PgPool, options: ReAnchorOptions = {}): Promise<ReAnchorReport> {
  const check = new OptionCheck('reAnchor', options, KNOWN)
  check.integer('lockTimeoutMs', 1, 86_400_000)
  check.satisfies('from', (from) => from instanceof Date && !Number.isNaN(from.getTime()), 'a valid Date')
  check.done()
  const { dryRun = false, from, lockTimeoutMs = 5000 } = options
  const { outbox } = resolveSchemas(options.schemas)
  const session = await takeSession(pool)
  try {
    const sql = session.client
    const counts = await count(sql, outbox, from)
    const statements = statementsOf(outbox, counts, from, lockTimeoutMs)
    const holder = await holderOf(sql, outbox)
    if (holder !== undefined) throw inUse(holder)
    if (!dryRun) await run(sql, outbox, statements)
    const date = (ms: number | null): Date | null => (ms === null ? null : new Date(ms))
    return {
      done: !dryRun,
      records: counts.records,
      again: counts.again,
      oldest: date(counts.oldest),
      newest: date(counts.newest),
      rewritten: counts.rewritten,
      sql: `begin;\n${statements.map((text) => `${text};\n`).join('')}commit;\n`,
    }
  } finally {
    session.close()
  }
}

async function count(sql: Sql, outbox: string, from: Date | undefined): Promise<Counts> {
  const again = from === undefined ? 'true' : `coalesce(ms >= ${from.getTime()}, true)`
  const rewritten = from === undefined ? UNENDED : `(${again} or ${UNENDED})`
  const text = countSql(quoteIdentifier(outbox), again, rewritten)
  const { rows } = await sql.query(text, [recordSequence(outbox)])
  return rows[0] as Counts
}

/** What the transaction runs. Only digits, and the quoted schema, go into the texts. */
function statementsOf(outbox: string, counts: Counts, from: Date | undefined, lockTimeoutMs: number): string[] {
  const schema = quoteIdentifier(outbox)
  const sequence = `'${recordSequence(outbox).replaceAll("'", "''")}'::regclass`
  const newer = from === undefined ? '' : `coalesce(${ID_MS} >= ${from.getTime()}, true)`
  const statements = [
    `set local synchronous_commit = 'on'`,
    `set local lock_timeout = '${lockTimeoutMs}ms'`,
    `select set_config('millrace.base', pg_current_snapshot()::text, true)`,
    `select from ${schema}.lease order by shard for update`,
    `lock table ${schema}.checkpoint in share row exclusive mode`,
    `update ${schema}.lease set epoch = epoch + 1, token = null, holder = null, backend_pid = null, backend_start = null,
  expires_at = '-infinity'`,
  ]
  if (counts.twins > 0 || BigInt(counts.largest) > BigInt(counts.last)) {
    statements.push(...renumberSql(schema, sequence))
  }
  if (from === undefined) {
    statements.push(
      `update ${schema}.record set tx = pg_current_xact_id() where ${UNENDED}`,
      `delete from ${schema}.checkpoint`,
    )
  } else {
    statements.push(
      `update ${schema}.record set tx = '3'::xid8 where ${UNENDED} and not ${newer}`,
      `update ${schema}.record set tx = pg_current_xact_id() where ${newer}`,
      `delete from ${schema}.checkpoint`,
      `insert into ${schema}.checkpoint (bucket, shards, epoch, base, base_floor)
select 0, array_agg(shard order by shard), max(epoch), current_setting('millrace.base')::pg_snapshot, 0 from ${schema}.lease`,
    )
  }
  return statements
}

// Records that were appended here on top of a copy, while the sequence was too low: they are younger, as rows, than all
// that came with the copy. Which those are is seen by a `seq` that the sequence has not reached, or by its being there
// twice, the older of the two. They get the next numbers, in their order.
const renumberSql = (schema: string, sequence: string): string[] => [
  `lock table ${schema}.record in share row exclusive mode`,
  `select set_config('millrace.last', coalesce(pg_sequence_last_value(${sequence}), 0)::text, true)`,
  `select setval(${sequence}, largest) from (select max(seq) as largest from ${schema}.record) r
where largest > current_setting('millrace.last')::bigint`,
  `with ranked as materialized (
  select tableoid, ctid, seq, age(xmin) as age, count(*) over (partition by seq) as twins,
         row_number() over (partition by seq order by age(xmin) desc, tx, id) as twin
  from ${schema}.record
), copied as materialized (
  select min(age) as age from ranked
  where seq > current_setting('millrace.last')::bigint or (twins > 1 and twin = 1)
), moved as (
  delete from ${schema}.record r using ranked, copied
  where r.tableoid = ranked.tableoid and r.ctid = ranked.ctid and (ranked.twin > 1 or ranked.age < copied.age)
  returning r.*
)
insert into ${schema}.record (bucket, shard, id, topic, key, type, payload, headers)
select bucket, shard, id, topic, key, type, payload, headers from moved order by seq`,
]

async function run(sql: Sql, outbox: string, statements: readonly string[]): Promise<void> {
  await sql.query('begin')
  let asked = false
  try {
    for (const statement of statements) {
      await sql.query(statement)
      if (!statement.startsWith('lock table') || asked) continue
      asked = true
      // Asked once more under the locks, in a statement that begins after they were granted.
      const holder = await holderOf(sql, outbox)
      if (holder !== undefined) throw inUse(holder)
    }
    await sql.query('commit')
  } catch (error) {
    await sql.query('rollback').catch(() => {})
    if ((error as { code?: unknown }).code !== LOCK_NOT_AVAILABLE) throw error
    throw inUse(undefined, error)
  }
}

const LOCK_NOT_AVAILABLE = '55P03'

async function holderOf(sql: Sql, outbox: string): Promise<string | undefined> {
  const text = `select coalesce(holder, 'unnamed') as holder from ${quoteIdentifier(outbox)}.lease l
    where not ${gone('l')} order by shard limit 1`
  return ((await sql.query(text)).rows[0] as { holder: string } | undefined)?.holder
}

function inUse(holder: string | undefined, cause?: unknown): MillraceError {
  return new MillraceError(
    'CHECKPOINT_IN_USE',
    holder === undefined
      ? 'a lock on the checkpoints could not be had in time: a relay or another re-anchoring is at work; nothing was changed. Try again'
      : `the relay ${holder} holds shards of this outbox: stop every relay first, then run it again; nothing was changed`,
    { cause },
  )
}
