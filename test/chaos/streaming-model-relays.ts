/**
 * The relays of the streaming model, so many at a time at the most, and what befalls them, their slot and their
 * publication. A gentle course cuts connections, takes leases away, stops and starts relays that stream; a rough one adds
 * relays that poll, slots that are dropped or moved by hand, and publications that are changed.
 */
import pg from 'pg'
import { type Clock, systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import { createPublicationSql, publicationName } from '../../src/outbox-relay/capture/replication/publication.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { type Relay, createRelay } from '../../src/outbox-relay/relay.ts'
import type { CaptureMode } from '../../src/outbox-relay/term.ts'
import { trackLifecycle } from '../support/leaks.ts'
import type { TestDatabase } from '../support/services.ts'
import { modelBroker } from './model-broker.ts'
import type { History } from './model-history.ts'
import { type Random, passes } from './model-random.ts'

const PAGE_SIZES = [3, 20, 100, 400]
const PAGE_BYTES = [2048, 64 * 1024, 4 * 1024 * 1024]
/** Waits of the relay are so much shorter than they say. */
const HASTE = 4

// What ends a term here, and nothing else may.
const EXPECTED_CODES = new Set([
  '57P01',
  'CONNECTION_LOST',
  'ECONNRESET',
  'EPIPE',
  'LEASE_LOST',
  'PUBLICATION_CHANGED',
  'PUBLICATION_MISSING',
  'REPLICATION_FAILED',
])

const NAME = `"${publicationName('outbox')}"`
const MAKE = createPublicationSql('outbox')

/** Each change, and what takes it back. */
const CHANGES = [
  [`drop publication ${NAME}`, MAKE],
  [`alter publication ${NAME} drop table outbox.record`, `alter publication ${NAME} add table outbox.record`],
  [`alter publication ${NAME} set (publish = 'update')`, `alter publication ${NAME} set (publish = 'insert')`],
  [
    `alter publication ${NAME} set table outbox.record where (shard < 8)`,
    `alter publication ${NAME} set table outbox.record`,
  ],
] as const

/** How the slot and the publication are treated. */
export type Treatment = 'gentle' | 'rough'

export class StreamingModelRelays {
  readonly errors: string[] = []
  readonly happened = { altered: 0, cut: 0, moved: 0, stolen: 0, stopped: 0, streams: 0 }
  /** When the slot was last moved by hand, by the machine's clock. */
  movedAt = Number.NEGATIVE_INFINITY
  readonly slot: string
  readonly #database: TestDatabase
  readonly #history: History
  readonly #most: number
  readonly #pool: pg.Pool
  readonly #random: Random
  readonly #relays = new Set<Relay>()
  readonly #treatment: Treatment
  #quiet = false
  #terms = 0
  #onStreaming: (() => void) | undefined

  constructor(database: TestDatabase, history: History, random: Random, treatment: Treatment) {
    this.#database = database
    this.#history = history
    this.#most = 3
    this.#random = random
    this.#treatment = treatment
    this.slot = slotName(database.name, 'outbox')
    // Any of them may repeat all since the last marker.
    history.largestPage = Number.POSITIVE_INFINITY
    this.#pool = new pg.Pool({ connectionString: database.url, max: 40 })
    this.#pool.on('error', () => {})
  }

  /** Starts the first relay; resolves when it streams. */
  async stream(): Promise<void> {
    const streaming = new Promise<void>((resolve) => (this.#onStreaming = resolve))
    await this.#begin('replication')
    await streaming
  }

  /** Does something to the relays again and again until the signal aborts; then healthy ones work. */
  async trouble(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await passes(20 + this.#random.below(200))
      await this.#befall(this.#random.below(100))
    }
    this.#quiet = true
    if (this.#treatment === 'rough') await this.#attempt(`drop publication ${NAME}`).then(() => this.#attempt(MAKE))
    if (this.#relays.size === 0) await this.#begin()
  }

  async stop(): Promise<void> {
    for (const relay of this.#relays) await relay.stop()
    await this.#pool.end()
  }

  async #befall(what: number): Promise<void> {
    const rough = this.#treatment === 'rough'
    if (what < 30) await this.#cut()
    else if (what < 45) await this.#steal()
    else if (what < 60) await this.#begin()
    else if (what < 75) await this.#stopOne()
    else if (rough && what < 83) await this.#moveSlot()
    else if (rough) await this.#alter()
    if (this.#relays.size === 0) await this.#begin()
  }

  /** Ends some connections of the relays. */
  async #cut(): Promise<void> {
    const names = ['millrace-relay-%', 'millrace-relay-reader', 'millrace-relay-writer', 'millrace-relay-wal']
    const { rowCount } = await this.#database.pool.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
       where datname = current_database() and application_name like $1`,
      [names[this.#random.below(names.length)]],
    )
    this.happened.cut += rowCount ?? 0
  }

  /** Lets leases expire under their owner. */
  async #steal(): Promise<void> {
    await this.#database.pool.query(
      `with taken as materialized (select shard from outbox.lease where shard % 5 <> $1 order by shard for update)
       update outbox.lease l set expires_at = '-infinity' from taken where l.shard = taken.shard`,
      [this.#random.below(10)],
    )
    this.happened.stolen++
  }

  async #stopOne(): Promise<void> {
    const relay = [...this.#relays][this.#random.below(this.#relays.size)]
    if (relay === undefined) return
    this.#relays.delete(relay)
    await relay.stop().catch((error: Error) => this.#expect(error))
    this.happened.stopped++
  }

  /** Drops the slot, or moves it to the end of the WAL, or puts another in its place. */
  async #moveSlot(): Promise<void> {
    const { below } = this.#random
    const drop = 'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1'
    const what = below(3)
    this.movedAt = systemClock.monotonic()
    await this.#attempt(
      `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active_pid is not null`,
      [this.slot],
    )
    for (let tries = 0; tries < 3; tries++) {
      const done =
        what === 0
          ? await this.#attempt(
              `select pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) from pg_replication_slots where slot_name = $1`,
              [this.slot],
            )
          : await this.#attempt(drop, [this.slot])
      if (done) {
        this.happened.moved++
        break
      }
      await passes(2)
    }
    if (what === 2) {
      await this.#attempt(
        `set statement_timeout = '300ms'; select pg_create_logical_replication_slot('${this.slot}', 'pgoutput')`,
      )
    }
    this.movedAt = systemClock.monotonic()
  }

  /** Changes the publication and changes it back, at once, soon, in one transaction, or not after all. */
  async #alter(): Promise<void> {
    const { below, chance } = this.#random
    const [away, back] = CHANGES[below(CHANGES.length)] as (typeof CHANGES)[number]
    this.happened.altered++
    if (chance(0.2)) return void (await this.#attempt(`begin; ${away}; ${back}; commit`))
    if (chance(0.2)) return void (await this.#attempt(`begin; ${away}; rollback`))
    await this.#attempt(away)
    await passes(below(chance(0.3) ? 300 : 20))
    await this.#attempt(back)
  }

  /** Runs it over a connection of its own; false when the server refused it. */
  async #attempt(text: string, params?: unknown[]): Promise<boolean> {
    const client = new pg.Client({ connectionString: this.#database.url })
    client.on('error', () => {})
    await client.connect()
    try {
      await client.query(text, params)
      return true
    } catch {
      return false
    } finally {
      await client.end()
    }
  }

  async #begin(capture: CaptureMode = this.#mode()): Promise<void> {
    while (this.#relays.size < this.#most) {
      const relay = this.#make(capture)
      try {
        await relay.start()
        this.#relays.add(relay)
        return
      } catch (error) {
        this.#expect(error as Error)
      }
    }
  }

  #mode(): CaptureMode {
    const { chance } = this.#random
    if (this.#treatment === 'rough' && !this.#quiet && chance(0.25)) return 'polling'
    return chance(0.5) ? 'auto' : 'replication'
  }

  #make(capture: CaptureMode): Relay {
    const { below } = this.#random
    let before = ''
    let number = 0
    let captures = 0
    const term = (): number => {
      const { epoch, failures, shards } = relay.stats()
      const now = `${failures} ${epoch} ${captures} ${shards.join()}`
      if (now !== before) number = ++this.#terms
      before = now
      return number
    }
    const signals = this.#delays()
    signals.on('relay:capture', (reading) => {
      captures++
      if (reading !== 'replication') return
      this.happened.streams++
      this.#onStreaming?.()
    })
    const broker = modelBroker({
      epoch: term,
      history: this.#history,
      inspect: () => Promise.resolve(),
      moody: () => !this.#quiet,
      random: this.#random,
    })
    const relay = createRelay({
      broker,
      capture,
      clock: this.#clock(),
      leaseTtlMs: 8000,
      onError: (error) => this.#expect(error),
      pageBytes: PAGE_BYTES[below(PAGE_BYTES.length)] as number,
      pageSize: PAGE_SIZES[below(PAGE_SIZES.length)] as number,
      pollIntervalMs: 1 + below(40),
      postgres: this.#pool,
      signals,
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

  #expect(error: Error): void {
    const { code } = error as { code?: string }
    if (EXPECTED_CODES.has(String(code)) || /Connection terminated|not queryable/.test(error.message)) return
    if (this.errors.length < 10) this.errors.push(`${code}: ${error.message}`)
  }
}
