/**
 * The ring: which bucket a transaction's records lie in, and when a bucket may be reclaimed.
 *
 * A bucket is a window of time, modulo the size of the ring, so it is used again in each lap. All arithmetic is in whole
 * seconds of the database's clock, rounded as the default of `record.bucket` rounds them.
 *
 * # When every record of a bucket is old enough, whichever lap it is from
 *
 * Let w be the latest window of the bucket that has begun. A record lies in the window in which its transaction began,
 * and a transaction began before now, so every record of the bucket lies in w or in an earlier lap. If w ended at least
 * the retention ago, all of them are old enough. No record need be asked for its time: ids are made by clients, and may
 * lie. A bucket that was not free when the ring came round to it takes the new lap's records as well, and becomes due with
 * them, one lap later.
 *
 *     w begins      w ends            + retention: due                 closed          the next lap begins
 *     |-- window ---|------------ kept -------|------ reclaimable -----|--- guard ---|
 *
 * The guard is there for the clock: if it is set back a little after the next lap began, the bucket seems due once more,
 * and holds records that are seconds old. (They would not be lost, being published; they would be gone too early.)
 */
import { MillraceError } from '../../core/errors.ts'
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'

/** The ring, as the catalog says it is. */
export interface Ring {
  /** The partition of each bucket, quoted. */
  readonly partitions: readonly string[]
  /** How long a window is, seconds. */
  readonly windowSeconds: number
}

/** When a bucket is due; seconds of the database's clock. */
export interface Turn {
  /** When the bucket's latest window ended, or will. */
  readonly endedAt: number
  /** From here on everything in the bucket is older than the retention. */
  readonly dueAt: number
  /** From here on it is left alone, until the next lap is due. */
  readonly closedAt: number
  /** When the next lap begins. */
  readonly nextAt: number
}

/** The longest retention in windows: all but the one being written, and a quarter of one to reclaim it in. */
const LONGEST_WINDOWS = 1.25

/** The guard at the end of a lap, windows. */
const GUARD_WINDOWS = 1 / 16

/** The ring that the migration makes: 8 buckets of 4 hours. */
export const MIGRATED_RING = Object.freeze({ buckets: 8, windowSeconds: 14_400 })

/** The longest retention that a ring can hold, milliseconds: 27 hours for the one that the migration makes. */
export function longestRetentionMs(buckets: number, windowSeconds: number): number {
  return Math.floor((buckets - LONGEST_WINDOWS) * windowSeconds * 1000)
}

/** The turn of a bucket at a time. */
export function turnOf(ring: Ring, bucket: number, retentionMs: number, nowSeconds: number): Turn {
  const { windowSeconds } = ring
  const buckets = ring.partitions.length
  const current = Math.floor(nowSeconds / windowSeconds)
  const latest = current - ((((current - bucket) % buckets) + buckets) % buckets)
  const endedAt = (latest + 1) * windowSeconds
  const nextAt = (latest + buckets) * windowSeconds
  const dueAt = endedAt + Math.ceil(retentionMs / 1000)
  return { endedAt, dueAt, closedAt: nextAt - Math.ceil(windowSeconds * GUARD_WINDOWS), nextAt }
}

/** The clock of the database, in the seconds of the ring. */
export const NOW_SECONDS = `date_part('epoch', clock_timestamp())::bigint`

// The default of record.bucket, and the partitions. The catalog is open to every role.
const ringSql = `
  select (select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
          join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
          where d.adrelid = $1::regclass and a.attname = 'bucket') as expression,
         (select json_agg(json_build_object('schema', n.nspname, 'name', c.relname,
                                            'bound', pg_get_expr(c.relpartbound, c.oid)))
          from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
          where i.inhparent = $1::regclass) as partitions`

const EXPRESSION =
  /^\(*date_part\('epoch'::text, transaction_timestamp\(\)\)+::bigint \/ (\d{1,9})\) % \(?(\d{1,5})\)?(?:::bigint)?\)+::smallint$/
const BOUND = /^FOR VALUES IN \('?(\d{1,5})'?\)$/

interface RingRow {
  readonly expression: string | null
  readonly partitions: readonly { readonly schema: string; readonly name: string; readonly bound: string }[] | null
}

/** Reads the ring from the catalog: what the inserts go by, so that the two cannot drift apart. */
export async function readRing(sql: Sql, schema: string): Promise<Ring> {
  const { rows } = await sql.query(ringSql, [`${quoteIdentifier(schema)}.record`])
  const { expression, partitions } = rows[0] as RingRow
  const [, windowSeconds, buckets] = EXPRESSION.exec(expression ?? '') ?? []
  const names: string[] = []
  for (const { bound, name, schema: of } of partitions ?? []) {
    const bucket = BOUND.exec(bound)?.[1]
    if (bucket !== undefined) names[Number(bucket)] = `${quoteIdentifier(of)}.${quoteIdentifier(name)}`
  }
  const whole = names.length === Number(buckets) && !names.includes(undefined as unknown as string)
  if (!whole || names.length !== partitions?.length || Number(windowSeconds) < 1) throw notTheRing(schema)
  return { partitions: names, windowSeconds: Number(windowSeconds) }
}

function notTheRing(schema: string): MillraceError {
  return new MillraceError(
    'RETENTION_STALLED',
    `the partitions of ${schema}.record, or the default of its column bucket, are not those of the migration: ` +
      `nothing can be reclaimed; restore them as drizzle/migrations/0001_outbox_and_inbox.sql has them`,
  )
}
