/**
 * The SQL of a page: the next records of a delta in `seq` order, bounded in count and, on the way into memory, in bytes.
 *
 * Two bounded index scans are merged, so the cost depends neither on the table's size nor on the oldest open
 * transaction:
 * - transactions that began after the base: `seq` above the floor, by record_seq_shard;
 * - transactions that were in progress at the base and have ended: one probe each, by record_tx_seq.
 */
import { quoteIdentifier } from '../../../postgres/sql.ts'
import { SHARD_COUNT } from '../../shards.ts'
import type { Delta } from './delta.ts'

/** Which records of a delta. */
export interface PageRequest {
  readonly delta: Delta
  /** Only records above this `seq`: the last of the page before, or 0. */
  readonly after: bigint
  readonly shards: readonly number[]
  /** At most so many rows. */
  readonly limit: number
  /** A row larger than this comes without its wide fields, to be fetched by {@link wideRowsSelect}. */
  readonly inlineBytes: number
}

/** The columns of both selects, in order. */
export const PAGE_COLUMNS = ['seq', 'size', 'id', 'topic', 'type', 'key', 'payload', 'headers'] as const

// octet_length of bytes and pg_column_size read a toasted value's header only. Headers that are stored compressed, which
// small ones never are, are measured as they will be.
const SIZE = `octet_length(payload) + coalesce(octet_length(key), 0) +
  case when pg_column_compression(headers) is null then pg_column_size(headers) else octet_length(headers::text) end`

/** The select of the next page. Only digits, and the quoted schema, go into the text. */
export function pageSelect(schema: string, request: PageRequest): string {
  const { delta, after, shards, limit, inlineBytes } = request
  const table = `${quoteIdentifier(schema)}.record`
  const { base, target, high } = delta
  const ofShards = shards.length === SHARD_COUNT ? '' : ` and ${among(shards)}`
  const from = after > base.floor ? after : base.floor
  const fresh = `(select seq, id, topic, type, key, payload, headers from ${table}
    where seq > ${from} and seq <= ${high}${ofShards}
      and tx >= '${base.snapshot.xmax}'::xid8 and pg_visible_in_snapshot(tx, '${target.snapshot.text}')
    order by seq limit ${limit})`
  const ended = base.snapshot.endedBy(target.snapshot)
  const late = `(select l.* from unnest('{${ended.join(',')}}'::xid8[]) t(ended) cross join lateral
    (select seq, id, topic, type, key, payload, headers from ${table}
     where tx = t.ended and seq > ${after} and seq <= ${high}${ofShards} order by seq limit ${limit}) l)`
  const rows = ended.length === 0 ? fresh : `(${fresh} union all ${late} order by seq limit ${limit})`
  const wide = (column: string): string => `case when size <= ${inlineBytes} then ${column} end`
  return `select seq, size, id, topic, type, ${wide('key')}, ${wide('payload')}, ${wide('headers')}
    from (select *, ${SIZE} as size from ${rows} rows) sized`
}

/**
 * A filter, and on purpose not `shard in (…)`: before version 17 an index scan with an array condition on its second
 * column has no order, and the planner would sort the whole backlog for each page.
 */
function among(shards: readonly number[]): string {
  const only = shards.length === 1 ? shards[0] : undefined
  if (only !== undefined) return `shard = ${only}`
  return `(1 << shard) & ${shards.reduce((mask, shard) => mask | (1 << shard), 0)} <> 0`
}

/** The select of whole rows by `seq`, for the few that were too wide for the page. Uses record_seq_shard. */
export function wideRowsSelect(schema: string, seqs: readonly bigint[]): string {
  return `select seq, ${SIZE} as size, id, topic, type, key, payload, headers
    from ${quoteIdentifier(schema)}.record where seq in (${seqs.join(',')}) order by seq`
}
