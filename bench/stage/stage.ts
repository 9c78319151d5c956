/**
 * What the measures stand on: private servers, datasets and drains, each made when it is first asked for and shared by
 * those that follow.
 */
import type { PostgresServer, PrivateServer } from '../../src/testing/services/index.ts'
import { startKafka, startNats, startPostgres } from '../../src/testing/services/index.ts'
import type { PublisherJob } from '../children/publisher.ts'
import type { CursorJob } from '../children/cursor.ts'
import type { Drain, RelayJob, RelayMessage } from '../children/relay.ts'
import { type Target, brokerOf } from './brokers.ts'
import { Child, resultOf } from './child.ts'
import { type Dataset, type DatasetPlan, makeDataset } from './dataset.ts'
import { processorSeconds } from './processor-time.ts'

/** How much is measured. */
export interface StageOptions {
  /** The long way: ten million records, ten minutes without a broker. */
  readonly full: boolean
  /** Where children leave profiles. */
  readonly profile: string | undefined
  readonly rounds: number
  /** Every number of events is multiplied by it. */
  readonly scale: number
}

/** A drain of a dataset, as rates. */
export interface DrainFigures extends Drain {
  readonly perSecond: number
  readonly wholePerSecond: number
  readonly cpuPer100k: number
  /** Of the server's process that sends the WAL, per million records. */
  readonly walsenderPerMillion: number | undefined
}

/** What to drain. */
export interface DrainPlan {
  readonly capture: 'polling' | 'replication'
  /** Default: all of the dataset. */
  readonly events?: number
  readonly target: Target
}

const PLANS = {
  /** 100 records a transaction, a thousand keys. */
  main: { keys: 1000, perTransaction: 100, records: 1_000_000 },
  /** As `main`, with ten keys. */
  tenKeys: { keys: 10, perTransaction: 100, records: 300_000 },
  /** As `main`, one record a transaction. */
  oneRow: { keys: 1000, perTransaction: 1, records: 200_000 },
  /** As `main`, in one transaction. */
  huge: { keys: 1000, perTransaction: 1_000_000, records: 1_000_000 },
  /** As `main`, few. */
  small: { keys: 1000, perTransaction: 100, records: 100_000 },
  /** Nothing yet. */
  empty: { keys: 1000, perTransaction: 1, records: 0 },
} as const satisfies Record<string, DatasetPlan>

/** The name of a dataset. */
export type DatasetName = keyof typeof PLANS

// Large enough that no checkpoint and no read from the disk falls into a measure.
const POSTGRES_SETTINGS = { max_wal_size: '16GB', shared_buffers: '2GB' }

// The same events again and again, and no disk full of them.
const KAFKA_PROPERTIES = {
  'log.retention.bytes': '100000000',
  'log.retention.check.interval.ms': '5000',
  'log.segment.bytes': '50000000',
  'log.segment.delete.delay.ms': '1000',
}

/** The stage of one run. */
export class Stage {
  readonly options: StageOptions
  /** The most memory that a relay held, MiB, by where it published. */
  readonly peakRssMib = new Map<Target, number>()
  /** How many events of a dataset were relayed. */
  readonly relayed = new Map<string, number>()
  readonly #datasets = new Map<DatasetName, Promise<Dataset>>()
  readonly #topics = new Set<string>()
  #kafka: Promise<PrivateServer> | undefined
  #nats: Promise<PrivateServer> | undefined
  #postgres: Promise<PostgresServer> | undefined

  constructor(options: StageOptions) {
    this.options = options
  }

  postgres(): Promise<PostgresServer> {
    return (this.#postgres ??= startPostgres({ settings: POSTGRES_SETTINGS }))
  }

  nats(): Promise<PrivateServer> {
    return (this.#nats ??= startNats())
  }

  kafka(): Promise<PrivateServer> {
    return (this.#kafka ??= startKafka({ properties: KAFKA_PROPERTIES }))
  }

  /** So many events on this run's scale, in whole pages. */
  count(events: number): number {
    return Math.max(1000, Math.round((events * this.options.scale) / 1000) * 1000)
  }

  async dataset(name: DatasetName): Promise<Dataset> {
    let made = this.#datasets.get(name)
    if (made === undefined) {
      const plan = PLANS[name]
      const records = plan.records === 0 ? 0 : this.count(plan.records)
      const perTransaction = Math.min(plan.perTransaction, Math.max(1, records))
      made = this.postgres().then(({ url }) => makeDataset(url, { keys: plan.keys, perTransaction, records }))
      this.#datasets.set(name, made)
    }
    return made
  }

  /** Lets a dataset go that was changed, or whose WAL is large. */
  async drop(name: DatasetName): Promise<void> {
    const made = this.#datasets.get(name)
    this.#datasets.delete(name)
    await (await made)?.drop()
  }

  /** The URL of the broker, as the command line takes it. */
  async url(target: Target): Promise<string> {
    switch (target) {
      case 'null':
        return 'null'
      case 'jetstream':
        return (await this.nats()).url
      case 'kafkajs':
        return (await this.kafka()).url
      case 'platformatic':
        return (await this.kafka()).url.replace('kafka:', 'kafka+platformatic:')
    }
  }

  /** Makes the topic: anew on JetStream, which would drop events whose ids it knows. */
  async topic(target: Target, topic: string): Promise<void> {
    const url = await this.url(target)
    const name = `${url} ${topic}`
    if (target === 'null' || (target !== 'jetstream' && this.#topics.has(name))) return
    this.#topics.add(name)
    const broker = await brokerOf(url)
    try {
      if (target === 'jetstream') await broker.admin.deleteTopic(topic)
      await broker.admin.createTopic(topic, { partitions: 12 })
    } finally {
      await broker.close()
    }
  }

  /** Starts a relay in a process of its own; it has begun to work when this resolves. */
  async relay(
    dataset: Dataset,
    plan: Pick<DrainPlan, 'capture' | 'target'>,
    more: Partial<Pick<RelayJob, 'events' | 'stamps'>> = {},
  ): Promise<Child<RelayMessage>> {
    const { databaseUrl } = dataset
    const broker = await this.url(plan.target)
    const job: RelayJob = { broker, capture: plan.capture, databaseUrl, events: 0, stamps: 0, ...more }
    const child = new Child<RelayMessage>('relay', job, this.options.profile)
    const message = await child.next()
    if (message.kind !== 'started') throw new Error(`a relay said ${message.kind} before it started`)
    return child
  }

  /** Relays the dataset from its beginning. */
  async drain(name: DatasetName, plan: DrainPlan): Promise<DrainFigures> {
    const dataset = await this.dataset(name)
    const events = Math.min(plan.events ?? dataset.records, dataset.records)
    await dataset.rewind(plan.capture)
    await this.topic(plan.target, dataset.topic)
    const child = await this.relay(dataset, plan, { events })
    try {
      const message = await child.next()
      if (message.kind !== 'drained') throw new Error(`a relay said ${message.kind}`)
      const walsender = await walsenderSeconds(dataset)
      const { drain } = message
      this.relayed.set(dataset.databaseUrl, (this.relayed.get(dataset.databaseUrl) ?? 0) + drain.events)
      this.peakRssMib.set(plan.target, Math.max(this.peakRssMib.get(plan.target) ?? 0, drain.maxRssMib))
      return figuresOf(drain, walsender)
    } finally {
      await child.end()
    }
  }

  /** Reads the dataset by a bare cursor. */
  async cursor(name: DatasetName, events?: number): Promise<DrainFigures> {
    const dataset = await this.dataset(name)
    const job: CursorJob = { databaseUrl: dataset.databaseUrl, events: events ?? dataset.records }
    return figuresOf(await resultOf<Drain>('cursor', job, this.options.profile))
  }

  /** Publishes events that are at hand. */
  async publish(job: PublisherJob): Promise<DrainFigures> {
    return figuresOf(await resultOf<Drain>('publisher', job, this.options.profile))
  }

  async end(): Promise<void> {
    for (const name of this.#datasets.keys()) await this.drop(name).catch(() => {})
    for (const server of [this.#kafka, this.#nats, this.#postgres]) {
      await server?.then((one) => one.dispose()).catch(() => {})
    }
  }
}

/** What the server's process has cost so far that sends this dataset's WAL; it lives as long as the relay. */
async function walsenderSeconds({ pool, slot }: Dataset): Promise<number | undefined> {
  const { rows } = await pool.query<{ pid: number | null }>(
    'select active_pid as pid from pg_replication_slots where slot_name = $1',
    [slot],
  )
  const pid = rows[0]?.pid ?? undefined
  return pid === undefined ? undefined : processorSeconds(pid)
}

function figuresOf(drain: Drain, walsender?: number): DrainFigures {
  const { cpuSeconds, events, seconds, wholeSeconds } = drain
  return {
    ...drain,
    perSecond: events / seconds,
    wholePerSecond: events / wholeSeconds,
    cpuPer100k: (cpuSeconds / events) * 100_000,
    walsenderPerMillion: walsender === undefined ? undefined : (walsender / events) * 1e6,
  }
}
