import type { Pool } from 'pg'
import type { Broker } from '../../brokers/broker.ts'
import { createConsumer } from '../../consumer/create-consumer.ts'
import type { Consumer } from '../../consumer/consumer.ts'
import type { PlacedOrder } from './shop.ts'

// Nothing here keeps an order from being billed twice but the inbox: there is no unique index on order_id.
const SCHEMA = `
create table account (customer_id integer primary key, owed_cents bigint not null);
create table invoice (
  n bigint generated always as identity primary key,
  order_id bigint not null,
  customer_id integer not null,
  version integer not null,
  cents integer not null
);`

// The account's row is locked first, so that n is the order in which the effects of one customer commit.
const BILL = `
with debtor as (
  insert into account as a (customer_id, owed_cents) values ($2, $4)
  on conflict (customer_id) do update set owed_cents = a.owed_cents + excluded.owed_cents
  returning customer_id
)
insert into invoice (order_id, customer_id, version, cents) select $1, customer_id, $3, $4 from debtor`

/** Makes the tables of the billing service. */
export async function prepareBilling(pool: Pool): Promise<void> {
  await pool.query(SCHEMA)
}

/** The billing service: one invoice for each order, in the transaction of the inbox. */
export function createBilling(options: {
  readonly broker: Broker
  readonly group: string
  readonly pool: Pool
  readonly topic: string
}): Consumer {
  return createConsumer({
    broker: options.broker,
    group: options.group,
    handle: async (message, { tx }) => {
      const { cents, customerId, orderId, version } = message.json<PlacedOrder>()
      await tx.query({ name: 'bill', text: BILL, values: [orderId, customerId, version, cents] })
    },
    inbox: { postgres: options.pool },
    topics: [options.topic],
  })
}
