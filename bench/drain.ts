/**
 * One drain of a backlog in a process of its own, so that its time and memory are its own. Prints one line of JSON.
 *
 *     node bench/drain.ts <database-url> cursor|null|kafka://…|nats://… <topic> <records>
 */
import pg from 'pg'
import type { Broker } from '../src/brokers/broker.ts'
import { createBrokerFromUrl } from '../src/daemon/broker-url.ts'
import { createRelay } from '../src/index.ts'

/** What a drain took. */
export interface Drain {
  readonly seconds: number
  /** Processor seconds of the draining process, user and system. */
  readonly cpuSeconds: number
  /** The most memory it ever held, MiB. */
  readonly maxRssMib: number
}

const [databaseUrl, target, topic, count] = process.argv.slice(2) as [string, string, string, string]
const records = Number(count)
const pool = new pg.Pool({ connectionString: databaseUrl, max: 4 })
const cpu = process.cpuUsage()
const seconds = target === 'cursor' ? await readByCursor() : await relay(await brokerOf(target))
const { user, system } = process.cpuUsage(cpu)
const drain: Drain = { seconds, cpuSeconds: (user + system) / 1e6, maxRssMib: process.resourceUsage().maxRSS / 1024 }
process.stdout.write(`${JSON.stringify(drain)}\n`)
await pool.end()

/** The bare minimum: the same rows and columns, a page at a time after the last seq, and nothing done with them. */
async function readByCursor(): Promise<number> {
  const client = await pool.connect()
  // As the relay sets its own reader.
  await client.query('set enable_seqscan = off; set enable_bitmapscan = off; set jit = off')
  const started = performance.now()
  let after = '0'
  for (let read = 0; read < records;) {
    const { rows } = await client.query<{ seq: string }>({
      name: 'cursor',
      text: `select seq, id, topic, key, type, payload, headers from outbox.record where seq > $1 order by seq limit 1000`,
      values: [after],
    })
    read += rows.length
    after = rows[rows.length - 1]?.seq ?? after
  }
  client.release()
  return (performance.now() - started) / 1000
}

async function relay(broker: Broker): Promise<number> {
  const running = createRelay({ broker, postgres: pool })
  const started = performance.now()
  await running.start()
  while (running.stats().published < records) await new Promise((resolve) => setTimeout(resolve, 5))
  const took = (performance.now() - started) / 1000
  await running.stop()
  await broker.close()
  return took
}

async function brokerOf(url: string): Promise<Broker> {
  if (url !== 'null') return createBrokerFromUrl(url)
  const no = (): never => {
    throw new Error(`the null broker only publishes; nobody reads ${topic}`)
  }
  return {
    system: 'null',
    capabilities: { awaitedRevoke: false, dedupeWindowMs: 0, maxMessageBytes: undefined, partitions: false },
    publisher: () => ({ start: async () => {}, publish: async () => [], close: async () => {} }),
    subscription: no,
    admin: { createTopic: no, deleteTopic: no },
    close: async () => {},
  }
}
