/** Polling the first records of a backlog, of a hundred thousand and of millions. */
import type { Measure } from '../stage/measure.ts'
import { atLeast, ratioOf } from '../stage/row.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

const RECORDS = { full: 10_000_000, normal: 2_000_000 }

export const waiting: Measure = {
  name: 'waiting',
  async run(stage) {
    const main = await stage.dataset('main')
    const small = await stage.dataset('small')
    const records = stage.count(stage.options.full ? RECORDS.full : RECORDS.normal)
    await main.extend(records - main.records)
    const plan = { capture: 'polling', events: small.records, target: 'null' } as const
    await stage.drain('main', plan) // warms the caches
    await stage.drain('small', plan)
    const drains = await inTurns(2 * stage.options.rounds + 1, {
      few: () => stage.drain('small', plan),
      many: () => stage.drain('main', plan),
    })
    await stage.drop('small')
    const many = medianOf(drains.many, (drain) => drain.perSecond)
    const few = medianOf(drains.few, (drain) => drain.perSecond)
    const what = `polling with ${records.toLocaleString('en-US')} records waiting against ${small.records.toLocaleString('en-US')}`
    return [atLeast(what, ratioOf(many, few), many / few, 0.95)]
  },
}
