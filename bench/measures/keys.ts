/** Ten keys against a thousand: a key has at most one unresolved publish. */
import { atLeast, ratioOf, type Row } from '../stage/row.ts'
import type { Measure } from '../stage/measure.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

export const keys: Measure = {
  name: 'keys',
  async run(stage) {
    const rows: Row[] = []
    for (const target of ['jetstream', 'platformatic'] as const) {
      const plan = { capture: 'replication', events: stage.count(300_000), target } as const
      const drains = await inTurns(stage.options.rounds, {
        many: () => stage.drain('main', plan),
        ten: () => stage.drain('tenKeys', plan),
      })
      const ten = medianOf(drains.ten, (drain) => drain.perSecond)
      const many = medianOf(drains.many, (drain) => drain.perSecond)
      const where = target === 'jetstream' ? 'JetStream' : 'Kafka by platformatic'
      rows.push(atLeast(`ten keys against a thousand, WAL to ${where}`, ratioOf(ten, many), ten / many, 0.95))
    }
    await stage.drop('tenKeys')
    return rows
  },
}
