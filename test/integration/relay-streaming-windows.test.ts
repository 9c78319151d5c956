/**
 * A commit counts in the WAL from its record on, and is visible only later: when it is flushed and, with synchronous
 * replication, when the standby has answered. Here no standby answers, so that moment lasts as long as a test needs it.
 */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { migrate } from '../../src/index.ts'
import { Signals } from '../../src/core/signals.ts'
import type { Anchor } from '../../src/outbox-relay/capture/polling/delta.ts'
import { publicationName } from '../../src/outbox-relay/capture/replication/publication.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import type { Checkpoint } from '../../src/outbox-relay/checkpoint-log.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { type PostgresServer, startPostgres } from '../../src/testing/services/index.ts'
import { dropSlot } from '../support/drop-slot.ts'
import { track, trackLifecycle } from '../support/leaks.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { describeWith } from '../support/services.ts'

const LOOKS = 20
const PUBLICATION = publicationName('outbox')

for (const version of [18, 15] as const) {
  describeWith(
    `private postgres${version}`,
    `streaming and commits that nobody sees yet, PostgreSQL ${version}`,
    () => {
      let server: PostgresServer
      let pool: pg.Pool
      let broker: RecordingBroker
      let signals: Signals
      let freeing: { over: boolean; done: Promise<void> } | undefined

      beforeEach(async () => {
        server = await startPostgres({ version })
        release = track('private postgres', () => server.dispose())
        pool = new pg.Pool({ connectionString: server.url })
        pool.on('error', () => {})
        broker = recordingBroker()
        signals = new Signals()
        await migrate(pool)
      })
      let release: () => void
      afterEach(async () => {
        if (freeing !== undefined) freeing.over = true
        await freeing?.done
        freeing = undefined
        // After a failure they still are at work, with connections of the pool.
        await Promise.allSettled(relays.splice(0).map((relay) => relay.stop()))
        await pool.end()
        release()
        await server.dispose()
      })

      const relays: Relay[] = []
      const relayOf = (options: Partial<RelayOptions> = {}): Relay => {
        const relay = createRelay({
          broker,
          capture: 'replication',
          leaseTtlMs: 60_000,
          postgres: pool,
          signals,
          ...options,
        })
        relays.push(relay)
        return trackLifecycle('relay', relay)
      }
      const until = async (text: string, params: unknown[] = []): Promise<void> => {
        while ((await pool.query(text, params)).rows.length === 0) await new Promise((done) => setTimeout(done, 20))
      }
      /** The server reads its configuration at leisure; then a commit waits. */
      const takesEffect = async (): Promise<void> => {
        for (let waits = false; !waits;) {
          const client = new pg.Client({ application_name: 'probe', connectionString: server.url })
          await client.connect()
          let answered = false
          const commit = client
            .query(`select pg_logical_emit_message(true, 'probe', '')`)
            .finally(() => void (answered = true))
          while (!answered && !waits) {
            const { rowCount } = await pool.query(
              `select pg_cancel_backend(pid) from pg_stat_activity
               where application_name = 'probe' and wait_event = 'SyncRep'`,
            )
            waits = rowCount === 1
          }
          await commit
          await client.end()
        }
      }
      /** From now on commits wait for a standby that does not exist; those of the relay are told to go on. */
      const holdCommits = async (): Promise<void> => {
        await pool.query(`alter system set synchronous_standby_names = 'nobody'`)
        await pool.query('select pg_reload_conf()')
        await takesEffect()
        const state = { over: false, done: Promise.resolve() }
        const cancel = async (): Promise<void> => {
          while (!state.over) {
            await pool.query(
              `select pg_cancel_backend(pid) from pg_stat_activity
             where application_name like 'millrace-%' and wait_event = 'SyncRep'`,
            )
            await new Promise((done) => setTimeout(done, 5))
          }
        }
        state.done = cancel()
        freeing = state
      }
      const letCommitsGo = async (): Promise<void> => {
        await pool.query('alter system reset synchronous_standby_names')
        await pool.query('select pg_reload_conf()')
      }
      /** Commits, and comes back when the commit waits for the standby. */
      const waitingCommit = async (client: pg.Client): Promise<{ readonly done: Promise<unknown> }> => {
        const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid')
        const committing = client.query('commit')
        await until(`select from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'`, [rows[0]?.pid])
        return { done: committing }
      }
      const numbers = (): number[] => [...new Set(broker.stored.map((message) => read(message.payload).n))]

      test('what stands in the WAL before the slot and is not visible yet when polling ends is not lost', async () => {
        const slot = slotName('postgres', 'outbox')
        const waits = (client: pg.Client) =>
          client.query<{ xid: string }>('select pg_current_xact_id()::xid::text as xid').then(async ({ rows }) => {
            return async () => {
              await until(
                `select from pg_locks where locktype = 'transactionid' and not granted and transactionid::text = $1`,
                [rows[0]?.xid],
              )
            }
          })
        const first = await openTransaction(server.url)
        const makerWaitsForFirst = await waits(first)
        const relay = relayOf()
        await relay.start()
        await makerWaitsForFirst()
        const second = await openTransaction(server.url)
        const makerWaitsForSecond = await waits(second)
        await first.query('commit')
        await makerWaitsForSecond()
        // It began after the maker counted whom it waits for, and its commit precedes the slot's place.
        await holdCommits()
        const writer = await openTransaction(server.url)
        await appendSql(writer, 'k', 1)
        const committed = await waitingCommit(writer)
        const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
        await second.query('rollback')
        await until('select from pg_replication_slots where slot_name = $1 and confirmed_flush_lsn is not null', [slot])
        let looks = 0
        const enough = signals.next('capture:look', () => ++looks === LOOKS)
        await Promise.race([enough, streaming])
        await letCommitsGo()
        await committed.done
        await appendSql(pool, 'k', 2)
        await broker.until(2)
        await streaming
        await appendSql(pool, 'k', 3)
        await broker.until(3)
        expect(numbers()).toEqual([1, 2, 3])
        await relay.stop()
        await Promise.all([first.end(), second.end(), writer.end()])
      })

      test('the floor of a marker leaves out no event that took its number before, in a transaction that ended after', async () => {
        const relay = relayOf()
        const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
        await relay.start()
        await streaming
        const slot = slotName('postgres', 'outbox')
        for (let n = 1, found = false; !found; n += 2) {
          const written = signals.next('checkpoint:written')
          await appendSql(pool, 'k', n)
          await broker.until(n)
          await written
          // Nothing ends from here to the marker, so the marker's snapshot has this one at or above its xmax.
          const open = await openTransaction(server.url)
          await appendSql(open, 'late', n + 1)
          const { rows } = await open.query<{ xid: string }>('select pg_current_xact_id()::text as xid')
          // Not every marker becomes a base: one that comes out of the stream before its statement has answered does not.
          const marked = new Set<Anchor>()
          const off = signals.on('capture:marked', (anchor: Anchor) => void marked.add(anchor))
          const { base } = await signals.next<Checkpoint>('checkpoint:written', (written) => marked.has(written.base))
          off()
          found = base.snapshot.xmax <= BigInt(rows[0]?.xid ?? '0')
          if (found) await dropSlot(pool, slot)
          await open.query('commit')
          await open.end()
          await broker.until(n + 1)
        }
        await relay.stop()
      }, 120_000)

      test('what stands in the WAL is published before its commit is answered: without its own slot a standby holds nothing back', async () => {
        const relay = relayOf()
        const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
        await relay.start()
        await streaming
        await holdCommits()
        const writer = await openTransaction(server.url)
        await appendSql(writer, 'k', 1)
        const committing = await waitingCommit(writer)
        let answered = false
        void committing.done.then(() => (answered = true))
        await broker.until(1)
        expect(answered).toBe(false)
        await letCommitsGo()
        await committing.done
        await relay.stop()
        expect(numbers()).toEqual([1])
        await writer.end()
      })

      const changes = {
        'without the table': [`drop table outbox.record`, `add table outbox.record`],
        'without inserts': [`set (publish = 'update')`, `set (publish = 'insert')`],
        'of some rows': [`set table outbox.record where (shard > 99)`, `set table outbox.record`],
      }
      for (const [how, [away, back]] of Object.entries(changes)) {
        test(`a publication ${how} by a commit that is not visible yet hides nothing`, async () => {
          const relay = relayOf()
          const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
          await relay.start()
          await streaming
          await appendSql(pool, 'k', 1)
          await broker.until(1)
          await holdCommits()
          const polls = signals.next('relay:capture', (capture) => capture === 'polling')
          const altering = await openTransaction(server.url)
          await altering.query(`alter publication "${PUBLICATION}" ${away}`)
          const altered = await waitingCommit(altering)
          // Behind the change in the WAL, and visible before it.
          const quick = await openTransaction(server.url)
          await quick.query('set local synchronous_commit = local')
          await appendSql(quick, 'k', 2)
          await quick.query('commit')
          // A marker that comes now must not say that this one is published.
          const passed = signals.next('capture:marked').then(() => signals.next('capture:marked'))
          await Promise.race([polls, passed])
          await letCommitsGo()
          await altered.done
          await altering.query(`alter publication "${PUBLICATION}" ${back}`)
          await appendSql(pool, 'k', 3)
          await broker.until(3)
          await relay.stop()
          expect(numbers()).toEqual([1, 2, 3])
          await Promise.all([altering.end(), quick.end()])
        })
      }
    },
  )
}
