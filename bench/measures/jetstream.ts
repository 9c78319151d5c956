/** The relay to JetStream, by both captures, against publishing events that are at hand. */
import type { PublisherJob } from '../children/publisher.ts'
import type { Measure } from '../stage/measure.ts'
import { type Row, atLeast, fact, perSecond, ratioOf } from '../stage/row.ts'
import { lean } from '../stage/lean.ts'
import type { DrainFigures, Stage } from '../stage/stage.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

export const jetstream: Measure = {
  name: 'jetstream',
  async run(stage) {
    const events = stage.count(300_000)
    const relay = (capture: 'polling' | 'replication') => (): Promise<DrainFigures> =>
      stage.drain('main', { capture, events, target: 'jetstream' })
    const drains = await inTurns(stage.options.rounds, {
      raw: () => bare(stage, 'raw', events),
      wal: relay('replication'),
      js: () => bare(stage, 'js.publish', stage.count(100_000)),
      polling: relay('polling'),
    })
    const rate = (runs: readonly DrainFigures[]): number => medianOf(runs, (drain) => drain.perSecond)
    const [js, raw] = [rate(drains.js), rate(drains.raw)]
    const rows: Row[] = []
    for (const [capture, runs] of [['WAL', drains.wal] as const, ['polling', drains.polling] as const]) {
      const ours = rate(runs)
      rows.push(
        atLeast(`${capture} to JetStream against js.publish, 256 in flight`, ratioOf(ours, js), ours / js, 2),
        atLeast(`${capture} to JetStream against raw own-inbox publishing`, ratioOf(ours, raw), ours / raw, 0.6),
        lean(`relay CPU per 100k events, ${capture} to JetStream`, runs, drains.raw, 'raw own-inbox publishing'),
      )
    }
    const cpu = medianOf(drains.js, (drain) => drain.cpuPer100k)
    rows.push(fact('js.publish by itself', `${perSecond(js)}, ${cpu.toFixed(2)} CPU s per 100k`))
    return rows
  },
}

async function bare(stage: Stage, way: PublisherJob['way'], events: number): Promise<DrainFigures> {
  const topic = 'bench-bare'
  await stage.topic('jetstream', topic)
  return stage.publish({ address: (await stage.nats()).address, events, keys: 1000, topic, way })
}
