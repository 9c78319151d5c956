/** The bare minimum of reading the table: the same rows and columns, a page at a time after the last seq, thrown away. */
import pg from 'pg'
import type { Drain } from './relay.ts'

/** What to read. */
export interface CursorJob {
  readonly databaseUrl: string
  readonly events: number
}

const { databaseUrl, events } = JSON.parse(process.argv[2] as string) as CursorJob
const client = new pg.Client({ connectionString: databaseUrl })
await client.connect()
const cpu = process.cpuUsage()
// As the relay sets its own reader.
await client.query('set enable_seqscan = off; set enable_bitmapscan = off; set jit = off')
const started = performance.now()
let read = 0
for (let after = '0'; read < events;) {
  const { rows } = await client.query<{ seq: string }>({
    name: 'cursor',
    text: `select seq, id, topic, key, type, payload, headers from outbox.record where seq > $1 order by seq limit 1000`,
    values: [after],
  })
  if (rows.length === 0) throw new Error(`the outbox holds ${read} records, not ${events}`)
  read += rows.length
  after = rows[rows.length - 1]?.seq ?? after
}
const seconds = (performance.now() - started) / 1000
const { system, user } = process.cpuUsage(cpu)
const drain: Drain = {
  events: read,
  seconds,
  wholeSeconds: seconds,
  cpuSeconds: (user + system) / 1e6,
  maxRssMib: process.resourceUsage().maxRSS / 1024,
}
process.send?.(drain)
await client.end()
