/** Transactions of one row against those of a hundred, from the WAL. */
import type { Measure } from '../stage/measure.ts'
import { atLeast, fact, ratioOf, type Row } from '../stage/row.ts'
import type { DrainFigures } from '../stage/stage.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

export const oneRow: Measure = {
  name: 'one-row',
  async run(stage) {
    const rows: Row[] = []
    for (const target of ['null', 'jetstream'] as const) {
      const plan = { capture: 'replication', events: stage.count(200_000), target } as const
      const drains = await inTurns(stage.options.rounds, {
        hundred: () => stage.drain('main', plan),
        one: () => stage.drain('oneRow', plan),
      })
      const one = medianOf(drains.one, (drain) => drain.perSecond)
      const hundred = medianOf(drains.hundred, (drain) => drain.perSecond)
      const where = target === 'null' ? 'a null broker' : 'JetStream'
      rows.push(
        atLeast(`one row a transaction against a hundred, WAL to ${where}`, ratioOf(one, hundred), one / hundred, 0.7),
        fact(`the server's process that sends, one row a transaction to ${where}`, senderOf(drains.one)),
        fact(`… a hundred rows a transaction`, senderOf(drains.hundred)),
      )
    }
    const { walBytesPerEvent } = await stage.dataset('oneRow')
    rows.push(fact('WAL per event, one a transaction', `${Math.round(walBytesPerEvent)} B`))
    await stage.drop('oneRow')
    return rows
  },
}

/** It decodes for one slot on one core: near 100 % of it, nothing that reads from it can be faster. */
function senderOf(runs: readonly DrainFigures[]): string {
  const share = medianOf(
    runs,
    ({ wholePerSecond, walsenderPerMillion = Number.NaN }) => (walsenderPerMillion * wholePerSecond) / 1e6,
  )
  const perMillion = medianOf(runs, ({ walsenderPerMillion = Number.NaN }) => walsenderPerMillion)
  return `${Math.round(share * 100)} % of a core, ${perMillion.toFixed(2)} s per million`
}
