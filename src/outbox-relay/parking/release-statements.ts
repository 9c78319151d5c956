/**
 * What the owner does to lanes that somebody asked something of: looks which, drops what is marked for discard, reads
 * what is to be published again, and settles what became of that. Each write is one fenced statement. The rows of a lane
 * are touched only under the lock of its row in parked_key, which a request takes first as well; a lane that somebody is
 * at is left for the next look, so that no session left open by hand holds the relay.
 */
import { timeOfId } from '../../core/ids.ts'
import type { Headers, OutgoingMessage } from '../../core/message.ts'
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'
import { leaseLost } from '../lease.ts'
import { type FencedLease, fenceParameters, heldSql } from './fenced.ts'

/** A lane of which something was asked. */
export interface AskedLane {
  readonly lane: string
  readonly shard: number
  readonly reason: 'poison' | 'crash' | 'behind'
  /** The rest is to be published; else only marked records are to be dropped. */
  readonly replay: boolean
  /** Records are marked for discard. */
  readonly marked: boolean
}

/** A lane that was freed: its key, or its one event. */
export interface FreedLane {
  readonly key: string | null
  readonly id: string
}

/** A parked record on its way out. */
export interface ParkedMessage {
  readonly n: string
  readonly lane: string
  readonly bytes: number
  readonly message: OutgoingMessage
}

/** A lane whose first record was refused again. */
export interface RefusedAgain {
  readonly lane: string
  readonly id: string
  readonly topic: string
  readonly error: string
}

/** Discards in one statement. */
const MAX_DISCARDS = 1000

// Uses parked_key_asked and, for the marks, parked_record_discard.
const askedSql = (schema: string): string => `
  select k.lane, k.shard, k.reason, k.replay, exists (select from ${schema}.parked_record r
           where r.lane = k.lane and r.discard_at is not null) as marked
  from ${schema}.parked_key k where k.asked_at is not null and k.shard = any($1::smallint[])
  order by k.asked_at limit $2 for no key update of k skip locked`

/**
 * The lanes of these shards of which something was asked, the oldest first; not those that somebody is at, because what
 * was published of them could not be deleted and would be published at each look.
 */
export async function askedLanes(
  sql: Sql,
  schema: string,
  shards: readonly number[],
  limit: number,
): Promise<readonly AskedLane[]> {
  const { rows } = await sql.query(askedSql(quoteIdentifier(schema)), [shards, limit])
  return rows as AskedLane[]
}

const lanesSql = (schema: string): string => `
  lanes as materialized (
    select k.lane from held, ${schema}.parked_key k where k.lane = any($4::uuid[]) order by k.lane
    for update of k skip locked
  )`

// A lane whose last record goes is freed by the same statement: only its owner adds records to it.
const freedSql = (schema: string, except: string): string => `
  freed as (
    delete from ${schema}.parked_key k using lanes where k.lane = lanes.lane ${except}
      and not exists (select from ${schema}.parked_record r where r.lane = k.lane and r.n not in (select n from gone))
    returning k.key, k.id
  )`

// Uses parked_record_discard, parked_record_pkey and parked_record_lane_n.
const discardSql = (schema: string): string => `
  with ${heldSql(schema)}, ${lanesSql(schema)},
  gone as (
    delete from ${schema}.parked_record where n = any (array(
      select r.n from ${schema}.parked_record r join lanes on r.lane = lanes.lane
      where r.discard_at is not null order by r.n limit ${MAX_DISCARDS} for update of r skip locked))
    returning *
  ), noted as (
    insert into ${schema}.parked_discard
      (shard, seq, id, topic, key, type, bytes, parked_at, discarded_at, discarded_by, reason)
    select shard, seq, id, topic, key, type, bytes, parked_at, discard_at, coalesce(discard_by, ''),
           coalesce(discard_reason, '')
    from gone order by n returning id
  ), ${freedSql(schema, '')},
  settled as (
    update ${schema}.parked_key k set
      reason = case when k.id in (select id from gone) then 'behind' else k.reason end,
      error  = case when k.id in (select id from gone) then '' else k.error end,
      asked_at = case when k.replay or exists (select from ${schema}.parked_record r
        where r.lane = k.lane and r.discard_at is not null and r.n not in (select n from gone)) then k.asked_at end
    from lanes where k.lane = lanes.lane
      and exists (select from ${schema}.parked_record r where r.lane = k.lane and r.n not in (select n from gone))
    returning k.lane
  )
  select (select count(*) from held)::int as held, array(select id::text from noted) as ids,
         (select coalesce(jsonb_agg(jsonb_build_object('key', key, 'id', id)), '[]') from freed) as freed`

/** Drops records that are marked for discard, and notes who wanted it and why. */
export async function discardMarked(
  sql: Sql,
  schema: string,
  lease: FencedLease,
  lanes: readonly AskedLane[],
): Promise<{ readonly ids: readonly string[]; readonly freed: readonly FreedLane[] }> {
  const { rows } = await sql.query(discardSql(quoteIdentifier(schema)), [
    ...fenceParameters(lease, lanes.map(shardOfLane)),
    lanes.map((one) => one.lane),
  ])
  const row = rows[0] as { held: number; ids: string[]; freed: FreedLane[] }
  if (row.held !== 1) throw leaseLost()
  return row
}

// Uses parked_record_lane_n, a bounded scan for each lane.
const sizesSql = (schema: string): string => `
  select r.n::text as n, r.bytes from unnest($1::uuid[]) with ordinality l (lane, place) cross join lateral (
    select n, bytes from ${schema}.parked_record where lane = l.lane and discard_at is null order by n limit $2) r
  order by l.place, r.n limit $2`

// Uses parked_record_pkey.
const rowsSql = (schema: string): string => `
  select n::text as n, lane, bytes, seq::text as seq, id, topic, key, type, payload, headers, time_ms::text as "timeMs"
  from ${schema}.parked_record where n = any($1::bigint[])`

interface ParkedRow {
  readonly n: string
  readonly lane: string
  readonly bytes: number
  readonly seq: string
  readonly id: string
  readonly topic: string
  readonly key: string | null
  readonly type: string
  readonly payload: Buffer
  readonly headers: Headers
  readonly timeMs: string
}

/** The first records of the lanes, each lane's in order, bounded in count and bytes. */
export async function parkedPage(
  sql: Sql,
  schema: string,
  lanes: readonly string[],
  bounds: { readonly maxBytes: number; readonly maxMessages: number },
): Promise<readonly ParkedMessage[]> {
  const sizes = await sql.query(sizesSql(quoteIdentifier(schema)), [lanes, bounds.maxMessages])
  let bytes = 0
  const wanted: string[] = []
  for (const row of sizes.rows as { n: string; bytes: number }[]) {
    bytes += row.bytes
    if (wanted.length > 0 && bytes > bounds.maxBytes) break
    wanted.push(row.n)
  }
  if (wanted.length === 0) return []
  const { rows } = await sql.query(rowsSql(quoteIdentifier(schema)), [wanted])
  const byN = new Map((rows as ParkedRow[]).map((row) => [row.n, row]))
  return wanted.flatMap((n) => {
    const row = byN.get(n)
    return row === undefined ? [] : [parkedMessage(row)]
  })
}

function parkedMessage(row: ParkedRow): ParkedMessage {
  const { n, lane, bytes, seq, id, topic, key, type, payload, headers, timeMs } = row
  const message = { id, topic, key, type, payload, headers, seq, timeMs: Number(timeMs) || (timeOfId(id) ?? 0) }
  return { n, lane, bytes, message }
}

// Uses parked_key_pkey. The request is used up before the event is sent: one that kills the relay kills it once.
const disarmSql = (schema: string): string => `
  with ${heldSql(schema)}, ${lanesSql(schema)},
  disarmed as (update ${schema}.parked_key k set replay = false, asked_at = null, attempts = k.attempts + 1
    from lanes where k.lane = lanes.lane returning k.lane)
  select (select count(*) from held)::int as held, (select count(*) from disarmed)::int as disarmed`

/** Takes the request of a lane back, before its first record is sent. False when somebody is at the lane. */
export async function disarm(sql: Sql, schema: string, lease: FencedLease, lane: AskedLane): Promise<boolean> {
  const { rows } = await sql.query(disarmSql(quoteIdentifier(schema)), [
    ...fenceParameters(lease, [lane.shard]),
    [lane.lane],
  ])
  const row = rows[0] as { held: number; disarmed: number }
  if (row.held !== 1) throw leaseLost()
  return row.disarmed === 1
}

// Uses parked_record_pkey, parked_key_pkey and parked_record_lane_n.
const settleSql = (schema: string): string => `
  with ${heldSql(schema)}, ${lanesSql(schema)},
  gone as (
    delete from ${schema}.parked_record where n = any (array(
      select r.n from ${schema}.parked_record r join lanes on r.lane = lanes.lane
      where r.n = any($5::bigint[]) for update of r skip locked))
    returning n, id
  ), refused as (
    update ${schema}.parked_key k set reason = 'poison', error = f.error, id = f.id, topic = f.topic, replay = false,
      attempts = k.attempts + case when k.reason = 'crash' then 0 else 1 end,
      asked_at = case when exists (select from ${schema}.parked_record r
        where r.lane = k.lane and r.discard_at is not null) then k.asked_at end
    from lanes join unnest($6::uuid[], $7::uuid[], $8::text[], $9::text[]) f (lane, id, topic, error)
      on lanes.lane = f.lane
    where k.lane = lanes.lane returning k.lane
  ), rearmed as (
    update ${schema}.parked_key k set reason = 'behind', error = '', replay = true, asked_at = now()
    from lanes where k.lane = lanes.lane and k.lane = any($10::uuid[]) and k.lane <> all($6::uuid[])
      and exists (select from ${schema}.parked_record r where r.lane = k.lane and r.n not in (select n from gone))
    returning k.lane
  ), ${freedSql(schema, 'and k.lane <> all($6::uuid[])')}
  select (select count(*) from held)::int as held, (select count(*) from gone)::int as gone,
         (select coalesce(jsonb_agg(jsonb_build_object('key', key, 'id', id)), '[]') from freed) as freed`

/** What became of the records that were sent. */
export interface Settlement {
  readonly lanes: readonly AskedLane[]
  /** Stored by the broker. */
  readonly stored: readonly string[]
  readonly refused: readonly RefusedAgain[]
  /** Lanes whose request was taken back and which go on with what is left. */
  readonly rearmed: readonly string[]
}

/** Deletes what is stored, frees the lanes that are empty, keeps those whose first record was refused again. */
export async function settle(
  sql: Sql,
  schema: string,
  lease: FencedLease,
  { lanes, stored, refused, rearmed }: Settlement,
): Promise<{ readonly gone: number; readonly freed: readonly FreedLane[] }> {
  const { rows } = await sql.query(settleSql(quoteIdentifier(schema)), [
    ...fenceParameters(lease, lanes.map(shardOfLane)),
    lanes.map((one) => one.lane),
    stored,
    refused.map((one) => one.lane),
    refused.map((one) => one.id),
    refused.map((one) => one.topic),
    refused.map((one) => one.error),
    rearmed,
  ])
  const row = rows[0] as { held: number; gone: number; freed: FreedLane[] }
  if (row.held !== 1) throw leaseLost()
  return row
}

function shardOfLane({ shard }: AskedLane): number {
  return shard
}
