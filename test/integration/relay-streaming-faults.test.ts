/** What happens to a server under a streaming relay, and to its slot: nothing is lost, and publishing goes on. */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { migrate } from '../../src/index.ts'
import type { Logger } from '../../src/core/logger.ts'
import { Signals } from '../../src/core/signals.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { type PostgresServer, startPostgres } from '../../src/testing/services/index.ts'
import { track, trackLifecycle } from '../support/leaks.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { describeWith } from '../support/services.ts'

for (const version of [18, 15] as const) {
  describeWith(`private postgres${version}`, `a streaming relay and its server, PostgreSQL ${version}`, () => {
    let server: PostgresServer
    let pool: pg.Pool
    let broker: RecordingBroker
    let signals: Signals
    let warnings: string[]
    let end: () => Promise<void>

    const begin = async (settings: Readonly<Record<string, string>> = {}): Promise<void> => {
      server = await startPostgres({ version, settings })
      const untrack = track('private postgres', () => server.dispose())
      pool = new pg.Pool({ connectionString: server.url })
      pool.on('error', () => {})
      end = async () => {
        untrack()
        // A relay that a failure left at work gives its connections back when the server has gone.
        const ended = pool.end()
        await server.dispose()
        await ended
      }
      await migrate(pool)
    }
    const logger = (): Logger => {
      const warn = (_fields: unknown, text?: string): void => void warnings.push(text ?? '')
      return { debug() {}, info() {}, warn, error: warn } as unknown as Logger
    }
    const relayOf = (options: Partial<RelayOptions> = {}): Relay =>
      trackLifecycle('relay', createRelay({ broker, logger: logger(), postgres: pool, signals, ...options }))
    const streaming = (): Promise<unknown> => signals.next('relay:capture', (capture) => capture === 'replication')
    const streams = async (relay: Relay): Promise<void> => {
      const began = streaming()
      await relay.start()
      await began
    }
    const first = (): number[] => [...new Set(broker.stored.map((message) => read(message.payload).n))]
    const upTo = (last: number): number[] => Array.from({ length: last }, (_, i) => i + 1)
    const append = async (from: number, to: number): Promise<void> => {
      for (let n = from; n <= to; n++) await appendSql(pool, 'k', n)
    }
    const slot = slotName('postgres', 'outbox')

    beforeEach(() => {
      broker = recordingBroker()
      signals = new Signals()
      warnings = []
      // A server that did not start leaves nothing to end, least of all that of the test before.
      end = async () => {}
    })
    afterEach(() => end())

    test('capture auto polls where wal_level is not logical, and says why and how to change it', async () => {
      await begin({ wal_level: 'replica' })
      const relay = relayOf()
      await relay.start()
      await append(1, 3)
      await broker.until(3)
      expect(relay.stats()).toMatchObject({ capture: 'polling', fallbacks: 0 })
      expect(warnings.join()).toContain(`wal_level is replica; run alter system set wal_level = 'logical'`)
      await relay.stop()
      const strict = relayOf({ capture: 'replication' })
      await expect(strict.start()).rejects.toMatchObject({
        code: 'CONFIG_INVALID',
        message: expect.stringContaining('wal_level'),
      })
    })

    test('capture auto polls where the role may not replicate, and names the grant', async () => {
      await begin()
      await pool.query(`create role plain login`)
      await pool.query(`grant usage on schema outbox, inbox to plain`)
      await pool.query(`grant all on all tables in schema outbox to plain`)
      await pool.query(`grant all on all sequences in schema outbox to plain`)
      await pool.query(`grant execute on all functions in schema outbox to plain`)
      const url = new URL(server.url)
      url.username = 'plain'
      const asPlain = new pg.Pool({ connectionString: url.href })
      asPlain.on('error', () => {})
      const relay = relayOf({ postgres: asPlain })
      await relay.start()
      await append(1, 3)
      await broker.until(3)
      expect(relay.stats().capture).toBe('polling')
      expect(warnings.join()).toContain('alter role "plain" replication')
      await relay.stop()
      await asPlain.end()
    })

    test.each(['fast', 'immediate'] as const)(
      'a %s restart in the middle of a stream loses nothing and inverts no key',
      async (mode) => {
        await begin()
        const relay = relayOf()
        await streams(relay)
        await append(1, 50)
        await broker.until(50)
        const again = streaming()
        await server.restart(mode)
        await again
        await append(51, 100)
        await broker.until(100)
        expect(first()).toEqual(upTo(100))
        await relay.stop()
      },
    )

    test('a fast shutdown of the server does not wait for a relay that is behind (trap 33)', async () => {
      await begin()
      const relay = relayOf()
      await streams(relay)
      let open!: () => void
      const gate = new Promise<void>((resolve) => (open = resolve))
      const held = signals.next('dispatch:publish')
      broker.answer = async () => {
        await gate
        return []
      }
      await append(1, 1)
      await held
      await pool.query(
        `insert into outbox.record (shard, id, topic, key, type, payload)
         select 1, gen_random_uuid(), 't', 'bulk', 'x', convert_to('{"n":0}', 'UTF8') || decode(repeat('20', 1000), 'hex')
         from generate_series(1, 20000)`,
      )
      // The server's own default would be to wait for ever.
      await server.stop('fast')
      await server.start()
      open()
      await broker.until(20_001)
      await relay.stop()
      expect(first()).toEqual([1, 0])
    })

    test('a slot whose log was removed under a relay that was down: polling catches up, a new slot, nothing lost (trap 11)', async () => {
      await begin({ max_slot_wal_keep_size: '1MB', max_wal_size: '32MB', min_wal_size: '32MB', wal_keep_size: '0' })
      const one = relayOf()
      await streams(one)
      await append(1, 10)
      await broker.until(10)
      await one.stop()
      await append(11, 20)
      const lost = async (): Promise<boolean> => {
        const { rows } = await pool.query('select wal_status from pg_replication_slots where slot_name = $1', [slot])
        return rows[0].wal_status === 'lost'
      }
      while (!(await lost())) {
        await pool.query(`select pg_logical_emit_message(false, 'filler', repeat('x', 4000000))`)
        await pool.query('select pg_switch_wal()')
        await pool.query('checkpoint')
      }
      const two = relayOf()
      await streams(two)
      await append(21, 30)
      await broker.until(30)
      expect(first()).toEqual(upTo(30))
      expect(warnings.join()).toContain(`the replication slot ${slot} is lost`)
      await two.stop()
    })

    test('the slot of an idle outbox moves on while the rest of the server is busy (trap 12)', async () => {
      await begin()
      const relay = relayOf()
      await streams(relay)
      await append(1, 1)
      await broker.until(1)
      await pool.query('create table busy (t text)')
      const { rows } = await pool.query('select pg_current_wal_insert_lsn() as lsn')
      await pool.query(`insert into busy select repeat('x', 1000) from generate_series(1, 20000)`)
      const confirmed = async (): Promise<boolean> => {
        const { rows: slots } = await pool.query(
          'select confirmed_flush_lsn > $2::pg_lsn + 10000000 as passed from pg_replication_slots where slot_name = $1',
          [slot, rows[0].lsn],
        )
        return slots[0].passed
      }
      while (!(await confirmed())) await new Promise((resolve) => setTimeout(resolve, 100))
      await relay.stop()
    })

    test('a transaction of 200,000 rows is streamed in pages and bounded memory, and a relay that dies in it goes on inside it', async () => {
      await begin()
      await pool.query(
        `create function fill(n int) returns void language sql as
         $$ insert into outbox.record (shard, id, topic, key, type, payload)
            select 1, gen_random_uuid(), 't', 'k', 'x', convert_to(jsonb_build_object('n', i)::text, 'UTF8')
            from generate_series(1, n) i $$`,
      )
      const ownPool = new pg.Pool({ connectionString: server.url })
      ownPool.on('error', () => {})
      const relay = relayOf({ postgres: ownPool })
      await streams(relay)
      const seen = new Set<number>()
      let stored = 0
      let inverted = 0
      let highest = 0
      broker.onStored = ({ payload }) => {
        const { n } = read(payload)
        stored++
        if (!seen.has(n) && n !== highest + 1) inverted++
        highest = Math.max(highest, n)
        seen.add(n)
      }
      await pool.query('select fill(200000)')
      for (let cuts = 1; cuts <= 3; cuts++) {
        const fallen = signals.next('checkpoint:written')
        await fallen
        await pool.query(
          `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace-relay-%'`,
        )
      }
      await broker.until(200_000)
      await relay.stop()
      await ownPool.end()
      expect(inverted).toBe(0)
      expect(seen.size).toBe(200_000)
      // Each cut repeats what was published since the last checkpoint, and not the whole transaction.
      expect(stored).toBeLessThan(500_000)
    })
  })
}
