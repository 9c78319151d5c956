/** The relay to Kafka through each client package, against the package by itself sending the same pages. */
import type { Measure } from '../stage/measure.ts'
import { type Row, atLeast, fact, ratioOf } from '../stage/row.ts'
import { lean } from '../stage/lean.ts'
import type { DrainFigures, Stage } from '../stage/stage.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

export const kafka: Measure = {
  name: 'kafka',
  async run(stage) {
    return [...(await compare(stage, 'kafkajs', 0.9)), ...(await compare(stage, 'platformatic', 0.75))]
  },
}

async function compare(stage: Stage, client: 'kafkajs' | 'platformatic', goal: number): Promise<readonly Row[]> {
  const events = stage.count(client === 'kafkajs' ? 150_000 : 300_000)
  const { address } = await stage.kafka()
  const topic = 'bench-bare'
  await stage.topic(client, topic)
  const drains = await inTurns(stage.options.rounds, {
    bare: () => stage.publish({ address, events, keys: 1000, topic, way: client }),
    wal: () => stage.drain('main', { capture: 'replication', events, target: client }),
    polling: () => stage.drain('main', { capture: 'polling', events, target: client }),
  })
  const rate = (runs: readonly DrainFigures[]): number => medianOf(runs, (drain) => drain.perSecond)
  const [wal, polling, bare] = [rate(drains.wal), rate(drains.polling), rate(drains.bare)]
  const cpu = `relay CPU per 100k events, WAL to Kafka by ${client}`
  const used = lean(cpu, drains.wal, drains.bare, 'the bare client')
  return [
    atLeast(`WAL to Kafka by ${client} against the bare client`, ratioOf(wal, bare), wal / bare, goal),
    atLeast(`polling to Kafka by ${client} against the bare client`, ratioOf(polling, bare), polling / bare, goal),
    client === 'platformatic' ? used : fact(used.what, used.figure),
  ]
}
