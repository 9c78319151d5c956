/**
 * `npm run bench`: what the stations cost, as ratios within one run on one machine, against real servers. Prints a table
 * and, with `--write`, records it in bench/RESULTS.md. `--records=N` changes the backlog (default: a million).
 */
import { readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { startServices } from '../src/testing/services/index.ts'
import { type Backlog, makeBacklog } from './backlog.ts'
import type { Drain } from './drain.ts'
import { benchInbox } from './inbox.ts'

const { values } = parseArgs({ options: { records: { type: 'string' }, write: { type: 'boolean' } } })
const records = Number(values.records ?? 1_000_000)
const RUNS = 3

const lines: string[] = []
const print = (line: string): void => {
  lines.push(line)
  console.log(line)
}

const services = await startServices({
  env: process.env,
  print: (line) => console.log(line),
  services: ['postgres18', 'kafka', 'nats'],
})
try {
  const { postgres18, kafka, nats } = services.addresses
  if (postgres18 === undefined) throw new Error('no PostgreSQL: nothing can be measured')
  await heading(postgres18)
  console.log(`making a backlog of ${records} records`)
  const backlog = await makeBacklog(postgres18, records)
  try {
    await relayTable(backlog, { kafka: kafka && `kafka://${kafka}`, nats: nats && `nats://${nats}` })
  } finally {
    await backlog.drop()
  }
  await inboxTable(postgres18)
} finally {
  await services.stop()
}
if (values.write) {
  const file = path.join(import.meta.dirname, 'RESULTS.md')
  const earlier = readFileSync(file, 'utf8').split(/^(?=## )/m)
  writeFileSync(file, [earlier[0], `${lines.join('\n')}\n\n`, ...earlier.slice(1)].join(''))
}

async function heading(postgres: string): Promise<void> {
  const client = new pg.Client({ connectionString: postgres })
  await client.connect()
  const { rows } = await client.query<{ v: string }>(`select current_setting('server_version') as v`)
  await client.end()
  const cpu = os.cpus()
  print(`## ${new Date().toISOString().slice(0, 10)}`)
  print('')
  print(`${cpu.length} cores (${cpu[0]?.model.trim()}), ${Math.round(os.totalmem() / 2 ** 30)} GiB, ${os.type()};`)
  print(
    `Node ${process.version}, PostgreSQL ${rows[0]?.v}; everything on this machine, load ${os.loadavg()[0]?.toFixed(1)} at the start.`,
  )
  print('')
}

async function relayTable(
  backlog: Backlog,
  brokers: { kafka: string | undefined; nats: string | undefined },
): Promise<void> {
  await backlog.drain('cursor') // warms the caches
  // In turns, so that a noisy minute falls on both.
  const cursors: Drain[] = []
  const nulls: Drain[] = []
  for (let run = 0; run < RUNS; run++) {
    cursors.push(await backlog.drain('cursor'))
    nulls.push(await backlog.drain('null'))
  }
  const cursor = median(cursors)
  print(`Draining ${backlog.records} records of 1000 bytes (median of ${RUNS} for the first two rows):`)
  print('')
  print('| | records/s | of the bare cursor | CPU µs/record | peak RSS MiB | goal |')
  print('|---|---|---|---|---|---|')
  row('bare cursor, rows thrown away', cursor, '')
  row('relay to a null broker', median(nulls), '≥ 0.9, ≤ 160 MiB')
  if (brokers.nats) row('relay to NATS JetStream', await backlog.drain(brokers.nats), '≤ 160 MiB')
  if (brokers.kafka) row('relay to Kafka through kafkajs', await backlog.drain(brokers.kafka), '≤ 256 MiB')
  print('')

  function row(name: string, drain: Drain, goal: string): void {
    const rate = Math.round(backlog.records / drain.seconds)
    const ratio = (cursor.seconds / drain.seconds).toFixed(2)
    const cpu = ((drain.cpuSeconds / backlog.records) * 1e6).toFixed(1)
    print(`| ${name} | ${rate} | ${ratio} | ${cpu} | ${Math.round(drain.maxRssMib)} | ${goal} |`)
  }
}

async function inboxTable(postgres: string): Promise<void> {
  const results = []
  for (let run = 0; run < RUNS; run++) results.push(await benchInbox(postgres))
  results.sort((a, b) => a.ratio - b.ratio)
  const middle = results[Math.floor(RUNS / 2)]
  if (middle === undefined) return
  print(`Effects through the inbox, 1 KB messages over 1000 keys, one effect row each (median of ${RUNS}):`)
  print('')
  print('| | per second | ratio | goal |')
  print('|---|---|---|---|')
  print(`| naive: one connection; begin, inbox row, effect, commit | ${Math.round(middle.naivePerSecond)} | 1 | |`)
  print(`| consumer, default options | ${Math.round(middle.consumerPerSecond)} | ${middle.ratio.toFixed(1)} | ≥ 5 |`)
  print(`| scheduler alone (key lanes and watermark) | ${Math.round(middle.schedulerPerSecond)} | | |`)
}

function median(drains: readonly Drain[]): Drain {
  const sorted = drains.toSorted((a, b) => a.seconds - b.seconds)
  return sorted[Math.floor(sorted.length / 2)] as Drain
}
