/**
 * `node bench/kafka.ts`: what the Kafka adapters cost on top of their client packages. Each adapter and its bare client
 * send the same pages, in turns within one run, to one real broker. `--pages=N`, `--rounds=N`, `--size=N` (records in a
 * page) and `--partitions=N` change the load.
 */
import { randomBytes } from 'node:crypto'
import { parseArgs } from 'node:util'
import { compatibilityPartitioner, Producer } from '@platformatic/kafka'
import { Kafka, logLevel, type Message } from 'kafkajs'
import type { Broker } from '../src/brokers/broker.ts'
import { kafkajs } from '../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../src/brokers/kafka/platformatic/index.ts'
import { newId } from '../src/core/ids.ts'
import type { OutgoingMessage } from '../src/core/message.ts'
import { writeHeaders } from '../src/core/wire.ts'
import { startKafka } from '../src/testing/services/index.ts'

const { values } = parseArgs({
  options: {
    pages: { type: 'string', default: '60' },
    partitions: { type: 'string', default: '12' },
    rounds: { type: 'string', default: '7' },
    size: { type: 'string', default: '500' },
  },
})
const [pageCount, rounds, size] = [Number(values.pages), Number(values.rounds), Number(values.size)]
const topic = 'bench'

/** Somebody who sends pages. */
interface Sender {
  readonly name: string
  send(page: readonly OutgoingMessage[]): Promise<unknown>
  close(): Promise<unknown>
}

interface Figure {
  readonly cpuMsPerMessage: number
  readonly perSecond: number
}

const server = await startKafka({ properties: { 'log.retention.bytes': '200000000', 'log.segment.bytes': '50000000' } })
const brokers = [server.address]
const broker = kafkajs({ brokers })
try {
  await broker.admin.createTopic(topic, { partitions: Number(values.partitions) })
  // A pair per client package: the adapter first.
  await compare('kafkajs', () => adapter(kafkajs({ brokers })), bareKafkajs)
  await compare('@platformatic/kafka', () => adapter(platformatic({ brokers })), barePlatformatic)
  await compare('kafkajs without headers', () => bareKafkajs(false), bareKafkajs)
} finally {
  await broker.close()
  await server.dispose()
}

/** Runs both in turns and prints the medians and their ratio. */
async function compare(
  name: string,
  makeFirst: () => Promise<Sender>,
  makeSecond: () => Promise<Sender>,
): Promise<void> {
  const [first, second] = [await makeFirst(), await makeSecond()]
  const pages = Array.from({ length: pageCount }, (_, i) => makePage(i))
  const figures: [Figure[], Figure[]] = [[], []]
  for (let round = -1; round < rounds; round++) {
    for (const [i, sender] of (round % 2 === 0 ? [1, 0] : [0, 1]).map((i) => [i, i === 0 ? first : second] as const)) {
      const figure = await run(sender, pages)
      // The first round warms up.
      if (round >= 0) figures[i as 0 | 1].push(figure)
    }
  }
  await first.close()
  await second.close()
  const [a, b] = figures.map((list) => ({
    cpu: median(list.map((one) => one.cpuMsPerMessage)),
    rate: median(list.map((one) => one.perSecond)),
  })) as [{ cpu: number; rate: number }, { cpu: number; rate: number }]
  const ratios = figures[0].map((one, i) => one.perSecond / (figures[1][i] as Figure).perSecond)
  console.log(`${name}: ${rounds} rounds of ${pageCount} pages of ${size} records of 1 KB, medians`)
  console.log(`  ${first.name.padEnd(28)} ${Math.round(a.rate)}/s, ${(a.cpu * 100).toFixed(2)} CPU s per 100k`)
  console.log(`  ${second.name.padEnd(28)} ${Math.round(b.rate)}/s, ${(b.cpu * 100).toFixed(2)} CPU s per 100k`)
  console.log(
    `  ratio of the rates ${median(ratios).toFixed(2)} (${ratios
      .toSorted((x, y) => x - y)
      .map((one) => one.toFixed(2))
      .join(' ')}), of the CPU ${(a.cpu / b.cpu).toFixed(2)}`,
  )
}

async function run(sender: Sender, pages: readonly (readonly OutgoingMessage[])[]): Promise<Figure> {
  ;(globalThis as { gc?: () => void }).gc?.()
  const cpu = process.cpuUsage()
  const began = performance.now()
  for (const page of pages) await sender.send(page)
  const ms = performance.now() - began
  const { system, user } = process.cpuUsage(cpu)
  const count = pages.length * size
  return { cpuMsPerMessage: (system + user) / 1_000 / count, perSecond: (count / ms) * 1_000 }
}

async function adapter(under: Broker): Promise<Sender> {
  const publisher = under.publisher()
  await publisher.start()
  return {
    name: 'adapter',
    async send(page) {
      const unresolved = await publisher.publish(page)
      if (unresolved.length > 0) throw unresolved[0]?.error ?? new Error('not stored')
    },
    close: () => publisher.close().then(() => under.close()),
  }
}

/** The package by itself, as careful as the adapter: idempotent, every replica, one request at a time. */
async function bareKafkajs(withHeaders = true): Promise<Sender> {
  const kafka = new Kafka({ brokers, logLevel: logLevel.NOTHING })
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  return {
    name: withHeaders ? 'bare client' : 'bare client, no headers',
    send: (page) =>
      producer.sendBatch({
        acks: -1,
        topicMessages: [{ messages: page.map((one) => plainMessage(one, withHeaders)), topic }],
      }),
    close: () => producer.disconnect(),
  }
}

/** As {@link bareKafkajs}, with the partitions that Java's client chooses. */
async function barePlatformatic(): Promise<Sender> {
  const producer = new Producer({
    acks: -1,
    bootstrapBrokers: brokers,
    clientId: 'bench',
    idempotent: true,
    partitioner: compatibilityPartitioner,
  })
  return {
    name: 'bare client',
    send: (page) =>
      producer.send({
        messages: page.map((one) => {
          const headers = new Map<Buffer, Buffer>()
          writeHeaders(one, (name, value) => headers.set(Buffer.from(name), Buffer.from(value)))
          return { headers, key: Buffer.from(one.key as string), topic, value: one.payload }
        }),
      }),
    close: () => producer.close(),
  }
}

function plainMessage(message: OutgoingMessage, withHeaders: boolean): Message {
  if (!withHeaders) return { key: message.key, value: message.payload }
  const headers: Record<string, string> = {}
  writeHeaders(message, (name, value) => (headers[name] = value))
  return { headers, key: message.key, value: message.payload }
}

function makePage(page: number): OutgoingMessage[] {
  return Array.from({ length: size }, (_, i) => ({
    headers: { traceparent: `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01` },
    id: newId(),
    key: `key-${(page * size + i) % 1000}`,
    payload: randomBytes(1000),
    seq: String(page * size + i),
    timeMs: Date.now(),
    topic,
    type: 'bench.event',
  }))
}

function median(list: readonly number[]): number {
  const sorted = list.toSorted((a, b) => a - b)
  return ((sorted[(sorted.length - 1) >> 1] ?? 0) + (sorted[sorted.length >> 1] ?? 0)) / 2
}
