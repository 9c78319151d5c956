/** The README's quickstart, run by test/docs/quickstart.test.ts: an order and its event, a relay, an invoice. */
import { drizzle } from 'drizzle-orm/node-postgres'
import { integer, pgTable, text } from 'drizzle-orm/pg-core'
import pg from 'pg'
import { createConsumer, createOutbox, createRelay, migrate } from '../src/index.ts'
import { memory } from '../src/brokers/memory/index.ts' // or kafkajs({ brokers }), or nats({ servers })

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL })
const broker = memory()
await Promise.all([migrate(pool), broker.admin.createTopic('orders')])

// The orders service: the event is part of the order's transaction.
const orders = pgTable('orders', { id: text().primaryKey(), total: integer().notNull() })
const outbox = createOutbox()
await drizzle(pool).transaction(async (tx) => {
  const [order] = await tx.insert(orders).values({ id: 'o-1', total: 42 }).returning()
  await outbox.append(tx, { topic: 'orders', key: 'o-1', type: 'order.placed', payload: order })
})

// The relay: in process as here, or `npx millrace relay`. (Keep what createRelay returns, to stop it.)
await createRelay({ postgres: pool, broker }).start()

// The billing service: the invoice and the inbox row are one transaction.
await createConsumer({
  broker,
  group: 'billing',
  topics: ['orders'],
  inbox: { postgres: pool },
  handle: async (message, { tx }) => {
    const order = message.json<{ id: string; total: number }>()
    await tx.query('insert into invoices (order_id, total) values ($1, $2)', [order.id, order.total])
  },
}).start()
