/** A backlog in a database of its own, drained again and again by a process of its own, under the daemon's flags. */
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { DAEMON_NODE_FLAGS } from '../src/cli/node-flags.ts'
import { createBrokerFromUrl } from '../src/daemon/broker-url.ts'
import { migrate } from '../src/index.ts'
import type { Drain } from './drain.ts'

/** Records of 1000 bytes over a thousand keys. */
export interface Backlog {
  readonly records: number
  readonly databaseUrl: string
  /** Drains all of it into the target, from the beginning. */
  drain(target: string): Promise<Drain>
  drop(): Promise<void>
}

const PER_TRANSACTION = 100_000

/** Makes a database with so many committed records in its outbox. */
export async function makeBacklog(serverUrl: string, records: number): Promise<Backlog> {
  const name = `bench_${randomUUID().slice(0, 8)}`
  const topic = `bench-${randomUUID()}`
  const admin = new pg.Client({ connectionString: serverUrl })
  await admin.connect()
  await admin.query(`create database ${name}`)
  const databaseUrl = Object.assign(new URL(serverUrl), { pathname: `/${name}` }).href
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 1 })
  await migrate(pool)
  for (let made = 0; made < records; made += PER_TRANSACTION) {
    await pool.query(
      `insert into outbox.record (shard, id, topic, key, type, payload, headers)
       select outbox.shard_of('customer-' || n % 1000), outbox.new_id(), $2, 'customer-' || n % 1000, 'order.placed',
              decode(repeat('5a', 1000), 'hex'), '{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
       from generate_series(1, $1::int) n`,
      [Math.min(PER_TRANSACTION, records - made), topic],
    )
  }
  // As a database that is looked after: otherwise the first drain pays for the hint bits of all of them.
  await pool.query('vacuum (analyze) outbox.record')
  return {
    records,
    databaseUrl,
    async drain(target) {
      await pool.query('truncate outbox.checkpoint')
      const broker = /^(kafka|nats):/.test(target) ? await createBrokerFromUrl(target) : undefined
      await broker?.admin.createTopic(topic, { partitions: 12 })
      try {
        const script = path.join(import.meta.dirname, 'drain.ts')
        const args = [
          ...DAEMON_NODE_FLAGS,
          '--disable-warning=TimeoutNegativeWarning',
          script,
          databaseUrl,
          target,
          topic,
          String(records),
        ]
        const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 600_000 })
        return JSON.parse(stdout) as Drain
      } finally {
        await broker?.admin.deleteTopic(topic)
        await broker?.close()
      }
    },
    async drop() {
      await pool.end()
      await admin.query(`drop database ${name} with (force)`)
      await admin.end()
    },
  }
}
