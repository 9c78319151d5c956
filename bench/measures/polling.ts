/** Polling into a broker that does nothing, against a bare cursor over the same rows and columns. */
import type { Measure } from '../stage/measure.ts'
import { atLeast, fact, ratioOf } from '../stage/row.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

export const polling: Measure = {
  name: 'polling',
  async run(stage) {
    await stage.cursor('main') // warms the caches
    const drains = await inTurns(stage.options.rounds, {
      cursor: () => stage.cursor('main'),
      relay: () => stage.drain('main', { capture: 'polling', target: 'null' }),
    })
    const ours = medianOf(drains.relay, (drain) => drain.perSecond)
    const theirs = medianOf(drains.cursor, (drain) => drain.perSecond)
    const cpu = medianOf(drains.relay, (drain) => drain.cpuPer100k)
    return [
      atLeast('polling to a null broker against a bare cursor', ratioOf(ours, theirs), ours / theirs, 0.9),
      fact('relay CPU per 100k events, polling to a null broker', `${cpu.toFixed(2)} s`),
    ]
  },
}
