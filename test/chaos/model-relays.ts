/**
 * The relays of the capture's model test, so many at a time at the most, and what befalls them: connections cut by the
 * server, some shards or all taken away, a stop in the middle of a retry, a successor with other bounds. With each that
 * comes or goes the shards move.
 */
import pg from 'pg'
import { type Clock, systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { type Relay, createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import type { TestDatabase } from '../support/services.ts'
import { modelBroker } from './model-broker.ts'
import type { History } from './model-history.ts'
import { type Random, passes } from './model-random.ts'

const PAGE_SIZES = [3, 20, 100, 400]
const PAGE_BYTES = [2048, 64 * 1024, 4 * 1024 * 1024]
/** Waits of the relay are so much shorter than they say. */
const HASTE = 4

// What ends a term here, and nothing else may: a cut connection, or a lease that somebody took.
const EXPECTED_CODES = new Set(['57P01', 'CONNECTION_LOST', 'ECONNRESET', 'EPIPE', 'LEASE_LOST'])

// Rows of recent writes of its shard; a message may be published only if one of them has opened a delta that holds it.
const OPENED_SQL = `
  select r.seq from outbox.record r where r.seq = any($1) and not exists (
    select from (
      select base, target from outbox.checkpoint k where r.shard = any(k.shards) order by n desc limit 200
    ) c
    where pg_visible_in_snapshot(r.tx, c.target) and not pg_visible_in_snapshot(r.tx, c.base))`

export class ModelRelays {
  readonly errors: string[] = []
  readonly happened = { cut: 0, stolen: 0, stopped: 0 }
  readonly #database: TestDatabase
  readonly #history: History
  readonly #pool: pg.Pool
  readonly #random: Random
  readonly #relays = new Set<Relay>()
  readonly #most: number
  #quiet = false
  #terms = 0

  constructor(database: TestDatabase, history: History, random: Random, most = 2) {
    this.#most = most
    history.relays = most
    this.#database = database
    this.#history = history
    this.#random = random
    this.#pool = new pg.Pool({ connectionString: database.url, max: 40 })
    this.#pool.on('error', () => {})
  }

  /** Does something to the relays again and again until the signal aborts; then one healthy relay works. */
  async trouble(signal: AbortSignal): Promise<void> {
    await this.#begin()
    // Each of it once at least, also where little of it fits into the time.
    while (!signal.aborted || Math.min(...Object.values(this.happened)) === 0) {
      await passes(20 + this.#random.below(150))
      await this.#befall(this.#random.below(100))
    }
    this.#quiet = true
    if (this.#relays.size === 0) await this.#begin()
  }

  async stop(): Promise<void> {
    for (const relay of this.#relays) await relay.stop()
    await this.#pool.end()
  }

  async #befall(what: number): Promise<void> {
    if (what < 40) await this.#cut()
    else if (what < 60) await this.#steal()
    else if (what < 75 || this.#relays.size === 0) await this.#begin()
    else await this.#stopOne()
    if (this.#relays.size === 0) await this.#begin()
  }

  /** Ends one or both connections of a relay. */
  async #cut(): Promise<void> {
    const which = ['millrace-relay-%', 'millrace-relay-reader', 'millrace-relay-writer'][this.#random.below(3)]
    const { rowCount } = await this.#database.pool.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where datname = current_database() and application_name like $1`,
      [which],
    )
    this.happened.cut += rowCount ?? 0
  }

  /** Lets the lease expire under its owner, while another relay waits for it. */
  async #steal(): Promise<void> {
    if (this.#relays.size < 2) await this.#begin()
    await this.#database.pool.query(
      `with taken as materialized (select shard from outbox.lease where shard % 5 <> $1 order by shard for update)
       update outbox.lease l set expires_at = '-infinity' from taken where l.shard = taken.shard`,
      [this.#random.below(10)],
    )
    this.happened.stolen++
  }

  async #stopOne(): Promise<void> {
    const relay = [...this.#relays][this.#random.below(this.#relays.size)] as Relay
    this.#relays.delete(relay)
    await relay.stop().catch((error: Error) => this.#expect(error))
    this.happened.stopped++
  }

  /** Starts a relay, unless there are enough; a connection that is cut meanwhile is no failure. */
  async #begin(): Promise<void> {
    while (this.#relays.size < this.#most) {
      const relay = this.#make()
      try {
        await relay.start()
        this.#relays.add(relay)
        return
      } catch (error) {
        this.#expect(error as Error)
      }
    }
  }

  #make(): Relay {
    const { below } = this.#random
    const pageSize = PAGE_SIZES[below(PAGE_SIZES.length)] as number
    this.#history.largestPage = Math.max(this.#history.largestPage, pageSize)
    // A term by what it holds: shards that leave and return begin anew.
    let before = ''
    let number = 0
    const term = (): number => {
      const { epoch, failures, shards } = relay.stats()
      const now = `${failures} ${epoch} ${shards.join()}`
      if (now !== before) number = ++this.#terms
      before = now
      return number
    }
    const broker = modelBroker({
      epoch: () => term(),
      history: this.#history,
      inspect: (batch) => this.#inspect(batch),
      moody: () => !this.#quiet,
      random: this.#random,
    })
    const relay = createRelay({
      broker,
      capture: 'polling',
      clock: this.#clock(),
      leaseTtlMs: 8000,
      onError: (error) => this.#expect(error),
      pageBytes: PAGE_BYTES[below(PAGE_BYTES.length)] as number,
      pageSize,
      pollIntervalMs: 1 + below(40),
      postgres: this.#pool,
      signals: this.#delays(),
    })
    return trackLifecycle('relay', relay)
  }

  /** Holds the relay for a moment at any of its steps, now and then. */
  #delays(): Signals {
    const signals = new Signals()
    const { chance, below } = this.#random
    for (const step of ['capture:look', 'capture:open', 'dispatch:publish', 'dispatch:published']) {
      signals.on(step, () => (!this.#quiet && chance(0.05) ? passes(below(15)) : undefined))
    }
    return signals
  }

  #clock(): Clock {
    const random = (): number => this.#random.below(1000) / 1000
    return { ...systemClock, random, setTimer: (callback, ms) => systemClock.setTimer(callback, ms / HASTE) }
  }

  /** Nothing is published that no committed checkpoint has opened. */
  async #inspect(batch: readonly OutgoingMessage[]): Promise<void> {
    const some = [batch[0], batch.at(-1), batch[this.#random.below(batch.length)]]
    const seqs = some.map((message) => message?.seq)
    const { rows } = await this.#database.pool.query(OPENED_SQL, [seqs])
    if (rows.length > 0)
      this.#history.problems.push(`published though no checkpoint opened it: ${JSON.stringify(rows)}`)
  }

  #expect(error: Error): void {
    const { code } = error as { code?: string }
    if (EXPECTED_CODES.has(String(code)) || /Connection terminated|not queryable/.test(error.message)) return
    if (this.errors.length < 10) this.errors.push(`${code}: ${error.message}`)
  }
}
