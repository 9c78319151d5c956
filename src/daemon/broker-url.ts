import type { Broker } from '../brokers/broker.ts'
import { parseAddress } from '../brokers/memory/remote/address.ts'

/** What a broker URL says, read strictly. */
export interface BrokerAddress {
  /** The client package, where the URL names one: `kafka+platformatic://…`. */
  readonly client?: 'platformatic'
  /** What a stored event means, on NATS: `?durability=fsync`. */
  readonly durability?: 'ack' | 'fsync'
  readonly system: 'kafka' | 'memory' | 'nats'
  /** `host:port`, at least one, for NATS behind the user or token; empty for `memory`, which keeps the URL as a whole. */
  readonly servers: readonly string[]
  readonly url: string
}

const EXPECTED =
  'kafka://host:9092,host:9092, kafka+platformatic://host:9092, nats://host:4222,host:4222, or memory://127.0.0.1:port'
const DEFAULT_PORTS = { kafka: 9092, nats: 4222 } as const

/**
 * Reads `kafka://h:p,h:p` (through kafkajs), `kafka+platformatic://h:p,h:p` (through @platformatic/kafka),
 * `nats://h:p,h:p` or `memory://…`.
 *
 * @throws RangeError whose message completes "expected …".
 */
export function parseBrokerUrl(url: string): BrokerAddress {
  const [, written, userinfo = '', hosts, query] =
    /^([a-z]+(?:\+[a-z]+)?):\/\/([^\s]*@)?([^\s@?]+)(?:\?([^\s@?]*))?$/.exec(url) ?? []
  if (hosts === undefined) throw new RangeError(EXPECTED)
  const scheme = written === 'kafka+platformatic' ? 'kafka' : written
  if (scheme === 'memory') {
    if (!isMemoryAddress(url)) throw new RangeError('memory://127.0.0.1:port or memory:///path/of/socket')
    return { system: scheme, servers: [], url }
  }
  if (scheme !== 'kafka' && scheme !== 'nats') throw new RangeError(EXPECTED)
  if (scheme === 'kafka' && userinfo !== '') {
    throw new RangeError('kafka://host:port without a user; for SASL make the relay in a program of your own')
  }
  const durability = durabilityOf(scheme, query)
  const servers = hosts.replace(/\/$/, '').split(',')
  const address = {
    servers: servers.map((server) => userinfo + withPort(scheme, server)),
    system: scheme,
    url,
    ...(durability === undefined ? {} : { durability }),
  } as const
  return written === scheme ? address : { ...address, client: 'platformatic' }
}

/** Makes the adapter that the URL asks for; only this one is loaded. It connects to nothing yet. */
export async function createBrokerFromUrl(url: string): Promise<Broker> {
  const { client, durability, system, servers } = parseBrokerUrl(url)
  switch (system) {
    case 'kafka': {
      if (client === 'platformatic') {
        const { platformatic } = await import('../brokers/kafka/platformatic/index.ts')
        return platformatic({ brokers: servers })
      }
      const { kafkajs } = await import('../brokers/kafka/kafkajs/index.ts')
      return kafkajs({ brokers: servers })
    }
    case 'nats': {
      const { nats } = await import('../brokers/nats/index.ts')
      const natsServers = servers.map((server) => `nats://${server}`)
      return nats(durability === undefined ? { servers: natsServers } : { durability, servers: natsServers })
    }
    case 'memory': {
      const { memory } = await import('../brokers/memory/index.ts')
      return memory({ url })
    }
  }
}

function durabilityOf(scheme: 'kafka' | 'nats', query: string | undefined): 'ack' | 'fsync' | undefined {
  if (query === undefined) return undefined
  if (scheme === 'nats' && query === 'durability=fsync') return 'fsync'
  if (scheme === 'nats' && query === 'durability=ack') return 'ack'
  throw new RangeError('no parameters but ?durability=fsync, or ack, of nats://')
}

function isMemoryAddress(url: string): boolean {
  try {
    return parseAddress(url) !== undefined
  } catch {
    return false
  }
}

function withPort(scheme: 'kafka' | 'nats', server: string): string {
  const [, host, port] = /^(\[[\da-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?$/i.exec(server) ?? []
  if (host === undefined || Number(port ?? 1) < 1 || Number(port ?? 1) > 65_535) throw new RangeError(EXPECTED)
  return `${host}:${port ?? DEFAULT_PORTS[scheme]}`
}
