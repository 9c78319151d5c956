import type { OutgoingMessage } from '../../core/message.ts'
import { type Sql, quoteIdentifier } from '../../postgres/sql.ts'
import { laneOf } from './lane.ts'

/** The most lanes that are remembered, and the most characters of their keys; beyond that each page asks the database. */
const MAX_LANES = 20_000
const MAX_CHARACTERS = 4_000_000

// Uses parked_key_shard. One row more than is remembered tells that there are too many.
const loadSql = (schema: string): string => `
  select key, id from ${schema}.parked_key where shard = any($1::smallint[]) limit ${MAX_LANES + 1}`

/** Records are counted up to here when a term begins: a count must not hold the lease's connection for long. */
const MAX_COUNTED = 1_000_000

// Each counts by an index alone: parked_key_shard, parked_record_shard.
const countSql = (schema: string): string => `
  select (select count(*) from ${schema}.parked_key where shard = any($1::smallint[]))::int as keys,
         (select count(*) from (select from ${schema}.parked_record where shard = any($1::smallint[])
            limit ${MAX_COUNTED}) counted)::int as records`

// Uses parked_key_pkey.
const amongSql = (schema: string): string => `select lane from ${schema}.parked_key where lane = any($1::uuid[])`

/** Which keys of the held shards are parked, and how many records: what the relay asks of each page. */
export class ParkedSet {
  readonly #schema: string
  readonly #sql: Sql
  readonly #maxLanes: number
  readonly #keys = new Set<string>()
  readonly #ids = new Set<string>()
  #characters = 0
  /** Not all fit into memory. */
  #overflow = false
  #lanes = 0
  #records = 0

  constructor(sql: Sql, schema: string, maxLanes: number = MAX_LANES) {
    this.#schema = quoteIdentifier(schema)
    this.#sql = sql
    this.#maxLanes = Math.min(maxLanes, MAX_LANES)
  }

  /** How many lanes are parked: keys, and events without one. */
  get lanes(): number {
    return this.#lanes
  }

  get records(): number {
    return this.#records
  }

  /** Reads what is parked in these shards, and forgets the rest. */
  async load(shards: readonly number[]): Promise<void> {
    const counted = await this.#sql.query(countSql(this.#schema), [shards])
    const { keys, records } = counted.rows[0] as { keys: number; records: number }
    const rows =
      keys === 0 || keys > this.#maxLanes ? [] : (await this.#sql.query(loadSql(this.#schema), [shards])).rows
    this.#forget(keys > this.#maxLanes)
    this.#lanes = keys
    this.#records = records
    for (const row of rows as { key: string | null; id: string }[]) this.#remember(row)
  }

  /** These lanes are parked from now on; so many of them, and of the records, are new. */
  added(messages: Iterable<OutgoingMessage>, keys: number, records: number): void {
    this.#lanes += keys
    this.#records += records
    for (const message of messages) this.#remember(message)
  }

  /** So many records are gone, and these lanes with them. */
  removed(lanes: readonly { readonly key: string | null; readonly id: string }[], records: number): void {
    this.#records = Math.max(0, this.#records - records)
    this.#lanes -= lanes.length
    for (const { key, id } of lanes) {
      if (key === null) this.#ids.delete(id)
      else if (this.#keys.delete(key)) this.#characters -= key.length
    }
    if (this.#lanes <= 0) this.#forget(false)
  }

  /** Which messages of a page belong to a parked lane. */
  async among(messages: readonly OutgoingMessage[]): Promise<ReadonlySet<OutgoingMessage>> {
    const found = new Set<OutgoingMessage>()
    if (!this.#overflow) {
      for (const message of messages) {
        if (message.key === null ? this.#ids.has(message.id) : this.#keys.has(message.key)) found.add(message)
      }
      return found
    }
    const byLane = new Map<string, OutgoingMessage[]>()
    for (const message of messages) {
      const lane = laneOf(message)
      const others = byLane.get(lane)
      if (others === undefined) byLane.set(lane, [message])
      else others.push(message)
    }
    const { rows } = await this.#sql.query(amongSql(this.#schema), [[...byLane.keys()]])
    for (const { lane } of rows as { lane: string }[]) for (const message of byLane.get(lane) ?? []) found.add(message)
    return found
  }

  #remember({ key, id }: { readonly key: string | null; readonly id: string }): void {
    if (this.#overflow) return
    if (key === null) this.#ids.add(id)
    else if (!this.#keys.has(key)) {
      this.#keys.add(key)
      this.#characters += key.length
    }
    if (this.#keys.size + this.#ids.size > this.#maxLanes || this.#characters > MAX_CHARACTERS) this.#forget(true)
  }

  #forget(overflow: boolean): void {
    this.#keys.clear()
    this.#ids.clear()
    this.#characters = 0
    this.#overflow = overflow
  }
}
