/**
 * Events that were discarded may be seen again: the relay reads on from its checkpoint, which may lie before them. A page
 * that the broker holds up may be opened anew by one relay after another, each time with a checkpoint of that time. What
 * was parked a day before the newest checkpoint is behind it for good; the ids of the rest are remembered, and an event
 * with such an id is passed over.
 */
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'

/** The most ids that are remembered, the newest. */
const MAX_IDS = 100_000

// Uses parked_discard_parked_at, and checkpoint_n downwards. An outbox that is anchored anew has no checkpoint.
const loadSql = (schema: string): string => `
  select id from ${schema}.parked_discard where shard = any($1::smallint[]) and parked_at > coalesce(
    (select min(newest.written_at) from unnest($1::smallint[]) s (shard) cross join lateral (
       select written_at from ${schema}.checkpoint c where c.shards @> array[s.shard] order by n desc limit 1) newest)
    - interval '1 day', '-infinity')
  order by parked_at desc limit ${MAX_IDS}`

/** The discarded events of the held shards that may still come. */
export async function loadDiscarded(sql: Sql, schema: string, shards: readonly number[]): Promise<Set<string>> {
  const { rows } = await sql.query(loadSql(quoteIdentifier(schema)), [shards])
  return new Set((rows as { id: string }[]).map(({ id }) => id))
}

/** Adds ids that were discarded just now, as long as there is room. */
export function rememberDiscarded(discarded: Set<string>, ids: readonly string[]): void {
  for (const id of ids) if (discarded.size < MAX_IDS) discarded.add(id)
}
