/** The most memory a relay ever holds: at a backlog, in a huge transaction, and while its broker is away. */
import type { Measure } from '../stage/measure.ts'
import { type Row, atMost } from '../stage/row.ts'
import type { Target } from '../stage/brokers.ts'
import type { Stage } from '../stage/stage.ts'

const TARGETS = [
  { goal: 160, name: 'a null broker', target: 'null' },
  { goal: 160, name: 'JetStream', target: 'jetstream' },
  { goal: 256, name: 'Kafka by kafkajs', target: 'kafkajs' },
  { goal: 256, name: 'Kafka by platformatic', target: 'platformatic' },
] as const satisfies readonly { goal: number; name: string; target: Target }[]

const CAPTURES = ['replication', 'polling'] as const
const AWAY_SECONDS = { full: 600, normal: 20 }

export const memory: Measure = {
  name: 'memory',
  async run(stage) {
    const rows: Row[] = []
    for (const { goal, name, target } of TARGETS) {
      const events = stage.count(200_000)
      for (const capture of CAPTURES) await stage.drain('main', { capture, events, target })
      rows.push(rss(`RSS at a backlog, to ${name}, the highest of all drains`, stage.peakRssMib.get(target) ?? 0, goal))
    }
    const { records } = await stage.dataset('huge')
    for (const { goal, name, target } of [TARGETS[0], TARGETS[1], TARGETS[3]]) {
      const drain = await stage.drain('huge', { capture: 'replication', target })
      const what = `RSS in a transaction of ${records.toLocaleString('en-US')} rows, WAL to ${name}`
      rows.push(rss(what, drain.maxRssMib, goal))
    }
    await stage.drop('huge')
    for (const { goal, name, target } of [TARGETS[1], TARGETS[2], TARGETS[3]]) {
      // What waits is bounded alike for both; the long way looks at both.
      const captures = stage.options.full ? CAPTURES : CAPTURES.slice(0, 1)
      for (const capture of captures) rows.push(await away(stage, target, capture, name, goal))
    }
    return rows
  },
}

/** The broker stops while a backlog is being relayed, and stays away. */
async function away(
  stage: Stage,
  target: Target,
  capture: 'polling' | 'replication',
  name: string,
  goal: number,
): Promise<Row> {
  const seconds = stage.options.full ? AWAY_SECONDS.full : AWAY_SECONDS.normal
  const dataset = await stage.dataset('main')
  const server = await (target === 'jetstream' ? stage.nats() : stage.kafka())
  await dataset.rewind(capture)
  await stage.topic(target, dataset.topic)
  const relay = await stage.relay(dataset, { capture, target })
  try {
    await new Promise((resolve) => setTimeout(resolve, 500))
    await server.kill()
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000))
    relay.send('figures')
    const message = await relay.next()
    if (message.kind !== 'figures') throw new Error(`a relay said ${message.kind}`)
    const what = `RSS with the broker down for ${seconds} s, ${capture === 'polling' ? 'polling' : 'WAL'} to ${name}`
    return rss(what, message.drain.maxRssMib, goal)
  } finally {
    await server.start()
    await relay.end()
  }
}

function rss(what: string, mib: number, goal: number): Row {
  return atMost(what, `${Math.round(mib)} MiB`, mib, goal, ' MiB')
}
