/** Readers of the kill tests: plain clients of the brokers, which know nothing of the package but its documented headers. */
import { randomUUID } from 'node:crypto'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { Kafka, logLevel } from 'kafkajs'
import { track } from '../support/leaks.ts'
import { read } from '../support/outbox-writer.ts'
import { services } from '../support/services.ts'

/** One message as it lies in the broker. */
export interface Found {
  /** When the broker stored it, by the machine's clock: milliseconds since the epoch. */
  readonly at: number
  readonly id: string
  readonly key: string
  readonly n: number
}

/** All of a topic, oldest first within each partition. */
export interface TopicReader {
  readonly brokerUrl: string
  /** The messages of each partition. */
  readonly found: ReadonlyMap<number, Found[]>
  close(): Promise<void>
  /** Resolves when the message is there. */
  until(id: string): Promise<void>
  /** Resolves when all that the topic holds now has been read. */
  caughtUp(): Promise<void>
}

const KAFKA_PARTITIONS = 4

/** What both readers do with what they are handed. */
class Shelf {
  readonly found = new Map<number, Found[]>()
  readonly #ids = new Set<string>()
  readonly #waiting = new Set<{ readonly met: () => boolean; readonly resolve: () => void }>()

  put(partition: number, id: string, key: string, payload: Buffer, at: number): void {
    const { key: written, n } = read(payload)
    if (written !== key) throw new Error(`message ${id} has the key ${key} and the payload of ${written}`)
    let list = this.found.get(partition)
    if (list === undefined) this.found.set(partition, (list = []))
    list.push({ at, id, key, n })
    this.#ids.add(id)
    for (const one of this.#waiting) {
      if (!one.met()) continue
      this.#waiting.delete(one)
      one.resolve()
    }
  }

  has(id: string): boolean {
    return this.#ids.has(id)
  }

  when(met: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      if (met()) resolve()
      else this.#waiting.add({ met, resolve })
    })
  }
}

/** Makes the topic and reads it with kafkajs' own consumer. */
export async function kafkaReader(topic: string): Promise<TopicReader> {
  const brokers = services().kafka as string
  await makeKafkaTopic(brokers, topic)
  return readKafka(brokers, topic)
}

/** Makes a topic whose messages bear the time at which the broker stored them. */
export async function makeKafkaTopic(brokers: string, topic: string): Promise<void> {
  const admin = new Kafka({ brokers: brokers.split(','), logLevel: logLevel.NOTHING }).admin()
  await admin.connect()
  const configEntries = [{ name: 'message.timestamp.type', value: 'LogAppendTime' }]
  await admin.createTopics({
    topics: [{ configEntries, numPartitions: KAFKA_PARTITIONS, topic }],
    waitForLeaders: true,
  })
  await admin.disconnect()
}

/** Reads a topic from its beginning. */
export async function readKafka(brokers: string, topic: string): Promise<TopicReader> {
  const kafka = new Kafka({ brokers: brokers.split(','), logLevel: logLevel.NOTHING })
  const admin = kafka.admin()
  await admin.connect()
  const consumer = kafka.consumer({ groupId: `reader-${randomUUID()}`, maxWaitTimeInMs: 100 })
  await consumer.connect()
  await consumer.subscribe({ fromBeginning: true, topics: [topic] })
  const shelf = new Shelf()
  const next = new Map<number, number>()
  const { promise: failed, reject: fail } = Promise.withResolvers<never>()
  failed.catch(() => {})
  await consumer.run({
    eachBatch: ({ batch: { messages, partition } }) => {
      try {
        for (const { headers, key, offset, timestamp, value } of messages) {
          // The group may have met again: then the consumer begins where it has last committed.
          if (Number(offset) < (next.get(partition) ?? 0)) continue
          next.set(partition, Number(offset) + 1)
          shelf.put(partition, String(headers?.['millrace-id']), String(key), value as Buffer, Number(timestamp))
        }
      } catch (error) {
        fail(error)
      }
      return Promise.resolve()
    },
  })
  const close = async (): Promise<void> => {
    release()
    await consumer.disconnect()
    await admin.disconnect()
  }
  const release = track('a plain Kafka consumer', close)
  return {
    brokerUrl: `kafka://${brokers}`,
    close,
    found: shelf.found,
    until: (id) => Promise.race([failed, shelf.when(() => shelf.has(id))]),
    async caughtUp() {
      const ends = await admin.fetchTopicOffsets(topic)
      const read = (): boolean => ends.every(({ high, partition }) => (next.get(partition) ?? 0) >= Number(high))
      await Promise.race([failed, shelf.when(read)])
    },
  }
}

/** Makes a stream for the topic and reads it with an ordered consumer of nats.js. */
export async function natsReader(topic: string): Promise<TopicReader> {
  const servers = services().nats as string
  await makeStream(servers, topic)
  return readNats(servers, topic)
}

/** Makes a stream for the topic. */
export async function makeStream(servers: string, topic: string): Promise<void> {
  const connection = await connect({ servers })
  const manager = await jetstreamManager(connection)
  // The shortest window: longer than it takes to start a daemon, it would hide what is sent again.
  await manager.streams.add({ duplicate_window: 100_000_000, name: topic, subjects: [topic] })
  await connection.close()
}

/** Reads a stream from its beginning; closing deletes it. */
export async function readNats(servers: string, topic: string): Promise<TopicReader> {
  const connection = await connect({ servers })
  const manager = await jetstreamManager(connection)
  const consumer = await jetstream(connection).consumers.get(topic)
  const messages = await consumer.consume()
  const shelf = new Shelf()
  let last = 0
  const reading = (async (): Promise<void> => {
    for await (const { data, headers, seq, time } of messages) {
      if (seq <= last) continue
      last = seq
      const id = headers?.get('millrace-id') ?? ''
      shelf.put(0, id, headers?.get('millrace-key') ?? '', Buffer.from(data), time.getTime())
    }
  })()
  const failed = reading.then(() => new Promise<never>(() => {}))
  failed.catch(() => {})
  const close = async (): Promise<void> => {
    release()
    await messages.close()
    await manager.streams.delete(topic)
    await connection.close()
  }
  const release = track('a plain NATS consumer', close)
  return {
    brokerUrl: `nats://${servers}`,
    close,
    found: shelf.found,
    until: (id) => Promise.race([failed, shelf.when(() => shelf.has(id))]),
    async caughtUp() {
      const { state } = await manager.streams.info(topic)
      await Promise.race([failed, shelf.when(() => last >= state.last_seq)])
    },
  }
}
