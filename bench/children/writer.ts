/**
 * An application that commits at a given rate, whatever becomes of its events: one event a transaction, over as many
 * connections as it takes. It notes when it sends each COMMIT, by the machine's monotonic clock.
 */
import pg from 'pg'

/** What to write. */
export interface WriterJob {
  readonly connections: number
  readonly databaseUrl: string
  /** The number of the first event; each stands in the first four bytes of its payload. */
  readonly first: number
  readonly perSecond: number
  readonly seconds: number
  readonly topic: string
}

/** What it did. */
export interface Written {
  /** When the COMMIT of each event was sent, milliseconds, from event `first` on. */
  readonly committedAt: Float64Array
  /** How many were committed a second. */
  readonly perSecond: number
}

const { connections, databaseUrl, first, perSecond, seconds, topic } = JSON.parse(
  process.argv[2] as string,
) as WriterJob
const total = perSecond * seconds
const committedAt = new Float64Array(total)
const free: pg.Client[] = []
for (let n = 0; n < connections; n++) {
  const client = new pg.Client({ connectionString: databaseUrl })
  await client.connect()
  // What a prepared statement of an application does, without its payload's way over the wire.
  await client.query(`prepare put (integer) as
    insert into outbox.record (shard, id, topic, key, type, payload, headers)
    select outbox.shard_of('customer-' || $1 % 1000), outbox.new_id(), '${topic}', 'customer-' || $1 % 1000,
           'order.placed', int4send($1) || decode(repeat('5a', 996), 'hex'), '{}'`)
  await client.query(`begin; execute put(0); rollback`)
  free.push(client)
}
let sent = 0
let done = 0
const startedAt = performance.now()
const finished = Promise.withResolvers<void>()
const timer = setInterval(pump, 1)
await finished.promise
clearInterval(timer)
const written: Written = { committedAt, perSecond: total / ((performance.now() - startedAt) / 1000) }
process.send?.(written)
while (free.length > 0) await free.pop()?.end()

function pump(): void {
  const due = Math.min(total, Math.floor(((performance.now() - startedAt) / 1000) * perSecond))
  while (sent < due) {
    const client = free.pop()
    if (client === undefined) return
    void commit(client, sent++)
  }
}

async function commit(client: pg.Client, n: number): Promise<void> {
  try {
    await client.query(`begin; execute put(${first + n})`)
    committedAt[n] = Number(process.hrtime.bigint()) / 1e6
    await client.query('commit')
  } catch (error) {
    finished.reject(error as Error)
  }
  free.push(client)
  if (++done === total) finished.resolve()
  pump()
}
