/** A relay in a process of its own: it says what a drain took, and answers questions until it is told to stop. */
import pg from 'pg'
import type { Broker } from '../../src/brokers/broker.ts'
import { createRelay } from '../../src/index.ts'
import { brokerOf } from '../stage/brokers.ts'

/** What to relay. */
export interface RelayJob {
  /** The URL of a broker, or `null`. */
  readonly broker: string
  readonly capture: 'polling' | 'replication'
  readonly databaseUrl: string
  /** Says `drained` once so many are stored; 0 never. */
  readonly events: number
  /** Notes when each event is stored, by the number in the first bytes of its payload; so many. */
  readonly stamps: number
}

/** What a drain took. */
export interface Drain {
  readonly events: number
  /** From the first publish to the last answer. */
  readonly seconds: number
  /** As `seconds`, from before the relay was started. */
  readonly wholeSeconds: number
  /** Processor seconds of the process in `seconds`, user and system. */
  readonly cpuSeconds: number
  /** The most memory it ever held. */
  readonly maxRssMib: number
}

/** What it says. */
export type RelayMessage =
  | { readonly kind: 'drained'; readonly drain: Drain }
  | { readonly kind: 'figures'; readonly drain: Drain; readonly capture: string | undefined }
  | { readonly kind: 'stamps'; readonly stamps: Float64Array }
  | { readonly kind: 'started' }

const job = JSON.parse(process.argv[2] as string) as RelayJob
const stamps = new Float64Array(job.stamps)
const say = (message: RelayMessage): void => void process.send?.(message)
let stored = 0
let firstAt = 0

const pool = new pg.Pool({ connectionString: job.databaseUrl, max: 4 })
pool.on('error', () => {})
let cpu = process.cpuUsage()
const startedAt = performance.now()
const broker = await brokerOf(job.broker)
const relay = createRelay({
  broker: watched(broker),
  capture: job.capture,
  onError: (error) => {
    if (job.events > 0) console.error(`relay: ${error.message}`)
  },
  postgres: pool,
})
process.on('message', (asked) => {
  if (asked === 'figures') say({ kind: 'figures', drain: figures(), capture: relay.stats().capture })
  if (asked === 'stamps') say({ kind: 'stamps', stamps })
})
process.once('disconnect', () => void leave())
await relay.start()
say({ kind: 'started' })

async function leave(): Promise<void> {
  await relay.stop({ timeoutMs: 10_000 }).catch(() => {})
  await broker.close().catch(() => {})
  await pool.end()
  process.exit()
}

function watched(under: Broker): Broker {
  return {
    admin: under.admin,
    capabilities: under.capabilities,
    system: under.system,
    close: () => under.close(),
    subscription: (options) => under.subscription(options),
    publisher: (options) => {
      const publisher = under.publisher(options)
      return {
        start: () => publisher.start(),
        close: () => publisher.close(),
        async publish(batch, signal) {
          if (firstAt === 0) {
            firstAt = performance.now()
            cpu = process.cpuUsage()
          }
          const unresolved = await publisher.publish(batch, signal)
          if (job.stamps > 0) {
            const now = Number(process.hrtime.bigint()) / 1e6
            for (const { payload } of batch) stamps[payload.readUInt32BE(0)] = now
          }
          const before = stored
          stored += batch.length - unresolved.length
          if (before < job.events && stored >= job.events) say({ kind: 'drained', drain: figures() })
          return unresolved
        },
      }
    },
  }
}

function figures(): Drain {
  const now = performance.now()
  const { system, user } = process.cpuUsage(cpu)
  return {
    events: stored,
    seconds: (now - firstAt) / 1000,
    wholeSeconds: (now - startedAt) / 1000,
    cpuSeconds: (user + system) / 1e6,
    maxRssMib: process.resourceUsage().maxRSS / 1024,
  }
}
