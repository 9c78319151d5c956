/**
 * Parking, as an operator sees it: what is parked, and requests to replay or discard it. A request is a mark on the
 * rows; the relay that owns the shard carries it out, so that the order of the key holds (parking-owner.ts).
 */
import { MillraceError } from '../../core/errors.ts'
import type { Headers } from '../../core/message.ts'
import { OptionCheck } from '../../core/options.ts'
import { resolveSchemas } from '../../postgres/schemas.ts'
import { type SchemaNames, type Sql, quoteIdentifier } from '../../postgres/sql.ts'
import { type ParkedSelection, conditionOf } from './selection.ts'

export type { ParkedSelection } from './selection.ts'

/** Where the parked events are. */
export interface ParkingOptions {
  /** The outbox's database. */
  readonly postgres: Sql
  /** The names of the schemas. Default: outbox and inbox. */
  readonly schemas?: Partial<SchemaNames>
}

/** How much of the list. */
export interface ListOptions extends Omit<ParkedSelection, 'all'> {
  /** Goes on after this `n`: the last of the page before. Default: from the beginning. */
  readonly after?: string
  /** At most so many, up to 1000. Default: 100. */
  readonly limit?: number
}

/** How many. */
export interface ParkedCount {
  /** Keys, and events without one. */
  readonly keys: number
  readonly records: number
}

/** A parked event, without what it says. */
export interface ParkedEvent {
  /** Its place in the list; rises along every key. */
  readonly n: string
  readonly id: string
  readonly topic: string
  readonly key: string | null
  readonly type: string
  /** Its position in the outbox. */
  readonly seq: string
  /** Key, headers and payload, bytes. */
  readonly bytes: number
  readonly parkedAt: Date
  /**
   * Why it is parked: the broker refuses it for good (`poison`), the relay died of it (`crash`), or it waits behind
   * another of its key (`behind`).
   */
  readonly reason: 'poison' | 'crash' | 'behind'
  /** What the broker said; '' for one that waits behind another. */
  readonly error: string
  /** How often the first event of the key was refused. */
  readonly attempts: number
  /** What was asked of it and is not done yet. */
  readonly asked: 'replay' | 'discard' | null
}

/** A parked event with what it says. */
export interface ParkedEventDetail extends ParkedEvent {
  readonly headers: Headers
  /** Only where it was asked for. */
  readonly payload?: Buffer
}

/** The parked events of an outbox. */
export interface Parking {
  /** The events, by their place, a page at a time. */
  list(options?: ListOptions): Promise<readonly ParkedEvent[]>
  /** One event, with its headers, and with its payload when that is asked for; undefined when it is not parked. */
  show(id: string, options?: { readonly payload?: boolean }): Promise<ParkedEventDetail | undefined>
  /** How many events match, and how many keys they are of. */
  count(selection: ParkedSelection): Promise<ParkedCount>
  /** How many a replay of this selection would publish: whole keys. */
  countReplay(selection: ParkedSelection): Promise<ParkedCount>
  /**
   * Asks the relay to publish the keys of these events: all that is parked of each, in order, and then what follows. It
   * begins within about a second. A key whose first event is refused again stays parked, with the new error.
   *
   * @example
   * await parking.replay({ topic: 'orders' }) // the topic is there now
   */
  replay(selection: ParkedSelection): Promise<ParkedCount>
  /**
   * Asks the relay to give these events up, for a reason that is kept in `parked_discard` with who said so. The other
   * events of their keys stay parked until they are replayed.
   *
   * @param by Who wants it. Default: the database's user.
   */
  discard(selection: ParkedSelection, reason: string, by?: string): Promise<ParkedCount>
}

/** Lanes in one request. */
const LANES_AT_ONCE = 1000

const MAX_REASON = 2000

/**
 * Makes a view of the parked events. It holds no connection.
 *
 * @example
 * const parking = createParking({ postgres: pool })
 * for (const event of await parking.list({ topic: 'orders' })) console.log(event.id, event.error)
 * await parking.replay({ key: 'order-7' })
 */
export function createParking(options: ParkingOptions): Parking {
  const check = new OptionCheck('createParking', options, ['postgres', 'schemas'])
  check.required('postgres', 'a pg Pool')
  check.done()
  return new SqlParking(options.postgres, quoteIdentifier(resolveSchemas(options.schemas).outbox))
}

class SqlParking implements Parking {
  readonly #sql: Sql
  readonly #schema: string

  constructor(sql: Sql, schema: string) {
    this.#sql = sql
    this.#schema = schema
  }

  // Uses parked_record_pkey; with a filter parked_record_id or parked_record_lane_n, or filters what it reads.
  async list({ after = '0', limit = 100, ...filter }: ListOptions = {}): Promise<readonly ParkedEvent[]> {
    const options = { after, limit }
    const check = new OptionCheck('list', options, ['after', 'limit'])
    check.integer('limit', 1, 1000)
    check.satisfies('after', (value) => /^\d{1,18}$/.test(String(value)), 'the n of an event')
    check.done()
    const { parameters, record } = conditionOf(this.#schema, { all: true, ...filter }, 3)
    const { rows } = await this.#sql.query(
      `${this.#select('')} where ${record} and r.n > $1::bigint order by r.n limit $2`,
      [after, limit, ...parameters],
    )
    return rows as ParkedEvent[]
  }

  async show(
    id: string,
    { payload = false }: { readonly payload?: boolean } = {},
  ): Promise<ParkedEventDetail | undefined> {
    const { parameters, record } = conditionOf(this.#schema, { id }, 1)
    const more = `, r.headers${payload ? ', r.payload' : ''}`
    const { rows } = await this.#sql.query(`${this.#select(more)} where ${record} order by r.n limit 1`, [
      ...parameters,
    ])
    return (rows as ParkedEventDetail[])[0]
  }

  async count(selection: ParkedSelection): Promise<ParkedCount> {
    const { parameters, record } = conditionOf(this.#schema, selection, 1)
    return this.#counted(`where ${record}`, parameters)
  }

  async countReplay(selection: ParkedSelection): Promise<ParkedCount> {
    const { lane, parameters } = conditionOf(this.#schema, selection, 1)
    const lanes = `select k.lane from ${this.#schema}.parked_key k where ${lane}`
    return this.#counted(`where r.lane in (${lanes})`, parameters)
  }

  // The lane's row is locked first, as the owner does. Uses parked_key_pkey.
  replay(selection: ParkedSelection): Promise<ParkedCount> {
    const { lane, parameters } = conditionOf(this.#schema, selection, 2)
    return this.#request(
      `with chosen as materialized (${this.#chosen(lane)}),
       asked as (update ${this.#schema}.parked_key k set replay = true, asked_at = coalesce(k.asked_at, now())
         from chosen where k.lane = chosen.lane returning k.lane)
       select array(select lane from chosen order by lane) as lanes, (select count(*) from asked)::int as keys,
         (select count(*) from ${this.#schema}.parked_record r join asked on r.lane = asked.lane)::int as records`,
      parameters,
    )
  }

  async discard(selection: ParkedSelection, reason: string, by?: string): Promise<ParkedCount> {
    if (typeof reason !== 'string' || reason.trim() === '' || reason.length > MAX_REASON) {
      throw new MillraceError('CONFIG_INVALID', `say why the events are given up, in at most ${MAX_REASON} characters`)
    }
    const { lane, parameters, record } = conditionOf(this.#schema, selection, 4)
    return this.#request(
      `with chosen as materialized (${this.#chosen(lane)}),
       marked as (
         update ${this.#schema}.parked_record r
         set discard_at = now(), discard_reason = $2, discard_by = coalesce($3::text, current_user)
         from chosen where r.lane = chosen.lane and r.discard_at is null and ${record} returning r.lane),
       asked as (update ${this.#schema}.parked_key k set asked_at = coalesce(k.asked_at, now())
         from chosen where k.lane = chosen.lane and k.lane in (select lane from marked) returning k.lane)
       select array(select lane from chosen order by lane) as lanes, (select count(*) from asked)::int as keys,
         (select count(*) from marked)::int as records`,
      [reason, by ?? null, ...parameters],
    )
  }

  #chosen(condition: string): string {
    return `select k.lane from ${this.#schema}.parked_key k where ($1::uuid is null or k.lane > $1::uuid)
      and ${condition} order by k.lane limit ${LANES_AT_ONCE} for update of k`
  }

  /** Runs the statement for so many lanes at a time, each in a transaction of its own. */
  async #request(text: string, parameters: readonly unknown[]): Promise<ParkedCount> {
    let after: string | null = null
    let keys = 0
    let records = 0
    for (;;) {
      const { rows } = await this.#sql.query(text, [after, ...parameters])
      const row = rows[0] as ParkedCount & { readonly lanes: readonly string[] }
      keys += row.keys
      records += row.records
      const last = row.lanes.at(-1)
      if (last === undefined || row.lanes.length < LANES_AT_ONCE) return { keys, records }
      after = last
    }
  }

  async #counted(where: string, parameters: readonly unknown[]): Promise<ParkedCount> {
    const { rows } = await this.#sql.query(
      `select count(distinct r.lane)::int as keys, count(*)::int as records from ${this.#schema}.parked_record r ${where}`,
      [...parameters],
    )
    return rows[0] as ParkedCount
  }

  #select(more: string): string {
    return `
      select r.n::text as n, r.id, r.topic, r.key, r.type, r.seq::text as seq, r.bytes, r.parked_at as "parkedAt",
        case when k.id = r.id then k.reason else 'behind' end as reason,
        case when k.id = r.id then k.error else '' end as error, k.attempts,
        case when r.discard_at is not null then 'discard' when k.replay then 'replay' end as asked ${more}
      from ${this.#schema}.parked_record r join ${this.#schema}.parked_key k on k.lane = r.lane`
  }
}
