/** Publishes events that are at hand in one of the ways of `bench/publishers`. */
import { nats } from '../../src/brokers/nats/index.ts'
import { adapter } from '../publishers/adapter.ts'
import { jsPublish, rawInbox } from '../publishers/jetstream.ts'
import { bareKafkajs, barePlatformatic } from '../publishers/kafka.ts'
import { PAGE, type PublishingWay } from '../publishers/way.ts'
import type { Drain } from './relay.ts'

/** What to publish, and how. */
export interface PublisherJob {
  readonly address: string
  readonly events: number
  readonly keys: number
  readonly topic: string
  readonly way: 'adapter' | 'adapter-fsync' | 'js.publish' | 'kafkajs' | 'platformatic' | 'raw'
}

const job = JSON.parse(process.argv[2] as string) as PublisherJob
const { address, events, keys, topic } = job
const way = await waysTo()[job.way]()
await way.publish(2 * PAGE) // connections, metadata, code that is warm
const cpu = process.cpuUsage()
const started = performance.now()
await way.publish(events)
const seconds = (performance.now() - started) / 1000
const { system, user } = process.cpuUsage(cpu)
const drain: Drain = {
  events,
  seconds,
  wholeSeconds: seconds,
  cpuSeconds: (user + system) / 1e6,
  maxRssMib: process.resourceUsage().maxRSS / 1024,
}
process.send?.(drain)
await way.close()
if (process.connected) process.disconnect()

function waysTo(): { readonly [way in PublisherJob['way']]: () => Promise<PublishingWay> } {
  return {
    adapter: () => adapter(nats({ servers: address }), topic, keys),
    'adapter-fsync': () => adapter(nats({ durability: 'fsync', servers: address }), topic, keys),
    'js.publish': () => jsPublish(address, topic, keys),
    kafkajs: () => bareKafkajs(address, topic, keys),
    platformatic: () => barePlatformatic(address, topic, keys),
    raw: () => rawInbox(address, topic, keys),
  }
}
