import type { Pool, PoolClient } from 'pg'
import { delay, systemClock } from '../../core/clock.ts'
import { createOutbox } from '../../producer/outbox.ts'

/** What the shop tells the world about an order. */
export interface PlacedOrder {
  readonly cents: number
  readonly customerId: number
  readonly orderId: string
  /** Which order of its customer it is, from 1. */
  readonly version: number
}

/** How many transactions the shop has open at a time. */
export const WRITERS = 8
/** One transaction in this many rolls back. */
const ROLLS_BACK = 10
/** One order in this many stays open long. */
const COMMITS_LATE = 200
const LATE_MIN_MS = 200
const LATE_MAX_MS = 1000

const CUSTOMERS = 1000

// The number of an order that rolls back is gone for ever: the verdict counts the gaps.
const SCHEMA = `
create sequence order_number;
create table customer (id integer primary key, version integer not null default 0);
create table placed_order (
  id bigint primary key default nextval('order_number'),
  customer_id integer not null,
  version integer not null,
  cents integer not null
);
insert into customer select generate_series(1, ${CUSTOMERS});`

// The customer's row is locked first, so that versions are the order of the commits.
const PLACE = `
with buyer as (update customer set version = version + 1 where id = $1 returning id, version)
insert into placed_order (customer_id, version, cents) select id, version, $2 from buyer
returning id as "orderId", customer_id as "customerId", version, cents`

/** Makes the shop's tables. */
export async function prepareShop(pool: Pool): Promise<void> {
  await pool.query(SCHEMA)
}

/** Eight writers that place orders, each order and its event in one transaction. */
export class Shop {
  committed = 0
  readonly #options: { readonly orders: number; readonly pool: Pool; readonly topic: string }
  readonly #outbox = createOutbox<{ 'order.placed': PlacedOrder }>()
  readonly #stop = new AbortController()
  #allowed = 0
  #begun = 0
  #open = 0
  #selling: Promise<void> | undefined
  #wake = Promise.withResolvers<void>()

  constructor(options: { readonly orders: number; readonly pool: Pool; readonly topic: string }) {
    this.#options = options
  }

  /** Lets the shop place orders up to this many in all. */
  allow(orders: number): void {
    this.#allowed = Math.min(orders, this.#options.orders)
    this.#wake.resolve()
    this.#wake = Promise.withResolvers()
  }

  /** Places all orders; resolves when the last one is committed. */
  start(): Promise<void> {
    const writers = Array.from({ length: WRITERS }, () => this.#write())
    return (this.#selling ??= Promise.all(writers).then(() => undefined))
  }

  /** Rolls back what is open and places no more. */
  async stop(): Promise<void> {
    this.#stop.abort()
    this.#wake.resolve()
    await this.#selling?.catch(() => {})
  }

  async #write(): Promise<void> {
    const client = await this.#options.pool.connect()
    // A connection that breaks also fails the statement that needs it.
    const ignore = (): void => undefined
    client.on('error', ignore)
    let broken = true
    try {
      while (await this.#mayBegin()) await this.#placeOrder(client)
      broken = false
    } finally {
      client.removeListener('error', ignore)
      client.release(broken)
    }
  }

  /** Takes the right to place one more order, as soon as there is one; false when there are no more. */
  async #mayBegin(): Promise<boolean> {
    while (!this.#stop.signal.aborted && this.#begun < this.#options.orders) {
      if (this.#begun < this.#allowed) {
        this.#begun++
        return true
      }
      await this.#wake.promise
    }
    return false
  }

  async #placeOrder(client: PoolClient): Promise<void> {
    const order = this.#begun
    while (++this.#open % ROLLS_BACK === 0) await this.#transaction(client, 'rollback')
    const late = order % COMMITS_LATE === 0
    await this.#transaction(
      client,
      'commit',
      late ? LATE_MIN_MS + systemClock.random() * (LATE_MAX_MS - LATE_MIN_MS) : 0,
    )
  }

  async #transaction(client: PoolClient, end: 'commit' | 'rollback', openForMs = 0): Promise<void> {
    const { topic } = this.#options
    const customer = 1 + Math.floor(systemClock.random() * CUSTOMERS)
    const cents = 100 + Math.floor(systemClock.random() * 100_000)
    await client.query('begin')
    const { rows } = await client.query<PlacedOrder>({ name: 'place', text: PLACE, values: [customer, cents] })
    const payload = rows[0] as PlacedOrder
    await this.#outbox.append(client, { key: String(customer), payload, topic, type: 'order.placed' })
    if (openForMs > 0) await delay(systemClock, openForMs, this.#stop.signal)
    const last = this.#stop.signal.aborted ? 'rollback' : end
    await client.query(last)
    if (last === 'commit') this.committed++
  }
}
