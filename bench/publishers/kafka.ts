/** Kafka: the client packages by themselves, as careful as the adapters: idempotent, every replica, one request at a time. */
import { compatibilityPartitioner, Producer } from '@platformatic/kafka'
import { Kafka, logLevel } from 'kafkajs'
import { writeHeaders } from '../../src/core/wire.ts'
import { PAGE, type PublishingWay, pageOf } from './way.ts'

/** `sendBatch` of kafkajs, a page at a time. */
export async function bareKafkajs(brokers: string, topic: string, keys: number): Promise<PublishingWay> {
  const producer = new Kafka({ brokers: [brokers], logLevel: logLevel.NOTHING }).producer({
    idempotent: true,
    maxInFlightRequests: 1,
  })
  await producer.connect()
  return {
    async publish(count) {
      for (let sent = 0; sent < count; sent += PAGE) {
        const messages = pageOf(topic, sent, keys).map((message) => {
          const headers: Record<string, string> = {}
          writeHeaders(message, (name, value) => (headers[name] = value))
          return { headers, key: message.key, value: message.payload }
        })
        await producer.sendBatch({ acks: -1, topicMessages: [{ messages, topic }] })
      }
    },
    close: () => producer.disconnect(),
  }
}

/** `send` of @platformatic/kafka, a page at a time, with the partitions that Java's client chooses. */
export async function barePlatformatic(brokers: string, topic: string, keys: number): Promise<PublishingWay> {
  const producer = new Producer({
    acks: -1,
    bootstrapBrokers: [brokers],
    clientId: 'bench',
    idempotent: true,
    partitioner: compatibilityPartitioner,
  })
  return {
    async publish(count) {
      for (let sent = 0; sent < count; sent += PAGE) {
        const messages = pageOf(topic, sent, keys).map((message) => {
          const headers = new Map<Buffer, Buffer>()
          writeHeaders(message, (name, value) => headers.set(Buffer.from(name), Buffer.from(value)))
          return { headers, key: Buffer.from(message.key as string), topic, value: message.payload }
        })
        await producer.send({ messages })
      }
    },
    close: () => producer.close(),
  }
}
