/** Where the relay publishes: a broker that takes everything and does nothing, or a real one through one of its adapters. */
import type { Broker } from '../../src/brokers/broker.ts'
import { createBrokerFromUrl } from '../../src/daemon/broker-url.ts'

/** A broker and the client it is reached through. */
export type Target = 'jetstream' | 'kafkajs' | 'null' | 'platformatic'

/** Makes the broker of a URL; `null` is the one that does nothing. */
export async function brokerOf(url: string): Promise<Broker> {
  return url === 'null' ? nullBroker() : createBrokerFromUrl(url)
}

/** Every message is stored at once, nowhere. */
export function nullBroker(): Broker {
  const no = (): never => {
    throw new Error('the null broker only publishes')
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
