/** What is published, as retention sees it: the base of each shard's checkpoint, and whether a bucket holds more. */
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'
import { Snapshot } from '../capture/polling/snapshot.ts'
import { certified } from '../certificate.ts'

/** Shards whose newest checkpoint is the same row, or that have none. */
export interface ShardGroup {
  readonly shards: readonly number[]
  /** All that it sees is published; undefined when the shards have no checkpoint, or none of this cluster. */
  readonly base: Snapshot | undefined
  /** Why there is no base. */
  readonly without?: 'none' | 'uncertified'
  /** How long ago the checkpoint was written, by the database's clock. */
  readonly writtenMsAgo?: number
}

// The newest row of each shard, by checkpoint_n downwards; one row usually is that of many shards.
const basesSql = (schema: string): string => `
  select array_agg(s.shard order by s.shard)::int[] as shards, c.base::text as base, c.certified,
         greatest(0, extract(epoch from clock_timestamp() - c.written_at) * 1000)::float8 as ago
  from unnest($1::smallint[]) s (shard)
  left join lateral (
    select n, base, written_at, ${certified('c')} as certified
    from ${schema}.checkpoint c where shards @> array[s.shard] order by n desc limit 1) c on true
  group by c.n, c.base::text, c.certified, c.written_at order by min(s.shard)`

interface BaseRow {
  readonly shards: readonly number[]
  readonly base: string | null
  readonly certified: boolean | null
  readonly ago: number | null
}

/** Reads what each of the shards has published. */
export async function readShardGroups(sql: Sql, schema: string, shards: readonly number[]): Promise<ShardGroup[]> {
  const { rows } = await sql.query(basesSql(quoteIdentifier(schema)), [shards])
  return (rows as BaseRow[]).map((row): ShardGroup => {
    if (row.base === null) return { shards: row.shards, base: undefined, without: 'none' }
    const writtenMsAgo = row.ago as number
    if (!row.certified) return { shards: row.shards, base: undefined, without: 'uncertified', writtenMsAgo }
    return { shards: row.shards, base: Snapshot.parse(row.base), writtenMsAgo }
  })
}

/**
 * SQL: the partition holds a record that the snapshot does not see. Index probes of record_tx_seq only: the newest `tx`,
 * and one for each transaction in progress. The limit keeps the planner from turning the probes into a join, which would
 * read the whole index.
 */
export function holdsUnseen(partition: string, snapshot: string): string {
  return `(coalesce((select r.tx from ${partition} r order by r.tx desc limit 1) >= pg_snapshot_xmax(${snapshot}), false)
    or exists (select from pg_snapshot_xip(${snapshot}) x (tx)
               cross join lateral (select from ${partition} r where r.tx = x.tx limit 1) probe))`
}

/** What a look at a bucket found. */
export interface Contents {
  readonly empty: boolean
  /** Those of the snapshots that do not see all of it. */
  readonly unseenBy: ReadonlySet<Snapshot>
}

/** Looks into a bucket, without any lock that would hold up an insert. */
export async function lookInto(sql: Sql, partition: string, bases: readonly Snapshot[]): Promise<Contents> {
  const { rows } = await sql.query(
    `select not exists (select from ${partition}) as empty,
       array(select i from unnest($1::text[]) with ordinality s (base, i)
             where ${holdsUnseen(partition, 's.base::pg_snapshot')})::int[] as unseen`,
    [bases.map((base) => base.text)],
  )
  const { empty, unseen } = rows[0] as { empty: boolean; unseen: number[] }
  return { empty, unseenBy: new Set(unseen.map((i) => bases[i - 1] as Snapshot)) }
}
