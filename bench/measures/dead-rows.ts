/** Polling through a table with as many dead rows as live ones, and more, under a snapshot that keeps them all. */
import pg from 'pg'
import type { Measure } from '../stage/measure.ts'
import { atLeast, fact, ratioOf } from '../stage/row.ts'
import { inTurns, medianOf } from '../stage/turns.ts'

/** It deletes: nobody may use the records afterwards. */
export const deadRows: Measure = {
  name: 'dead-rows',
  async run(stage) {
    const { databaseUrl, pool, records } = await stage.dataset('main')
    const live = stage.count(400_000)
    const { rows } = await pool.query<{ high: string }>(`select min(seq) + ${records} as high from outbox.record`)
    const clean = await stage.drain('main', { capture: 'polling', events: live, target: 'null' })
    const old = new pg.Client({ connectionString: databaseUrl })
    await old.connect()
    await old.query('begin isolation level repeatable read; select count(*) from outbox.lease')
    try {
      // Three of five of the first records, in between the others.
      await pool.query('delete from outbox.record where seq < $1 and seq % 5 < 3', [rows[0]?.high])
      const drains = await inTurns(stage.options.rounds, {
        cursor: () => stage.cursor('main', live),
        relay: () => stage.drain('main', { capture: 'polling', events: live, target: 'null' }),
      })
      const ours = medianOf(drains.relay, (drain) => drain.perSecond)
      const theirs = medianOf(drains.cursor, (drain) => drain.perSecond)
      const dead = `${Math.round((records * 0.6) / 1000)}k dead rows among ${live / 1000}k and an old open snapshot`
      return [
        atLeast(`the same with ${dead}`, ratioOf(ours, theirs), ours / theirs, 0.9),
        fact('… against the relay without them', ratioOf(ours, clean.perSecond)),
      ]
    } finally {
      await old.end()
      await stage.drop('main')
    }
  },
}
