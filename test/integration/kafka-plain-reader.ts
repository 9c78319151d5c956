import { Kafka, logLevel } from 'kafkajs'
import type { PlainMessage } from '../../src/testing/conformance/index.ts'

/** Reads with kafkajs alone: what a client sees that knows nothing of this package. */
export async function plainReader(brokers: string[], topic: string, count: number): Promise<readonly PlainMessage[]> {
  const kafka = new Kafka({ brokers, logLevel: logLevel.NOTHING })
  const consumer = kafka.consumer({ groupId: `plain-${topic}`, maxWaitTimeInMs: 100 })
  const seen: PlainMessage[] = []
  try {
    await consumer.connect()
    await consumer.subscribe({ fromBeginning: true, topics: [topic] })
    await new Promise<void>((resolve, reject) => {
      const eachMessage = ({ message }: { message: PlainKafkaMessage }): Promise<void> => {
        const headers = Object.entries(message.headers ?? {}).map(([name, value]) => [name, String(value)])
        seen.push({ headers: Object.fromEntries(headers) as Record<string, string>, payload: message.value as Buffer })
        if (seen.length === count) resolve()
        return Promise.resolve()
      }
      consumer.run({ eachMessage }).catch(reject)
    })
  } finally {
    await consumer.disconnect()
  }
  return seen
}

interface PlainKafkaMessage {
  readonly headers?: Record<string, Buffer | string | (Buffer | string)[] | undefined>
  readonly value: Buffer | null
}
