/** What `millrace checkpoint show` shows: the newest checkpoint of each shard, and whether it certifies itself. */
import type { SchemaNames, Sql } from '../postgres/sql.ts'
import { quoteIdentifier } from '../postgres/sql.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import { uncertifiedBecause } from './certificate.ts'
import { gone } from './lease.ts'
import { recordSequence } from './preconditions.ts'

/** A checkpoint, and the shards whose newest it is. Positions are text: they have 64 bits. */
export interface CheckpointGroup {
  readonly shards: readonly number[]
  readonly certified: boolean
  /** Why it is not certified; null when it is. */
  readonly reason: string | null
  /** All that this snapshot sees is published. Null: no checkpoint has been written, all is to be published. */
  readonly base: string | null
  readonly baseFloor: string | null
  /** While a delta is being published: the snapshot it goes up to, and the `seq` up to which it is published. */
  readonly target: string | null
  readonly after: string | null
  /** Where in the WAL a relay that streams has come to; null for one that polls. */
  readonly wal: string | null
  readonly writer: string | null
  readonly writtenAt: Date | null
  /** The epoch of the ownership it was written under. */
  readonly epoch: string | null
  /** Who holds the shards now; null when nobody does. */
  readonly owner: string | null
}

/** The state of an outbox as its relays will find it. */
export interface CheckpointReport {
  readonly schema: string
  readonly groups: readonly CheckpointGroup[]
  /** The last value of the sequence behind `record.seq`, and the largest `seq` in the outbox, which must not be above. */
  readonly sequence: { readonly last: string; readonly largest: string }
  /** True when every checkpoint is certified and the sequence is above every record. */
  readonly sound: boolean
}

// A scan of checkpoint_n downwards for each shard, stopped by the limit.
const groupsSql = (schema: string): string => `
  with shard as (
    select l.shard, case when ${gone('l')} then null else l.holder end as owner from ${schema}.lease l
  )
  select array_agg(s.shard order by s.shard)::int[] as shards, s.owner, c.n is null or c.reason is null as certified, c.reason,
         c.base, c.base_floor as "baseFloor", c.target, c.after, c.wal, c.writer, c.written_at as "writtenAt", c.epoch
  from shard s left join lateral (
    select c.n, ${uncertifiedBecause('c')} as reason, c.base::text, c.base_floor::text, c.target::text, c.after::text,
           c.wal::text, c.writer::text, c.written_at, c.epoch::text
    from ${schema}.checkpoint c where c.shards @> array[s.shard] order by c.n desc limit 1
  ) c on true
  group by s.owner, c.n, c.reason, c.base, c.base_floor, c.target, c.after, c.wal, c.writer, c.written_at, c.epoch
  order by min(s.shard)`

// Reads the end of record_seq_shard.
const sequenceSql = (schema: string): string => `
  select coalesce((select max(seq) from ${schema}.record), 0)::text as largest,
         coalesce(pg_sequence_last_value($1::regclass), 0)::text as last`

/** Reads the checkpoints of all shards. */
export async function reportCheckpoints(sql: Sql, schemas: Partial<SchemaNames> = {}): Promise<CheckpointReport> {
  const { outbox } = resolveSchemas(schemas)
  const schema = quoteIdentifier(outbox)
  const groups = (await sql.query(groupsSql(schema))).rows as CheckpointGroup[]
  const sequences = await sql.query(sequenceSql(schema), [recordSequence(outbox)])
  const sequence = sequences.rows[0] as CheckpointReport['sequence']
  const sound = groups.every((group) => group.certified) && BigInt(sequence.largest) <= BigInt(sequence.last)
  return { schema: outbox, groups, sequence, sound }
}
