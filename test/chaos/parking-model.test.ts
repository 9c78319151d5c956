/**
 * Parking against a model, with seeded choices: writers, a broker that refuses some events and is unwell now and then,
 * an operator who replays and discards, and relays that die at any step or are replaced. In the end everything is either
 * published or discarded, and along every key the first appearances are in order.
 *
 * Every run has new seeds; MILLRACE_MODEL_SEED=<seed> makes the same choices again (not the same timing).
 */
import { randomInt } from 'node:crypto'
import pg from 'pg'
import { expect, test } from 'vitest'
import type { Broker, Unresolved } from '../../src/brokers/broker.ts'
import { systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Signals } from '../../src/core/signals.ts'
import { type Parking, createParking } from '../../src/outbox-relay/parking/index.ts'
import { type Relay, createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'
import { type Random, passes } from './model-random.ts'

const KEYS = 12
const EVENTS = 600
const STEPS = [
  'dispatch:publish',
  'dispatch:published',
  'parking:park',
  'parking:parked',
  'parking:publish',
  'parking:published',
  'parking:settled',
  'parking:discard',
  'parking:discarded',
  'capture:open',
]

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `parking against its model on PostgreSQL ${version}`, () => {
    const given = process.env['MILLRACE_MODEL_SEED']
    const seeds = given === undefined ? [randomInt(2 ** 31), randomInt(2 ** 31)] : [Number(given)]

    test.each(seeds)(
      'nothing is lost, whatever dies, and every key keeps its order: seed %i',
      async (seed) => {
        const database = await createTestDatabase({ version })
        const pool = new pg.Pool({ connectionString: database.url })
        pool.on('error', () => {})
        const model = new Model(pool, seeded(seed))
        try {
          await model.run()
        } finally {
          await model.stop()
          await pool.end()
          await database.close()
        }
        expect(model.problems).toEqual([])
        for (const [what, times] of Object.entries(model.happened)) expect(times, what).toBeGreaterThan(0)
      },
      180_000,
    )
  })
}

interface Event {
  readonly id: string
  readonly key: string | null
  readonly place: number
}

class Model {
  readonly happened = { deaths: 0, discarded: 0, parked: 0, replaced: 0, unwell: 0 }
  readonly problems: string[] = []
  readonly #appended: Event[] = []
  readonly #bad = new Set<string>()
  readonly #broker: Broker
  readonly #first = new Map<string, number>()
  readonly #parking: Parking
  readonly #pool: pg.Pool
  readonly #random: Random
  #place = 0
  #quiet = false
  #relay: Relay | undefined

  constructor(pool: pg.Pool, random: Random) {
    this.#pool = pool
    this.#random = random
    this.#parking = createParking({ postgres: pool })
    const broker = recordingBroker()
    broker.answer = (batch) => this.#answer(batch)
    broker.onStored = ({ id }) => void (this.#first.has(id) || this.#first.set(id, ++this.#place))
    this.#broker = broker
  }

  async run(): Promise<void> {
    await this.#begin()
    const ended = new AbortController()
    const trouble = this.#trouble(ended.signal)
    const operator = this.#operate(ended.signal)
    await this.#write(EVENTS)
    const deadline = performance.now() + 60_000
    while (this.#least() === 0 && performance.now() < deadline) {
      await this.#write(20)
      await passes(20)
    }
    ended.abort()
    await Promise.all([trouble, operator])
    this.#quiet = true
    this.#bad.clear()
    if (this.#relay === undefined) await this.#begin()
    await this.#settle()
    await this.#judge()
  }

  async stop(): Promise<void> {
    this.#quiet = true
    await this.#relay?.stop()
  }

  #least(): number {
    return Math.min(...Object.values(this.happened))
  }

  /** Events of a few keys, one after the other, some without a key; now and then one that the broker refuses. */
  async #write(count: number): Promise<void> {
    const { below, chance } = this.#random
    for (const end = this.#appended.length + count; this.#appended.length < end;) {
      const place = this.#appended.length
      const key = chance(0.1) ? null : `k${below(KEYS)}`
      const { rows } = await this.#pool.query(`select outbox.append($1, $2, 't', $3) as id`, [
        `topic ${below(3)}`,
        key,
        Buffer.from(`${place}`),
      ])
      const { id } = rows[0] as { id: string }
      if (chance(0.04)) this.#bad.add(`${place}`)
      this.#appended.push({ id, key, place })
      if (chance(0.1)) await passes(below(30))
    }
  }

  #answer(batch: readonly OutgoingMessage[]): readonly Unresolved[] {
    const { chance } = this.#random
    const unwell = !this.#quiet && chance(0.15)
    const error = new Error('a mishap of the model')
    const held = new Map<string, Unresolved['class']>()
    return batch.flatMap((message, index): Unresolved[] => {
      const { key, payload } = message
      const before = key === null ? undefined : held.get(key)
      if (before !== undefined) return [{ index, outcome: 'unsent', class: before, error }]
      const bad = this.#bad.has(payload.toString())
      if (!bad && !(unwell && chance(0.3))) return []
      const errorClass = bad ? 'poison' : 'retry'
      if (key !== null) held.set(key, errorClass)
      if (!bad) this.happened.unwell++
      // `unknown`: the recording broker stores it, and says that it does not know.
      return [{ index, outcome: bad || chance(0.5) ? 'failed' : 'unknown', class: errorClass, error }]
    })
  }

  /** Replays and discards by any filter; some events become good on the way. */
  async #operate(signal: AbortSignal): Promise<void> {
    const { below, chance } = this.#random
    while (!signal.aborted) {
      await passes(10 + below(60))
      for (const bad of this.#bad) if (chance(0.2)) this.#bad.delete(bad)
      const events = await this.#parking.list({ limit: 1000 })
      const one = events[below(Math.max(1, events.length))]
      if (one === undefined) continue
      this.happened.parked++
      const what = below(10)
      const discards = what >= 7
      if (discards) this.happened.discarded++
      if (what < 3) await this.#parking.replay({ id: one.id })
      else if (what < 5) await this.#parking.replay({ topic: one.topic })
      else if (what < 7) await this.#parking.replay({ all: true })
      else if (what < 9) await this.#parking.discard({ id: one.id }, 'the model says so')
      else if (one.key !== null) await this.#parking.discard({ key: one.key, topic: one.topic }, 'the model says so')
    }
  }

  /** Cuts connections, takes shards away, stops the relay in good order and begins another. */
  async #trouble(signal: AbortSignal): Promise<void> {
    const { below } = this.#random
    while (!signal.aborted) {
      await passes(60 + below(150))
      const what = below(10)
      if (what < 4) {
        await this.#pool.query(
          `select pg_terminate_backend(pid) from pg_stat_activity
           where datname = current_database() and application_name like 'millrace-relay-%'`,
        )
      } else if (what < 7) {
        // As another relay that took the shards and died.
        await this.#pool.query(`update outbox.lease set epoch = epoch + 1, token = gen_random_uuid(),
          backend_pid = null, expires_at = '-infinity'`)
        this.happened.replaced++
      } else {
        const relay = this.#relay
        this.#relay = undefined
        await relay?.stop().catch(() => {})
        await this.#begin()
      }
    }
  }

  async #begin(): Promise<void> {
    const { below, chance } = this.#random
    const signals = new Signals()
    for (const step of STEPS) {
      signals.on(step, () => {
        if (this.#quiet || !chance(step.startsWith('parking') ? 0.08 : 0.02)) return undefined
        if (chance(0.5)) return passes(below(20))
        this.happened.deaths++
        throw new Error('dies here')
      })
    }
    for (;;) {
      const relay = createRelay({
        broker: this.#broker,
        capture: 'polling',
        // Waits are a tenth of what they say.
        clock: { ...systemClock, setTimer: (callback, ms) => systemClock.setTimer(callback, ms / 10) },
        leaseTtlMs: 20_000,
        pageSize: [2, 7, 50][below(3)] as number,
        pollIntervalMs: 10,
        postgres: this.#pool,
        signals,
      })
      try {
        await relay.start()
        this.#relay = trackLifecycle('relay', relay)
        return
      } catch {
        await relay.stop().catch(() => {}) // it died while it began
      }
    }
  }

  /** Until nothing is parked and everything is out. */
  async #settle(): Promise<void> {
    const deadline = performance.now() + 60_000
    while (performance.now() < deadline) {
      await this.#parking.replay({ all: true })
      const { records } = await this.#parking.count({ all: true })
      const gone = await this.#discarded()
      if (records === 0 && this.#appended.every(({ id }) => this.#first.has(id) || gone.has(id))) return
      await passes(50)
    }
    this.problems.push(`not at rest: ${JSON.stringify(await this.#parking.count({ all: true }))}`)
  }

  async #judge(): Promise<void> {
    const gone = await this.#discarded()
    const lost = this.#appended.filter(({ id }) => !this.#first.has(id) && !gone.has(id))
    if (lost.length > 0) this.problems.push(`lost: ${lost.map(({ key, place }) => `${key} ${place}`).join(', ')}`)
    for (let k = 0; k < KEYS; k++) {
      const seen = this.#appended.filter(({ id, key }) => key === `k${k}` && this.#first.has(id))
      const order = seen.toSorted((a, b) => (this.#first.get(a.id) as number) - (this.#first.get(b.id) as number))
      if (order.some(({ place }, i) => place !== seen[i]?.place)) {
        this.problems.push(`k${k} out of order: ${order.map(({ place }) => place).join(' ')}`)
      }
    }
    const left = await this.#pool.query('select from outbox.parked_key')
    if (left.rowCount !== 0) this.problems.push(`${left.rowCount} keys are parked without a record`)
  }

  async #discarded(): Promise<ReadonlySet<string>> {
    const { rows } = await this.#pool.query('select id from outbox.parked_discard')
    return new Set((rows as { id: string }[]).map(({ id }) => id))
  }
}
