import type { Broker } from '../../src/brokers/broker.ts'
import { PAGE, type PublishingWay, pageOf } from './way.ts'

/** One of our own adapters, without the relay. */
export async function adapter(broker: Broker, topic: string, keys: number): Promise<PublishingWay> {
  const publisher = broker.publisher()
  await publisher.start()
  return {
    async publish(count) {
      for (let sent = 0; sent < count; sent += PAGE) {
        const [unresolved] = await publisher.publish(pageOf(topic, sent, keys))
        if (unresolved !== undefined) throw unresolved.error
      }
    },
    close: () => publisher.close().then(() => broker.close()),
  }
}
