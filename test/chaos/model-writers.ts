/**
 * The applications of the capture's model test: writers whose transactions do to the outbox whatever a service may do.
 * Each locks the rows of its aggregates, raises their versions and appends the events after, so that along a key the
 * versions 1, 2, 3 … are the commit order. Time passes in bursts, when all write as fast as they can, and in calm
 * phases, when one writer holds its transactions open while nothing else ends: that is when a snapshot's xmax is low.
 */
import pg from 'pg'
import { createOutbox } from '../../src/producer/index.ts'
import { type Random, passes } from './model-random.ts'

export const TOPIC = 'model'

const KEYS = 24
const outbox = createOutbox()

/** Makes the aggregates: the shared ones, and one that only `writer` touches for each writer. */
export async function createAggregates(pool: pg.Pool, writers: number): Promise<void> {
  await pool.query('create table aggregate (key text primary key, version integer not null default 0)')
  const keys = Array.from({ length: KEYS }, (_, i) => `k${i}`)
  const own = Array.from({ length: writers }, (_, i) => `own${i}`)
  await pool.query('insert into aggregate (key) select unnest($1::text[])', [[...keys, ...own]])
}

/** What the writers share: when they stop, and whether time is calm. */
export interface Course {
  calm: boolean
  committed: number
  readonly target: number
}

export class Writer {
  readonly #client: pg.Client
  readonly #course: Course
  readonly #index: number
  readonly #random: Random

  constructor(url: string, index: number, course: Course, random: Random) {
    this.#client = new pg.Client({ connectionString: url, application_name: 'model-writer' })
    this.#course = course
    this.#index = index
    this.#random = random
  }

  /** Writes until the course's target is reached. */
  async run(): Promise<void> {
    const { chance, below } = this.#random
    this.#client.on('error', () => {})
    await this.#client.connect()
    try {
      for (let n = 0; this.#course.committed < this.#course.target; n++) {
        if (n === 5) await this.#huge()
        else if (n === 20) await this.#long()
        else if (this.#course.calm && this.#index > 0) await passes(5)
        else if (this.#course.calm) await passes(below(40)).then(() => this.#held(1 + below(30)))
        else if (chance(0.1)) await this.#held(below(25))
        else await this.#small()
      }
    } finally {
      await this.#client.end()
    }
  }

  /** A transaction over one to three keys, with savepoints taken back, or taken back as a whole. */
  async #small(): Promise<void> {
    const { chance, below } = this.#random
    await this.#transaction(async () => {
      // One order of the keys for all, so that no two transactions wait for each other.
      const keys = [...new Set(Array.from({ length: 1 + below(3) }, () => below(KEYS)))].toSorted((a, b) => a - b)
      let written = 0
      for (const key of keys) {
        const undone = chance(0.1)
        if (undone) await this.#client.query('savepoint one')
        const events = await this.#change(`k${key}`, 1 + below(chance(0.1) ? 40 : 4))
        if (undone) await this.#client.query('rollback to one')
        else written += events
      }
      return chance(0.1) ? 'abort' : written
    })
  }

  /** Takes its low seq early, or its transaction id only, and commits late. */
  async #held(ms: number): Promise<void> {
    const { chance, below } = this.#random
    await this.#transaction(async () => {
      const idOnly = chance(0.3)
      if (idOnly) {
        await this.#client.query('select pg_current_xact_id()')
        await passes(ms)
      }
      const events = await this.#change(chance(0.5) ? `own${this.#index}` : `k${below(KEYS)}`, 1)
      if (!idOnly) await passes(ms)
      return chance(0.1) ? 'abort' : events
    })
  }

  /** Open for long, on a key of its own. */
  async #long(): Promise<void> {
    await this.#transaction(async () => {
      const first = await this.#change(`own${this.#index}`, 2)
      await passes(300 + this.#random.below(900))
      return first + (await this.#change(`own${this.#index}`, 2))
    })
  }

  /** Thousands of rows over two keys, while others commit between its statements. */
  async #huge(): Promise<void> {
    const { below } = this.#random
    await this.#transaction(async () => {
      const own = `own${this.#index}`
      let written = 0
      for (let part = 0; part < 4; part++) {
        written += await this.#generate(own, 200 + below(300))
        await passes(below(20))
      }
      return written + (await this.#generate(`k${below(KEYS)}`, 100))
    })
  }

  async #transaction(body: () => Promise<number | 'abort'>): Promise<void> {
    await this.#client.query('begin')
    if (this.#random.chance(0.3)) await this.#client.query('set local synchronous_commit = off')
    const written = await body()
    await this.#client.query(written === 'abort' ? 'rollback' : 'commit')
    if (written !== 'abort') this.#course.committed += written
  }

  /** Raises a key's version by `count` and appends an event for each, in one of the three ways. */
  async #change(key: string, count: number): Promise<number> {
    const { chance, below } = this.#random
    if (chance(0.2)) return this.#generate(key, count)
    const { rows } = await this.#client.query<{ version: number }>(
      'update aggregate set version = version + $2 where key = $1 returning version',
      [key, count],
    )
    const last = rows[0]?.version ?? 0
    const payloads = Array.from({ length: count }, (_, i) => {
      const n = last - count + 1 + i
      return { key, n, pad: chance(0.05) ? 'x'.repeat(below(6000)) : '' }
    })
    if (chance(0.5)) {
      await outbox.append(
        this.#client,
        payloads.map((payload) => ({ topic: TOPIC, key, type: 't', payload })),
      )
      return count
    }
    for (const payload of payloads) {
      const bytes = Buffer.from(JSON.stringify(payload))
      await this.#client.query('select outbox.append($1, $2, $3, $4)', [TOPIC, key, 't', bytes])
    }
    return count
  }

  /** The change and its events in one statement: the append reads from what locked the row. */
  async #generate(key: string, count: number): Promise<number> {
    await this.#client.query(
      `with changed as (update aggregate set version = version + $2 where key = $1 returning key, version)
       insert into outbox.record (shard, id, topic, key, type, payload)
       select outbox.shard_of(c.key), outbox.new_id(), $3, c.key, 't',
         convert_to(json_build_object('key', c.key, 'n', c.version - $2 + i)::text, 'UTF8')
       from changed c cross join generate_series(1, $2::integer) i order by i`,
      [key, count, TOPIC],
    )
    return count
  }
}
