/**
 * `node bench/jetstream.ts`: what publishing to JetStream costs, as ratios within one run, against servers of its own: one
 * with its defaults, one with `sync_interval: always`. Events of 1000 bytes in pages of 500, as the relay has them;
 * `--events=N` changes how many.
 */
import os from 'node:os'
import { parseArgs } from 'node:util'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { type NatsConnection, connect, createInbox, headers } from '@nats-io/transport-node'
import { nats, type NatsOptions } from '../src/brokers/nats/index.ts'
import type { OutgoingMessage } from '../src/core/message.ts'
import { newId } from '../src/core/ids.ts'
import { startNats } from '../src/testing/services/index.ts'

const { values } = parseArgs({ options: { events: { type: 'string' }, runs: { type: 'string' } } })
const events = Number(values.events ?? 100_000)
const RUNS = Number(values.runs ?? 5)
const PAGE = 500
const PAYLOAD = Buffer.alloc(1000, 'x')

interface Result {
  readonly cpuPer100k: number
  readonly rate: number
}

/** Publishes `count` events to the stream named `topic`. */
type Way = (topic: string, count: number) => Promise<void>

const cores = os.cpus()
console.log(`## JetStream, ${new Date().toISOString().slice(0, 10)}\n`)
console.log(
  `${cores.length} cores (${cores[0]?.model.trim()}), Node ${process.version}, load ${os.loadavg()[0]?.toFixed(1)};`,
)
console.log(`${events} events of 1000 bytes in pages of ${PAGE}, median of ${RUNS}.\n`)

await table({}, 'nats-server with its defaults', events, (servers, nc) => ({
  'js.publish, 256 in flight': plain(nc, 256),
  'raw: own inbox, pages of 500, no lanes': raw(nc),
  'adapter, 1000 keys': adapter({ servers }, 1000),
  'adapter, 10 keys': adapter({ servers }, 10),
  'adapter, 1 key': adapter({ servers }, 1),
  "adapter, durability 'fsync', 10 keys": adapter({ durability: 'fsync', servers }, 10),
}))
await table(
  { jetstream: { sync_interval: 'always' } },
  'nats-server with sync_interval: always',
  events / 10,
  (servers, nc) => ({
    'js.publish, 256 in flight': plain(nc, 256),
    'adapter, 1000 keys, one by one': adapter({ servers }, 1000),
    "adapter, durability 'fsync', 1000 keys": adapter({ durability: 'fsync', servers }, 1000),
    "adapter, durability 'fsync', 10 keys": adapter({ durability: 'fsync', servers }, 10),
  }),
)

async function table(
  settings: Readonly<Record<string, unknown>>,
  title: string,
  count: number,
  ways: (servers: string, nc: NatsConnection) => Readonly<Record<string, Way>>,
): Promise<void> {
  const server = await startNats({ settings })
  try {
    const nc = await connect({ servers: server.address })
    const manager = await jetstreamManager(nc)
    const results = new Map<string, Result[]>()
    // In turns, so that a noisy minute falls on all.
    for (let run = 0; run < RUNS; run++) {
      for (const [name, way] of Object.entries(ways(server.address, nc))) {
        const topic = `bench-${newId()}`
        await manager.streams.add({ allow_atomic: true, name: topic, subjects: [topic] })
        results.set(name, [...(results.get(name) ?? []), await measure(way, topic, count)])
        const { state } = await manager.streams.info(topic)
        if (state.messages !== count) throw new Error(`${name}: ${state.messages} of ${count} are on the stream`)
        await manager.streams.delete(topic)
      }
    }
    await nc.close()
    print(title, server.version, results)
  } finally {
    await server.dispose()
  }
}

async function measure(way: Way, topic: string, count: number): Promise<Result> {
  const cpu = process.cpuUsage()
  const started = performance.now()
  await way(topic, count)
  const seconds = (performance.now() - started) / 1000
  const { system, user } = process.cpuUsage(cpu)
  return { cpuPer100k: ((user + system) / 1e6 / count) * 100_000, rate: count / seconds }
}

function print(title: string, version: string, results: ReadonlyMap<string, readonly Result[]>): void {
  const rows = Array.from(results, ([name, runs]) => {
    const sorted = runs.toSorted((a, b) => a.rate - b.rate)
    return { name, ...(sorted[Math.floor(sorted.length / 2)] as Result) }
  })
  console.log(`### ${title} (${version})\n`)
  console.log(`| | events/s | of the first | of the second | of the third | CPU s/100k |`)
  console.log('|---|---|---|---|---|---|')
  for (const { cpuPer100k, name, rate } of rows) {
    const ratios = [0, 1, 2].map((at) => (rate / (rows[at]?.rate ?? NaN)).toFixed(2))
    console.log(`| ${name} | ${Math.round(rate)} | ${ratios.join(' | ')} | ${cpuPer100k.toFixed(2)} |`)
  }
  console.log('')
}

/** nats.js as its documentation has it, with as many promises pending. */
function plain(nc: NatsConnection, inFlight: number): Way {
  const js = jetstream(nc)
  return async (topic, count) => {
    let next = 0
    const worker = async (): Promise<void> => {
      while (next++ < count) await js.publish(topic, PAYLOAD, { headers: plainHeaders(), msgID: newId() })
    }
    await Promise.all(Array.from({ length: inFlight }, worker))
  }
}

function plainHeaders(): ReturnType<typeof headers> {
  const carried = headers()
  carried.set('millrace-type', 'bench.event')
  return carried
}

/** The least a publisher can do: bytes out, answers counted, no order of keys, no classes of errors. */
function raw(nc: NatsConnection): Way {
  return async (topic, count) => {
    const inbox = `${createInbox()}.`
    let left = 0
    let done: (() => void) | undefined
    const subscription = nc.subscribe(`${inbox}*`, {
      callback: () => {
        if (--left === 0) done?.()
      },
    })
    let bytes: Uint8Array = Buffer.alloc(0)
    const carrier = Object.assign(headers(), { encode: () => bytes })
    for (let sent = 0; sent < count; sent += PAGE) {
      await new Promise<void>((resolve) => {
        done = resolve
        left = PAGE
        for (let i = 0; i < PAGE; i++) {
          const id = newId()
          bytes = Buffer.from(
            `NATS/1.0\r\nmillrace-id: ${id}\r\nmillrace-type: bench.event\r\nNats-Msg-Id: ${id}\r\n\r\n`,
          )
          nc.publish(topic, PAYLOAD, { headers: carrier, reply: inbox + i })
        }
      })
    }
    subscription.unsubscribe()
  }
}

function adapter(options: NatsOptions, keys: number): Way {
  return async (topic, count) => {
    const broker = nats(options)
    const publisher = broker.publisher()
    await publisher.start()
    for (let sent = 0; sent < count; sent += PAGE) {
      const page = Array.from({ length: PAGE }, (_, i) => event(topic, sent + i, keys))
      const unresolved = await publisher.publish(page)
      if (unresolved[0] !== undefined) throw unresolved[0].error
    }
    await publisher.close()
    await broker.close()
  }
}

function event(topic: string, seq: number, keys: number): OutgoingMessage {
  return {
    headers: {},
    id: newId(),
    key: `key-${seq % keys}`,
    payload: PAYLOAD,
    seq: String(seq),
    timeMs: 1_790_000_000_000 + seq,
    topic,
    type: 'bench.event',
  }
}
