/** What relaying leaves behind in the database, and what appending writes. */
import type { Measure } from '../stage/measure.ts'
import { atMost, fact } from '../stage/row.ts'

export const traces: Measure = {
  name: 'traces',
  async run(stage) {
    const { databaseUrl, pool, walBytesPerEvent } = await stage.dataset('main')
    if ((stage.relayed.get(databaseUrl) ?? 0) === 0) {
      await stage.drain('main', { capture: 'polling', target: 'null' })
      await stage.drain('main', { capture: 'replication', target: 'null' })
    }
    // A process writes its statistics at the latest when it ends, and the relays have ended.
    await pool.query('select pg_stat_force_next_flush()')
    const { rows } = await pool.query<{ dead: string; log: string; removed: string }>(
      `select sum(n_dead_tup) filter (where relname like 'record%') as dead,
              sum(n_tup_del + n_tup_upd) filter (where relname like 'record%') as removed,
              sum(n_dead_tup) filter (where relname not like 'record%') as log
       from pg_stat_user_tables where schemaname = 'outbox'`,
    )
    const [dead, removed] = [Number(rows[0]?.dead), Number(rows[0]?.removed)]
    const relayed = (stage.relayed.get(databaseUrl) ?? 0).toLocaleString('en-US')
    const bytes = Math.round(walBytesPerEvent)
    return [
      atMost(`dead tuples in outbox.record after ${relayed} events relayed`, String(dead), dead + removed, 0),
      fact('dead tuples in the other tables of the outbox', String(rows[0]?.log)),
      atMost(
        'WAL per event of 1 KB, 100 a transaction, with indexes, commit and full-page images',
        `${bytes} B`,
        bytes,
        1250,
        ' B',
      ),
    ]
  },
}
