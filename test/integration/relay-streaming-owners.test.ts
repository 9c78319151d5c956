/** Streams that are not what they were judged to be, and relays that are owners no more. */
import { setTimeout } from 'node:timers/promises'
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { MillraceError } from '../../src/core/errors.ts'
import { type Logger, silentLogger } from '../../src/core/logger.ts'
import { Signals } from '../../src/core/signals.ts'
import {
  createPublicationSql,
  ensurePublication,
  readFingerprint,
} from '../../src/outbox-relay/capture/replication/publication.ts'
import { makeSlot } from '../../src/outbox-relay/capture/replication/slot-maker.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { readSlot } from '../../src/outbox-relay/capture/replication/slot.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'
import { slotFree } from '../support/wal-stage.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `streaming and who owns the slot, PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let broker: RecordingBroker
    let signals: Signals
    let slot: string

    beforeEach(async () => {
      database = await createTestDatabase({ version })
      broker = recordingBroker()
      signals = new Signals()
      slot = slotName(database.name, 'outbox')
    })
    afterEach(() => database.close())

    const relayOf = (options: Partial<RelayOptions> = {}): Relay =>
      trackLifecycle(
        'relay',
        createRelay({ broker, capture: 'replication', postgres: database.pool, signals, ...options }),
      )
    const streams = async (relay: Relay): Promise<void> => {
      const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
      await relay.start()
      await streaming
    }
    const append = async (from: number, to: number): Promise<void> => {
      for (let n = from; n <= to; n++) await appendSql(database.pool, 'k', n)
    }
    const numbers = (): number[] => [...new Set(broker.stored.map((message) => read(message.payload).n))]
    const upTo = (last: number): number[] => Array.from({ length: last }, (_, i) => i + 1)

    /** A pool for the relay, whose replication connections wait for this before they connect. */
    const poolThatWaits = (before: () => Promise<unknown>): pg.Pool => {
      class Client extends pg.Client {
        readonly #waits: boolean

        constructor(config: pg.ClientConfig & { readonly replication?: string }) {
          super(config)
          this.#waits = config.replication !== undefined
        }

        override connect(): Promise<this>
        override connect(callback: (error: Error) => void): void
        override connect(callback?: (error: Error) => void): unknown {
          if (callback !== undefined) return super.connect(callback)
          return this.#waits ? before().then(() => super.connect()) : super.connect()
        }
      }
      const pool = new pg.Pool({ connectionString: database.url, Client: Client as unknown as new () => pg.ClientBase })
      pool.on('error', () => {})
      return pool
    }

    test('a slot that is moved after it was judged and before it streams hides nothing', async () => {
      const one = relayOf()
      await streams(one)
      await append(1, 10)
      await broker.until(10)
      await one.stop()
      await append(11, 20)
      const pool = poolThatWaits(() =>
        database.pool.query('select pg_replication_slot_advance($1, pg_current_wal_lsn())', [slot]),
      )
      const two = relayOf({ postgres: pool })
      await two.start()
      await append(21, 30)
      await broker.until(30)
      await two.stop()
      await pool.end()
      expect(numbers()).toEqual(upTo(30))
    })

    test('a relay whose stream does not open any more polls, and says what the slot costs', async () => {
      const one = relayOf()
      await streams(one)
      await append(1, 3)
      await broker.until(3)
      await one.stop()
      await slotFree(database.pool, slot)
      const pool = poolThatWaits(() => Promise.reject(new Error('no pg_hba.conf entry for replication')))
      const warnings: string[] = []
      const warn = (_fields: unknown, text?: string): void => void warnings.push(text ?? '')
      const two = relayOf({ logger: { ...silentLogger, warn } as Logger, postgres: pool })
      await append(4, 6)
      await two.start()
      await broker.until(6)
      expect(two.stats()).toMatchObject({ capture: 'polling', failures: 0 })
      expect(warnings.join()).toContain('no pg_hba.conf entry')
      expect(warnings.join()).toContain(`the replication slot ${slot} is not read and makes the server keep its log`)
      await two.stop()
      await pool.end()
      expect(numbers()).toEqual(upTo(6))
    })

    test('a relay that has lost its lease leaves the slot to the next owner', async () => {
      const owner = relayOf()
      await streams(owner)
      const held = await readSlot(database.pool, slot)
      const lost = new MillraceError('LEASE_LOST', 'as it is after the process stood still')
      const options = { clock: systemClock, logger: silentLogger, pool: database.pool, schema: 'outbox', slot }
      const assertHeld = (): never => {
        throw lost
      }
      const made = await makeSlot({ ...options, assertHeld, sql: database.pool }, new AbortController().signal)
      expect(made).toBeUndefined()
      expect(await readSlot(database.pool, slot)).toMatchObject({ activePid: held?.activePid })
      await append(1, 3)
      await broker.until(3)
      expect(owner.stats()).toMatchObject({ capture: 'replication', failures: 0, fallbacks: 0 })
      await owner.stop()
    })

    test('a publication that somebody else makes at the same moment serves', async () => {
      const other = await openTransaction(database.url)
      await other.query(createPublicationSql('outbox'))
      const ensured = ensurePublication(database.pool, 'outbox').catch((error: unknown) => error)
      const waiting = `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
      while ((await database.pool.query(waiting)).rowCount === 0) await setTimeout(20)
      await other.query('commit')
      expect(await ensured).toBe(await readFingerprint(database.pool, 'outbox'))
      await other.end()
    })

    test('a change of the publication that is not committed yet ends the stream, and taking it back brings it again', async () => {
      const relay = relayOf()
      await streams(relay)
      await append(1, 3)
      const client = await database.pool.connect()
      const polling = signals.next('relay:capture', (capture) => capture === 'polling')
      await client.query('begin')
      await client.query('alter publication millrace_outbox drop table outbox.record')
      await polling
      await append(4, 6)
      await broker.until(6)
      const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
      await client.query('rollback')
      client.release()
      await streaming
      await append(7, 9)
      await broker.until(9)
      await relay.stop()
      expect(numbers()).toEqual(upTo(9))
    })
  })
}
