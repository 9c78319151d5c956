import type { Pool } from 'pg'
import type { Broker } from '../../brokers/broker.ts'
import { createMemoryBroker, memory, serveMemory } from '../../brokers/memory/index.ts'
import { createBrokerFromUrl } from '../../daemon/broker-url.ts'
import { createPostgresPool } from '../../daemon/postgres-pool.ts'
import { migrate } from '../../postgres/migrator.ts'
import { duplicating } from '../../testing/faults/index.ts'
import { startPostgres } from '../../testing/services/index.ts'
import { prepareBilling } from './billing.ts'
import type { Cleanup } from './cleanup.ts'
import { prepareShop, WRITERS } from './shop.ts'

/** All that the demo works with, started and migrated. */
export interface Stage {
  readonly billing: Pool
  /** As billing sees it: with messages that arrive twice. */
  readonly broker: Broker
  /** As the relay reaches it. */
  readonly brokerUrl: string
  /** How many messages were delivered a second time on purpose, so far. */
  deliveredTwice(): number
  readonly group: string
  readonly shop: Pool
  readonly shopUrl: string
  readonly topic: string
}

const PARTITIONS = 8

/** Starts PostgreSQL and reaches the broker; leaves with `cleanup` how to end each, before it can fail. */
export async function setStage(url: string | undefined, topic: string, cleanup: Cleanup): Promise<Stage> {
  const [databases, { broker, brokerUrl }] = await Promise.all([
    prepareDatabases(cleanup),
    prepareBroker(url, topic, cleanup),
  ])
  const twice = duplicating(broker, { every: 50 })
  return { ...databases, broker: twice, brokerUrl, deliveredTwice: () => twice.duplicates, group: topic, topic }
}

async function prepareBroker(
  url: string | undefined,
  topic: string,
  cleanup: Cleanup,
): Promise<{ readonly broker: Broker; readonly brokerUrl: string }> {
  const host = createMemoryBroker()
  const broker = url === undefined ? memory({ host }) : await createBrokerFromUrl(url)
  cleanup.add('the connection to the broker', () => broker.close())
  // If the request is cut off, the topic may be there all the same: deleting one that is not there is no error.
  const made = broker.admin.createTopic(topic, { partitions: PARTITIONS })
  cleanup.add(`the topic ${topic}`, () => made.then(() => broker.admin.deleteTopic(topic)))
  await made
  if (url !== undefined) return { broker, brokerUrl: url }
  const serving = serveMemory(host)
  cleanup.add('the memory broker', () => serving.then((server) => server.close()))
  return { broker, brokerUrl: (await serving).url }
}

async function prepareDatabases(cleanup: Cleanup): Promise<Pick<Stage, 'billing' | 'shop' | 'shopUrl'>> {
  const starting = startPostgres()
  cleanup.add('PostgreSQL', () => starting.then((server) => server.dispose()))
  const server = await starting
  const pool = async (database: string, max: number): Promise<Pool> => {
    const made = await createPostgresPool({
      applicationName: `millrace-demo-${database}`,
      databaseUrl: urlOf(server.port, database),
      max,
      onError: () => undefined, // the next query says it
    })
    cleanup.add(`the connections to ${database}`, () => made.end())
    return made
  }
  const admin = await pool('postgres', 1)
  await admin.query('create database shop')
  await admin.query('create database billing')
  const shop = await pool('shop', WRITERS + 2)
  const billing = await pool('billing', 8)
  await Promise.all([migrate(shop), migrate(billing)])
  await Promise.all([prepareShop(shop), prepareBilling(billing)])
  return { billing, shop, shopUrl: urlOf(server.port, 'shop') }
}

/** Says what PGSSLMODE and its like might say otherwise. */
function urlOf(port: number, database: string): string {
  return `postgres://postgres@127.0.0.1:${port}/${database}?sslmode=disable`
}
