/** What real brokers refuse for good: too large for the topic, and no such topic. Parked, mended, replayed, in order. */
import { randomUUID } from 'node:crypto'
import { Kafka, logLevel } from 'kafkajs'
import { afterEach, beforeEach, expect, onTestFinished, test } from 'vitest'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import type { Broker } from '../../src/brokers/broker.ts'
import { type Parking, createParking } from '../../src/outbox-relay/parking/index.ts'
import { type Relay, createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { type TestDatabase, createTestDatabase, describeWith, services } from '../support/services.ts'
import { NatsStage } from './nats-stage.ts'

const LIMIT = 8000
const LARGE = 20_000

/** One broker, its topics, and what it holds. */
interface Stage {
  readonly broker: Broker
  /** A topic whose messages have at most LIMIT bytes. */
  makeSmall(topic: string): Promise<void>
  raiseLimit(topic: string): Promise<void>
  makeTopic(topic: string): Promise<void>
  /** The ids of a topic's messages, by key, in order. */
  stored(topic: string): Promise<{ readonly id: string; readonly key: string }[]>
}

function scenes(stageOf: () => Promise<Stage>): void {
  let database: TestDatabase
  let parking: Parking
  let relay: Relay | undefined
  let stage: Stage
  beforeEach(async () => {
    relay = undefined
    stage = await stageOf()
    database = await createTestDatabase()
    parking = createParking({ postgres: database.pool })
  })
  afterEach(async () => {
    await relay?.stop()
    await database.close()
  })

  const append = async (topic: string, key: string, bytes = 10): Promise<string> => {
    const { rows } = await database.pool.query(`select outbox.append($1, $2, 't', $3) as id`, [
      topic,
      key,
      Buffer.alloc(bytes, 'x'),
    ])
    return (rows[0] as { id: string }).id
  }
  const begin = async (): Promise<void> => {
    const made = createRelay({ broker: stage.broker, capture: 'polling', postgres: database.pool })
    relay = trackLifecycle('relay', made)
    await relay.start()
  }
  const ofKey = async (topic: string, key: string): Promise<string[]> => {
    const all = await stage.stored(topic)
    return [...new Set(all.filter((one) => one.key === key).map((one) => one.id))]
  }

  test('an event too large for its topic: parked with its key, the others go on, replayed in order when the limit is raised', async () => {
    const topic = `small-${randomUUID()}`
    await stage.makeSmall(topic)
    const bad: string[] = []
    const good: string[] = []
    for (let n = 0; n < 6; n++) {
      bad.push(await append(topic, 'bad', n === 2 ? LARGE : 10))
      good.push(await append(topic, 'good'))
    }
    await begin()
    await until(async () => (await parking.count({ all: true })).records === 4)
    await until(async () => (await ofKey(topic, 'good')).length === 6)
    expect(await ofKey(topic, 'bad')).toEqual(bad.slice(0, 2))
    const [head] = await parking.list()
    expect(head).toMatchObject({ id: bad[2], reason: 'poison', topic })
    await stage.raiseLimit(topic)
    await until(async () => {
      await parking.replay({ topic })
      return (await parking.count({ all: true })).records === 0
    }, 200)
    bad.push(await append(topic, 'bad'))
    await until(async () => (await ofKey(topic, 'bad')).length === 7)
    expect(await ofKey(topic, 'bad')).toEqual(bad)
    expect(await ofKey(topic, 'good')).toEqual(good)
  })

  test('a topic that is not there: its keys are parked, the others go on, and one replay brings all of them', async () => {
    const [missing, there] = [`missing-${randomUUID()}`, `there-${randomUUID()}`]
    await stage.makeTopic(there)
    const ids = new Map<string, string[]>()
    for (let n = 0; n < 60; n++) {
      const key = `k${n % 20}`
      ids.set(key, [...(ids.get(key) ?? []), await append(missing, key)])
    }
    await append(there, 'other')
    await begin()
    await until(async () => (await parking.count({ topic: missing })).records === 60)
    await until(async () => (await ofKey(there, 'other')).length === 1)
    await stage.makeTopic(missing)
    await until(async () => {
      await parking.replay({ topic: missing })
      return (await parking.count({ all: true })).records === 0
    }, 500)
    for (const [key, expected] of ids) expect(await ofKey(missing, key)).toEqual(expected)
  })
}

for (const [name, make] of [
  ['kafkajs', (brokers: string) => kafkajs({ brokers, unknownTopicMs: 2000 })],
  ['platformatic', (brokers: string) => platformatic({ brokers, unknownTopicMs: 2000 })],
] as const) {
  describeWith(['kafka', 'postgres18'], `what Kafka refuses, through ${name}`, () => {
    scenes(async () => {
      const address = services().kafka ?? ''
      const kafka = new Kafka({ brokers: address.split(','), logLevel: logLevel.NOTHING, retry: { retries: 20 } })
      const admin = kafka.admin()
      await admin.connect()
      onTestFinished(() => admin.disconnect())
      const broker = make(address)
      onTestFinished(() => broker.close())
      const create = (topic: string, settings: Record<string, string>) =>
        admin.createTopics({
          timeout: 30_000,
          topics: [{ configEntries: Object.entries(settings).map(([key, value]) => ({ name: key, value })), topic }],
        })
      return {
        broker,
        makeSmall: async (topic) => void (await create(topic, { 'max.message.bytes': String(LIMIT) })),
        async raiseLimit(topic) {
          const configEntries = [{ name: 'max.message.bytes', value: '1000000' }]
          await admin.alterConfigs({ resources: [{ configEntries, name: topic, type: 2 }], validateOnly: false })
        },
        makeTopic: async (topic) => void (await create(topic, {})),
        stored: (topic) => storedIn(kafka, topic),
      }
    })
  })
}

describeWith(['nats', 'postgres18'], 'what JetStream refuses', () => {
  scenes(async () => {
    const stage = new NatsStage(services().nats ?? '')
    const { manager } = await stage.plain()
    const broker = stage.broker()
    return {
      broker,
      makeSmall: async (topic) =>
        void (await manager.streams.add({ max_msg_size: LIMIT, name: topic, subjects: [topic] })),
      raiseLimit: async (topic) => void (await manager.streams.update(topic, { max_msg_size: -1 })),
      makeTopic: (topic) => broker.admin.createTopic(topic),
      stored: (topic) => Object.assign(new NatsStage(stage.servers), { topic }).stored(),
    }
  })
})

/** The ids of a topic of one partition, in the order of its log, repetitions included. */
async function storedIn(kafka: Kafka, topic: string): Promise<{ readonly id: string; readonly key: string }[]> {
  const admin = kafka.admin()
  await admin.connect()
  const offsets = await admin.fetchTopicOffsets(topic)
  await admin.disconnect()
  const end = BigInt(offsets[0]?.high ?? '0')
  const found: { id: string; key: string }[] = []
  if (end === 0n) return found
  const consumer = kafka.consumer({ groupId: `log-${randomUUID()}`, maxWaitTimeInMs: 100 })
  await consumer.connect()
  await consumer.subscribe({ fromBeginning: true, topic })
  const done = Promise.withResolvers<void>()
  await consumer.run({
    eachMessage: async ({ message: { headers, key, offset } }) => {
      found.push({ id: String(headers?.['millrace-id']), key: String(key) })
      if (BigInt(offset) + 1n >= end) done.resolve()
    },
  })
  await done.promise
  await consumer.disconnect()
  return found
}

/** Waits for a state, generously: the machine may be busy. */
async function until(holds: () => Promise<boolean>, everyMs = 50): Promise<void> {
  const deadline = performance.now() + 60_000
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`not within 60 s: ${String(holds)}`)
    await new Promise((resolve) => setTimeout(resolve, everyMs))
  }
}
