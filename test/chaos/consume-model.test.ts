/**
 * Consumers against a model: members of one group that come, leave, die, or are cut off from the group while they go on
 * working, handlers that throw, database connections that are ended, batches that are published twice. Whatever happens,
 * the effect of every message happens once and those of a key in the order of its versions. The judge is strict: the
 * handler itself looks, under a row lock and in its own transaction, whether its message is the next of its key.
 *
 * Every run has new seeds. A failure prints the seed; MILLRACE_MODEL_SEED=<seed> makes the same choices again (not the
 * same timing, so repeat it until it fails).
 */
import { randomInt, randomUUID } from 'node:crypto'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import type { Broker, Subscription, SubscriptionOptions } from '../../src/brokers/broker.ts'
import { createMemoryBroker, memory } from '../../src/brokers/memory/index.ts'
import { createConsumer, type HandledMessage } from '../../src/consumer/index.ts'
import { newId } from '../../src/core/ids.ts'
import { brokerAt } from '../integration/consumer-child.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { createTestDatabase, describeWith, services, type TestDatabase } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'
import { type Random, passes } from './model-random.ts'

const BATCHES = 60
const KEYS = 16
/** How many messages a key has in a batch. */
const PER_KEY = 3
const PARTITIONS = 4
const MESSAGES = BATCHES * KEYS * PER_KEY

const SCHEMA = `
  create table effect (id text, key text, version int);
  create table progress (key text primary key, version int not null);`

for (const kind of ['memory', 'kafka', 'nats'] as const) {
  describeWith(
    kind === 'memory' ? 'postgres18' : ['postgres18', kind],
    `consumers against their model, on ${kind}`,
    () => {
      const seed = Number(process.env['MILLRACE_MODEL_SEED'] ?? randomInt(2 ** 31))

      test(
        `every message takes effect once, and those of a key in order: seed ${seed}`,
        { timeout: 180_000 },
        async () => {
          const database = await createTestDatabase()
          onTestFinished(() => database.close())
          await database.pool.query(SCHEMA)
          for (let key = 0; key < KEYS; key++)
            await database.pool.query('insert into progress values ($1, 0)', [`k${key}`])
          const host = createMemoryBroker()
          const connect = () => (kind === 'memory' ? memory({ host }) : brokerAt(kind, services()[kind] as string))
          const broker = connect()
          onTestFinished(() => broker.close())
          const topic = `model-${randomUUID()}`
          await broker.admin.createTopic(topic, { partitions: PARTITIONS })
          onTestFinished(() => broker.admin.deleteTopic(topic))

          const members = new ModelMembers({
            connect,
            database,
            group: `model-${randomUUID()}`,
            random: seeded(seed),
            sessionTimeoutMs: kind === 'nats' ? 1500 : 6000,
            topic,
          })
          onTestFinished(() => members.stop())
          await members.start()

          const random = seeded(seed + 1)
          const over = new AbortController()
          const trouble = members.trouble(over.signal)
          const publisher = broker.publisher()
          await publisher.start()
          for (let n = 0; n < BATCHES; n++) {
            const batch = batchOf(n, topic)
            expect(await publisher.publish(batch)).toEqual([])
            // As a relay does that never got the answer. JetStream drops it by itself.
            if (random.chance(0.5)) expect(await publisher.publish(batch)).toEqual([])
            await passes(random.below(160))
          }
          await publisher.close()
          over.abort()
          await trouble

          const told = `seed ${seed}; ${JSON.stringify(members.happened)}`
          await expect.poll(() => members.effects(), { interval: 100, timeout: 60_000, message: told }).toBe(MESSAGES)
          await members.stop()
          const { rows } = await database.pool.query<{ distinct: number; total: number }>(
            'select count(distinct id)::int as distinct, count(*)::int as total from effect',
          )
          expect(members.disorder, told).toEqual([])
          expect(rows[0], told).toEqual({ distinct: MESSAGES, total: MESSAGES })
          const { cut, severed, stopped, threw } = members.happened
          expect(Math.min(cut, severed, stopped, threw), told).toBeGreaterThan(0)
        },
      )
    },
  )
}

/** The n-th batch: the next versions of every key, keys mixed. */
function batchOf(n: number, topic: string) {
  return Array.from({ length: KEYS * PER_KEY }, (_, i) => ({
    headers: {},
    id: newId(),
    key: `k${i % KEYS}`,
    payload: Buffer.from(JSON.stringify({ version: n * PER_KEY + Math.floor(i / KEYS) + 1 })),
    seq: String(n * KEYS * PER_KEY + i + 1),
    timeMs: Date.now(),
    topic,
    type: 'version.made',
  }))
}

/** What the members work with. */
interface ModelMembersOptions {
  readonly connect: () => Broker
  readonly database: TestDatabase
  readonly group: string
  readonly random: Random
  readonly sessionTimeoutMs: number
  readonly topic: string
}

interface Member {
  /** Ends everything of it. */
  readonly end: (drainMs?: number) => Promise<void>
  /** Takes the member out of the group without a word to the consumer, which goes on with what it holds. */
  readonly sever: (dies: boolean) => Promise<void>
}

const DRAIN_MS = 2000
const MEMBERS = 3
const APPLICATION = 'model member'

class ModelMembers {
  /** What was handled out of its order. */
  readonly disorder: string[] = []
  readonly happened = { cut: 0, severed: 0, stopped: 0, threw: 0 }
  readonly #members: Member[] = []
  readonly #ending: Promise<void>[] = []
  readonly #options: ModelMembersOptions
  #calm = false

  constructor(options: ModelMembersOptions) {
    this.#options = options
  }

  async start(): Promise<void> {
    await this.#join()
    await this.#join()
  }

  /** Lets things happen to the members until the signal aborts, and each of them at least once. */
  async trouble(signal: AbortSignal): Promise<void> {
    const { below } = this.#options.random
    for (let turn = 0; !signal.aborted || Math.min(this.happened.severed, this.happened.stopped) === 0; turn++) {
      await passes(100 + below(300))
      await this.#cutConnections()
      if (turn % 4 === 3) await this.#change(turn % 8 === 3)
    }
    this.#calm = true
    if (this.#members.length === 0) await this.#join()
  }

  /** How many effects there are. */
  async effects(): Promise<number> {
    const { rows } = await this.#options.database.pool.query<{ n: number }>('select count(*)::int as n from effect')
    return rows[0]?.n ?? 0
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#members.splice(0).map((member) => member.end()), ...this.#ending])
  }

  /** A member goes, one way or the other, and another comes. */
  async #change(sever: boolean): Promise<void> {
    const { below, chance } = this.#options.random
    const [member] = this.#members.splice(below(this.#members.length), 1)
    if (member !== undefined && sever) {
      this.happened.severed++
      // Half of them die without a word to anybody; the others go on for a while with what they hold.
      const dies = chance(0.5)
      await member.sever(dies)
      this.#later(passes(dies ? 0 : 500 + below(1000)).then(() => member.end(dies ? 0 : DRAIN_MS)))
    } else if (member !== undefined) {
      this.happened.stopped++
      this.#later(member.end())
    }
    while (this.#members.length < MEMBERS - 1 || (this.#members.length < MEMBERS && chance(0.5))) await this.#join()
  }

  /** What goes wrong with it is told by `stop`. */
  #later(work: Promise<void>): void {
    work.catch(() => {})
    this.#ending.push(work)
  }

  async #cutConnections(): Promise<void> {
    const { rowCount } = await this.#options.database.pool.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where application_name = $1 and datname = current_database() order by random() limit 1`,
      [APPLICATION],
    )
    this.happened.cut += rowCount ?? 0
  }

  async #join(): Promise<void> {
    const { connect, database, group, random, sessionTimeoutMs, topic } = this.#options
    const broker = severable(connect())
    const pool = new pg.Pool({ application_name: APPLICATION, connectionString: database.url, max: 4 })
    const consumer = trackLifecycle(
      'consumer',
      createConsumer({
        broker,
        commitEvery: 1 + random.below(200),
        commitIntervalMs: 1 + random.below(200),
        group,
        groupSize: [1, 5, 64][random.below(3)] as number,
        handle: (message, { tx }) => this.#handle(message, tx),
        inbox: { postgres: pool },
        maxInFlight: [10, 100, 2048][random.below(3)] as number,
        retry: { attempts: 1_000_000, maxDelayMs: 50, minDelayMs: 1 },
        sessionTimeoutMs,
        topics: [topic],
      }),
    )
    // A consumer that has stopped, by itself too, listens no more, and a connection may be ended to the last.
    const outlive = (): void => void pool.on('error', () => {})
    consumer.stopped.then(outlive, outlive)
    const end = async (drainMs = DRAIN_MS): Promise<void> => {
      await consumer.stop({ timeoutMs: drainMs })
      await broker.close()
      await pool.end()
    }
    this.#members.push({ end, sever: (dies) => broker.sever(dies) })
    await consumer.start()
  }

  async #handle(message: HandledMessage, tx: Pick<pg.Pool, 'query'>): Promise<void> {
    const { version } = message.json<{ version: number }>()
    const { below, chance } = this.#options.random
    if (!this.#calm && chance(0.01)) this.#throw()
    // Slow enough that whoever goes leaves work behind.
    if (!this.#calm && chance(0.5)) await passes(below(30))
    const { rows } = await tx.query<{ version: number }>('select version from progress where key = $1 for update', [
      message.key,
    ])
    if (rows[0]?.version !== version - 1) {
      this.disorder.push(
        `${message.key}: ${version} after ${rows[0]?.version} (${message.redelivered ? 'again' : 'first'})`,
      )
    }
    await tx.query('update progress set version = $2 where key = $1', [message.key, version])
    await tx.query('insert into effect values ($1, $2, $3)', [message.id, message.key, version])
    if (!this.#calm && chance(0.01)) this.#throw()
  }

  #throw(): never {
    this.happened.threw++
    throw new Error('a mishap of the model')
  }
}

/** A broker whose only subscription can leave the group behind the back of its consumer. */
function severable(broker: Broker): Broker & { sever(dies: boolean): Promise<void> } {
  let severed = false
  let inner: Subscription | undefined
  const unless =
    <Args extends unknown[]>(call: (...args: Args) => void) =>
    (...args: Args): void => {
      if (!severed) call(...args)
    }
  return {
    admin: broker.admin,
    capabilities: broker.capabilities,
    system: broker.system,
    close: () => broker.close(),
    publisher: (options) => broker.publisher(options),
    async sever(dies) {
      severed = true
      // With its connections gone nobody can say that it leaves: the broker finds out by its time-outs.
      await (dies ? broker.close() : inner?.stop())
    },
    subscription(options: SubscriptionOptions): Subscription {
      const own = broker.subscription({
        ...options,
        onAssigned: unless((partitions) => options.onAssigned(partitions)),
        onError: unless((error) => options.onError(error)),
        onLost: unless((partitions) => options.onLost(partitions)),
        onMessages: unless((partition, messages) => options.onMessages(partition, messages)),
        onRevoking: async (partitions) => (severed ? undefined : await options.onRevoking(partitions)),
      })
      inner = own
      const running = new Promise<void>((resolve, reject) => {
        own.stopped.then(() => severed || resolve(), reject)
      })
      running.catch(() => {})
      return {
        commit: (positions) => (severed ? Promise.reject(new Error('not a member any more')) : own.commit(positions)),
        pause: (partitions) => own.pause(partitions),
        resume: (partitions) => own.resume(partitions),
        start: () => own.start(),
        stop: () => own.stop(),
        stopped: running,
      }
    },
  }
}
