/**
 * From COMMIT to the broker's acknowledgement, at a given rate: the writer notes in its own process when it sends COMMIT,
 * the relay in its own when JetStream has answered, both by the machine's monotonic clock.
 */
import type { RelayMessage } from '../children/relay.ts'
import type { WriterJob, Written } from '../children/writer.ts'
import { type Child, resultOf } from '../stage/child.ts'
import type { Dataset } from '../stage/dataset.ts'
import type { Measure } from '../stage/measure.ts'
import type { Row } from '../stage/row.ts'
import { median } from '../stage/turns.ts'

const RATES = [
  { p50: 0.5, p99: 4, perSecond: 1000 },
  { p50: 1, p99: 12, perSecond: 5000 },
] as const
const WARM_SECONDS = 3

interface Latency {
  readonly p50: number
  readonly p99: number
  readonly perSecond: number
}

export const latency: Measure = {
  name: 'latency',
  async run(stage) {
    const seconds = Math.max(2, Math.round(8 * stage.options.scale))
    const dataset = await stage.dataset('empty')
    await stage.topic('jetstream', dataset.topic)
    const perRound = RATES.reduce((sum, rate) => sum + rate.perSecond * seconds, 0)
    const warm = WARM_SECONDS * 1000
    const stamps = warm + stage.options.rounds * perRound
    const relay = await stage.relay(dataset, { capture: 'replication', target: 'jetstream' }, { stamps })
    try {
      let first = await write(dataset, 0, 1000, WARM_SECONDS).then(() => warm)
      const results = RATES.map(() => [] as Latency[])
      for (let round = 0; round < stage.options.rounds; round++) {
        for (const [i, { perSecond }] of RATES.entries()) {
          const written = await write(dataset, first, perSecond, seconds)
          results[i]?.push(await compare(relay, written, first))
          first += perSecond * seconds
        }
      }
      return RATES.map((goal, i): Row => {
        const { p50, p99, perSecond } = median(results[i] ?? [], (one) => one.p99)
        return {
          what: `commit to acknowledgement at ${goal.perSecond / 1000}k/s, WAL to JetStream, p50 / p99`,
          figure: `${p50.toFixed(2)} / ${p99.toFixed(2)} ms (${Math.round(perSecond)} commits/s)`,
          goal: `≤ ${goal.p50} / ${goal.p99} ms`,
          met: p50 <= goal.p50 && p99 <= goal.p99,
        }
      })
    } finally {
      await relay.end()
      await stage.drop('empty')
    }
  },
}

function write(dataset: Dataset, first: number, perSecond: number, seconds: number): Promise<Written> {
  const { databaseUrl, topic } = dataset
  const job: WriterJob = { connections: 16, databaseUrl, first, perSecond, seconds, topic }
  return resultOf<Written>('writer', job, undefined)
}

/** Waits until all are published. */
async function compare(relay: Child<RelayMessage>, written: Written, first: number): Promise<Latency> {
  const { committedAt, perSecond } = written
  for (;;) {
    relay.send('stamps')
    const message = await relay.next()
    if (message.kind !== 'stamps') throw new Error(`a relay said ${message.kind}`)
    const stored = message.stamps.subarray(first, first + committedAt.length)
    if (stored.includes(0)) {
      await new Promise((resolve) => setTimeout(resolve, 200))
      continue
    }
    const took = committedAt.map((at, n) => (stored[n] as number) - at).toSorted()
    return { p50: at(took, 0.5), p99: at(took, 0.99), perSecond }
  }
}

function at(sorted: Float64Array, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] as number
}
