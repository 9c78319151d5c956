/** Effects through the inbox against the naive way. */
import { benchInbox } from '../inbox.ts'
import type { Measure } from '../stage/measure.ts'
import { atLeast, fact, perSecond, ratioOf } from '../stage/row.ts'
import { median } from '../stage/turns.ts'

export const inbox: Measure = {
  name: 'inbox',
  async run(stage) {
    const { url } = await stage.postgres()
    const options = { messages: stage.count(40_000), naiveMessages: stage.count(3000) }
    const results = []
    for (let round = 0; round < stage.options.rounds; round++) results.push(await benchInbox(url, options))
    const { consumerPerSecond, naivePerSecond, ratio, schedulerPerSecond } = median(results, (one) => one.ratio)
    return [
      atLeast(
        'effects through the inbox against one transaction each, one after the other',
        ratioOf(consumerPerSecond, naivePerSecond),
        ratio,
        5,
      ),
      fact('scheduler alone: key lanes and watermark', perSecond(schedulerPerSecond)),
    ]
  },
}
