/**
 * The applications of the kill tests: plain SQL, no code of the package. Each transaction locks an aggregate's row, raises
 * its version and calls outbox.append once for each new version; one in ten is rolled back.
 */
import pg from 'pg'
import { type Random, passes } from './model-random.ts'

const KEYS = 40
const CONNECTIONS = 4

const APPEND_SQL = `
  select outbox.append($1, $2, 'counted', convert_to(json_build_object('key', $2::text, 'n', $3::integer + i)::text, 'UTF8'))
  from generate_series(1, $4::integer) i`

export class SqlWriters {
  committed = 0
  readonly #clients: pg.Client[]
  readonly #random: Random
  readonly #topic: string
  #allowed = 0
  #over = false
  #running: Promise<unknown> = Promise.resolve()
  #wake: (() => void)[] = []

  constructor(url: string, topic: string, random: Random) {
    this.#clients = Array.from({ length: CONNECTIONS }, () => new pg.Client({ connectionString: url }))
    this.#random = random
    this.#topic = topic
  }

  async start(): Promise<void> {
    for (const client of this.#clients) {
      client.on('error', () => {})
      await client.connect()
    }
    const [first] = this.#clients
    await first?.query('create table aggregate (key text primary key, version integer not null)')
    await first?.query(`insert into aggregate select 'key ' || i, 0 from generate_series(0, ${KEYS - 1}) i`)
    this.#running = Promise.all(this.#clients.map((client) => this.#write(client)))
  }

  /** So many more events may be committed. */
  allow(events: number): void {
    this.#allowed += events
    for (const wake of this.#wake.splice(0)) wake()
  }

  /** Writes what is allowed, then one event that is the last of all. Returns the id of that one. */
  async finish(): Promise<string> {
    this.#over = true
    this.allow(0)
    await this.#running
    const { rows } = await (this.#clients[0] as pg.Client).query(APPEND_SQL, [this.#topic, 'last', 0, 1])
    return (rows[0] as { append: string }).append
  }

  async close(): Promise<void> {
    this.#over = true
    this.#allowed = 0
    this.allow(0)
    await this.#running
    await Promise.all(this.#clients.map((client) => client.end()))
  }

  async #write(client: pg.Client): Promise<void> {
    const { below, chance } = this.#random
    for (;;) {
      if (this.committed >= this.#allowed) {
        if (this.#over) return
        await new Promise<void>((resolve) => this.#wake.push(resolve))
        continue
      }
      const count = 1 + below(10)
      const key = `key ${below(KEYS)}`
      await client.query('begin')
      const { rows } = await client.query<{ version: number }>(
        'update aggregate set version = version + $2 where key = $1 returning version',
        [key, count],
      )
      await client.query(APPEND_SQL, [this.#topic, key, (rows[0]?.version ?? 0) - count, count])
      if (chance(0.1)) {
        await client.query('rollback')
      } else {
        if (chance(0.05)) await passes(below(20))
        await client.query('commit')
        this.committed += count
      }
    }
  }
}
