/**
 * Parks records: one fenced statement for many, each a row behind the last of its lane. A record that is there already
 * keeps its place, and a lane that is there keeps its head.
 */
import type { OutgoingMessage } from '../../core/message.ts'
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'
import { leaseLost } from '../lease.ts'
import { type FencedLease, fenceParameters, heldSql } from './fenced.ts'
import { laneOf, shardOf } from './lane.ts'

/** Why a lane is parked: its first event is refused for good; its first event kills the relay; the first event is gone. */
export type ParkReason = 'poison' | 'crash' | 'behind'

/** One record to park. */
export interface Refused {
  readonly message: OutgoingMessage
  readonly reason: ParkReason
  /** What the broker said, if it said it of this record. */
  readonly error: string
}

/** What a parking wrote. */
export interface Parked {
  readonly keys: number
  readonly records: number
}

/** The most in one statement; what is more goes in several, in order. */
const MAX_ROWS = 1000
const MAX_BYTES = 8 * 1024 * 1024
const MAX_ERROR = 1000

// identity values are given out in the order of the select. Uses parked_key_pkey and parked_record_lane_id_key.
const parkSql = (schema: string): string => `
  with ${heldSql(schema)},
  input as materialized (
    select i.*, substring($4::bytea from i.start for i.length) as payload
    from held, unnest($5::uuid[], $6::smallint[], $7::bigint[], $8::uuid[], $9::text[], $10::text[], $11::text[],
      $12::text[], $13::bigint[], $14::integer[], $15::integer[], $16::integer[], $17::text[], $18::text[])
      with ordinality i (lane, shard, seq, id, topic, key, type, headers, time_ms, start, length, bytes, reason, error, ord)
  ), keys as (
    insert into ${schema}.parked_key (lane, shard, key, id, topic, reason, error)
    select distinct on (lane) lane, shard, key, id, topic, reason, error from input order by lane, ord
    on conflict (lane) do nothing returning lane
  ), records as (
    insert into ${schema}.parked_record (lane, shard, seq, id, topic, key, type, payload, headers, time_ms, bytes)
    select lane, shard, seq, id, topic, key, type, payload, headers::jsonb, time_ms, bytes from input order by ord
    on conflict (lane, id) do nothing returning lane
  )
  select (select count(*) from held)::int as held, (select count(*) from keys)::int as keys,
         (select count(*) from records)::int as records`

/** Parks the records, in order. Throws LEASE_LOST, having written nothing more, when a shard has another owner. */
export async function park(sql: Sql, schema: string, lease: FencedLease, refused: readonly Refused[]): Promise<Parked> {
  const text = parkSql(quoteIdentifier(schema))
  let keys = 0
  let records = 0
  for (let from = 0; from < refused.length;) {
    let bytes = 0
    let to = from
    while (to < refused.length && to - from < MAX_ROWS && (to === from || bytes < MAX_BYTES)) {
      bytes += sizeOf((refused[to++] as Refused).message)
    }
    const { rows } = await sql.query(text, parameters(lease, refused.slice(from, to)))
    const written = rows[0] as Parked & { readonly held: number }
    if (written.held !== 1) throw leaseLost()
    keys += written.keys
    records += written.records
    from = to
  }
  return { keys, records }
}

/** Key, headers and payload, bytes. */
export function sizeOf({ headers, key, payload }: OutgoingMessage): number {
  let bytes = payload.length + (key === null ? 0 : Buffer.byteLength(key))
  for (const name in headers) bytes += name.length + (headers[name] as string).length
  return bytes
}

function parameters(lease: FencedLease, refused: readonly Refused[]): unknown[] {
  const messages = refused.map((one) => one.message)
  const shards = messages.map(shardOf)
  let start = 1 // SQL counts from 1
  const starts = messages.map(({ payload }) => {
    const at = start
    start += payload.length
    return at
  })
  return [
    ...fenceParameters(lease, shards),
    Buffer.concat(messages.map((one) => one.payload)),
    messages.map(laneOf),
    shards,
    messages.map((one) => one.seq),
    messages.map((one) => one.id),
    messages.map((one) => one.topic),
    messages.map((one) => one.key),
    messages.map((one) => one.type),
    messages.map((one) => JSON.stringify(one.headers, storable)),
    messages.map((one) => Math.trunc(one.timeMs)),
    starts,
    messages.map((one) => one.payload.length),
    messages.map(sizeOf),
    refused.map((one) => one.reason),
    refused.map((one) => one.error.replaceAll('\0', '').slice(0, MAX_ERROR)),
  ]
}

/** Headers that never were in the database may hold what `jsonb` refuses: a NUL, half of a surrogate pair. */
function storable(_name: string, value: unknown): unknown {
  return typeof value === 'string' ? value.toWellFormed().replaceAll('\0', '\u{fffd}') : value
}
