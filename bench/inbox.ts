/**
 * Effects per second through the consumer and its inbox, against the naive way: one connection; begin, inbox row,
 * effect, commit; one message after the other. Both write the same rows to the same database; the messages lie ready
 * in the memory broker.
 */
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { memory } from '../src/brokers/memory/index.ts'
import { createConsumer } from '../src/consumer/index.ts'
import { newId } from '../src/core/ids.ts'
import { KeyLanes, Watermark, type Linked } from '../src/flow/index.ts'
import { migrate } from '../src/postgres/index.ts'

/** What was measured. */
export interface InboxBenchmark {
  /** Effects per second, one transaction at a time. */
  readonly naivePerSecond: number
  /** Effects per second through a consumer with its defaults. */
  readonly consumerPerSecond: number
  readonly ratio: number
  /** Messages per second through key lanes and watermark, nothing else: offered, taken in groups of 64, settled. */
  readonly schedulerPerSecond: number
}

/** What to measure with. */
export interface InboxBenchmarkOptions {
  readonly keys?: number
  readonly messages?: number
  readonly naiveMessages?: number
  readonly partitions?: number
  readonly payloadBytes?: number
}

const EFFECT = 'insert into bench_effect (id, key, body) values ($1, $2, $3)'

/** Measures in the given database, in a schema of its own that is dropped afterwards. */
export async function benchInbox(databaseUrl: string, options: InboxBenchmarkOptions = {}): Promise<InboxBenchmark> {
  const { keys = 1000, messages = 40_000, naiveMessages = 3000, partitions = 4, payloadBytes = 1024 } = options
  const schema = `bench_${randomUUID().slice(0, 8)}`
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 8, options: `-c search_path=${schema},public` })
  const schemas = { inbox: `${schema}_inbox`, outbox: `${schema}_outbox` }
  try {
    await pool.query(`create schema ${schema}`)
    await pool.query('create table bench_effect (id uuid not null, key text not null, body bytea not null)')
    await migrate(pool, { schemas })
    const payload = Buffer.alloc(payloadBytes, 0x61)
    const naivePerSecond = await naive(pool, schemas.inbox, naiveMessages, keys, payload)
    const consumerPerSecond = await grouped(pool, schemas, messages, keys, payload, partitions)
    return {
      consumerPerSecond,
      naivePerSecond,
      ratio: consumerPerSecond / naivePerSecond,
      schedulerPerSecond: scheduler(),
    }
  } finally {
    await pool.query(
      `drop schema if exists ${schema} cascade; drop schema if exists ${schemas.inbox} cascade; ` +
        `drop schema if exists ${schemas.outbox} cascade`,
    )
    await pool.end()
  }
}

async function naive(pool: pg.Pool, inbox: string, messages: number, keys: number, payload: Buffer): Promise<number> {
  const client = await pool.connect()
  try {
    const startedAt = performance.now()
    for (let i = 0; i < messages; i++) {
      const id = newId()
      await client.query('begin')
      await client.query(
        `insert into ${inbox}.message (bucket, consumer, id) values (0, 'naive', $1) on conflict do nothing`,
        [id],
      )
      await client.query(EFFECT, [id, `key-${i % keys}`, payload])
      await client.query('commit')
    }
    return perSecond(messages, startedAt)
  } finally {
    client.release()
  }
}

async function grouped(
  pool: pg.Pool,
  schemas: { inbox: string; outbox: string },
  messages: number,
  keys: number,
  payload: Buffer,
  partitions: number,
): Promise<number> {
  const broker = memory()
  await broker.admin.createTopic('bench', { partitions })
  const publisher = broker.publisher()
  await publisher.start()
  for (let i = 0; i < messages; i += 1000) {
    const batch = Array.from({ length: Math.min(1000, messages - i) }, (_, j) => ({
      headers: {},
      id: newId(),
      key: `key-${(i + j) % keys}`,
      payload,
      seq: String(i + j),
      timeMs: Date.now(),
      topic: 'bench',
      type: 'bench.made',
    }))
    await publisher.publish(batch)
  }
  await publisher.close()
  let seen = 0
  const enough = Promise.withResolvers<void>()
  const consumer = createConsumer({
    broker,
    group: 'bench',
    handle: async (message, { tx }) => {
      await tx.query(EFFECT, [message.id, message.key, message.payload])
      if (++seen >= messages) enough.resolve()
    },
    inbox: { postgres: pool },
    schemas,
    topics: ['bench'],
  })
  const startedAt = performance.now()
  await consumer.start()
  await Promise.race([enough.promise, consumer.stopped])
  await consumer.stop()
  const rate = perSecond(messages, startedAt)
  await broker.close()
  const { rows } = await pool.query<{ count: number }>(
    `select count(*)::int as count from bench_effect e join ${schemas.inbox}.message m using (id) where consumer = 'bench'`,
  )
  if (rows[0]?.count !== messages) throw new Error(`${messages} messages had ${rows[0]?.count} effects`)
  return rate
}

interface Item extends Linked<Item> {
  readonly slot: number
}

function scheduler(): number {
  const messages = 3_000_000
  const keys = Array.from({ length: 1000 }, (_, i) => `customer-${i}`)
  const lanes = new KeyLanes<Item>()
  const source = lanes.source()
  const watermark = new Watermark()
  const startedAt = performance.now()
  for (let position = 0; position < messages;) {
    for (let i = 0; i < 256; i++, position++) {
      lanes.offer(source, keys[(position * 7919) % 1000] as string, {
        next: undefined,
        slot: watermark.add(BigInt(position)),
      })
    }
    while (lanes.ready > 0) {
      for (const lane of lanes.take(64)) {
        let item = lane.head
        for (let i = 0; i < lane.taken && item !== undefined; i++, item = item.next) watermark.done(item.slot)
        lanes.settle(lane, lane.taken)
      }
    }
  }
  return perSecond(messages, startedAt)
}

function perSecond(count: number, startedAt: number): number {
  return count / ((performance.now() - startedAt) / 1000)
}
