/**
 * The applications of the fault tests: plain SQL, no code of the package. They write all the time at a modest rate, and
 * when their server goes away they come back with it. What a lost answer said is for the database to know.
 */
import pg from 'pg'
import { type Random, passes } from './model-random.ts'

const KEYS = 40
const CONNECTIONS = 4

/** How long a writer waits for an answer before it takes the server for dead. */
const PATIENCE_MS = 4000

/** How long it waits for the tables to be made, and tries to write the last event of all. */
const LAST_WITHIN_MS = 60_000

const APPEND_SQL = `
  select outbox.append($1, $2, 'counted', convert_to(json_build_object('key', $2::text, 'n', $3::integer + i)::text, 'UTF8'))::text as id
  from generate_series(1, $4::integer) i`

export interface FaultWritersOptions {
  readonly random: Random
  readonly topic: string
  /** Where the primary is now. */
  readonly url: () => string
}

export class FaultWriters {
  /** The events whose commit was answered. */
  readonly acknowledged: string[] = []
  /** While it is true no transaction is held open. */
  calm = false
  readonly #options: FaultWritersOptions
  readonly #over = new AbortController()
  #running: Promise<unknown> = Promise.resolve()

  constructor(options: FaultWritersOptions) {
    this.#options = options
  }

  /** Makes what they write to, and begins. */
  async start(): Promise<void> {
    await this.#with(async (client) => {
      await client.query('create table aggregate (key text primary key, version integer not null)')
      await client.query(`insert into aggregate select 'key ' || i, 0 from generate_series(0, ${KEYS - 1}) i`)
      await client.query(`insert into aggregate values ('long', 0), ('last', 0)`)
    }, LAST_WITHIN_MS)
    const short = Array.from({ length: CONNECTIONS }, () => this.#write((client) => this.#short(client)))
    this.#running = Promise.all([...short, this.#write((client) => this.#long(client))])
  }

  /** Resolves when so many more events are committed. */
  async more(events: number): Promise<void> {
    const target = this.acknowledged.length + events
    while (this.acknowledged.length < target) await passes(10)
  }

  /** Stops, then writes one event that is the last of all; one more when nobody knows whether it is committed. */
  async finish(): Promise<void> {
    await this.close()
    for (const until = performance.now() + LAST_WITHIN_MS; ;) {
      try {
        await this.#with((client) => this.#transaction(client, { count: 1, key: 'last' }))
        return
      } catch (error) {
        if (performance.now() > until) throw error
        await passes(100)
      }
    }
  }

  async close(): Promise<void> {
    this.#over.abort()
    await this.#running
  }

  /** Writes until it is over, over one connection after another. */
  async #write(one: (client: pg.Client) => Promise<void>): Promise<void> {
    while (!this.#over.signal.aborted) {
      await this.#with(async (client) => {
        while (!this.#over.signal.aborted) await one(client)
      }).catch(() => passes(20))
    }
  }

  async #short(client: pg.Client): Promise<void> {
    const { below, chance } = this.#options.random
    await this.#transaction(client, {
      count: 1 + below(6),
      // A late write: the append early, the commit behind those of others.
      holdMs: chance(0.05) && !this.calm ? below(150) : 0,
      key: `key ${below(KEYS)}`,
      rollback: chance(0.1),
    })
    await passes(below(20))
  }

  /** A transaction that is open for long, with appends at its beginning and at its end. */
  async #long(client: pg.Client): Promise<void> {
    if (this.calm) return passes(20)
    await this.#transaction(client, {
      count: 2,
      holdMs: 300 + this.#options.random.below(900),
      key: 'long',
      twice: true,
    })
  }

  async #transaction(
    client: pg.Client,
    one: { count: number; holdMs?: number; key: string; rollback?: boolean; twice?: boolean },
  ): Promise<string[]> {
    const { count, holdMs = 0, key, rollback = false, twice = false } = one
    const ids: string[] = []
    await client.query('begin')
    const append = async (): Promise<void> => {
      const { rows } = await client.query<{ version: number }>(
        'update aggregate set version = version + $2 where key = $1 returning version',
        [key, count],
      )
      const params = [this.#options.topic, key, (rows[0]?.version ?? 0) - count, count]
      ids.push(...(await client.query<{ id: string }>(APPEND_SQL, params)).rows.map(({ id }) => id))
    }
    await append()
    if (holdMs > 0) await passes(holdMs)
    if (twice) await append()
    await client.query(rollback ? 'rollback' : 'commit')
    if (!rollback) this.acknowledged.push(...ids)
    return ids
  }

  async #with<T>(work: (client: pg.Client) => Promise<T>, patienceMs = PATIENCE_MS): Promise<T> {
    const client = new pg.Client({
      connectionString: this.#options.url(),
      connectionTimeoutMillis: patienceMs,
      query_timeout: patienceMs,
    })
    client.on('error', () => {})
    try {
      await client.connect()
      return await work(client)
    } finally {
      // A server that is silent would not answer a goodbye.
      void client.end().catch(() => {})
    }
  }
}
