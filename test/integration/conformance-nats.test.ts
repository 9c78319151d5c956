import { connect } from '@nats-io/transport-node'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { nats } from '../../src/brokers/nats/index.ts'
import type { PlainMessage } from '../../src/testing/conformance/index.ts'
import { runConformance } from '../support/conformance.ts'
import { describeWith, services } from '../support/services.ts'

describeWith('nats', 'NATS JetStream', () => {
  const servers = services().nats as string
  runConformance('the NATS adapter', () => ({
    broker: async () => nats({ servers }),
    deadlineMs: 60_000,
    plainReader,
  }))
  runConformance("the NATS adapter with durability 'fsync'", () => ({
    broker: async () => nats({ durability: 'fsync', servers }),
    deadlineMs: 60_000,
    plainReader,
  }))

  async function plainReader(topic: string, count: number): Promise<readonly PlainMessage[]> {
    const nc = await connect({ servers })
    try {
      const manager = await jetstreamManager(nc)
      const consumer = await jetstream(nc).consumers.get(await manager.streams.find(topic))
      const messages: PlainMessage[] = []
      for await (const message of await consumer.fetch({ expires: 5000, max_messages: count })) {
        const headers: Record<string, string> = {}
        for (const [name, values] of message.headers ?? []) headers[name] = values[0] ?? ''
        messages.push({ headers, payload: Buffer.from(message.data) })
      }
      return messages
    } finally {
      await nc.close()
    }
  }
})
