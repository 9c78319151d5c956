/** The streaming capture against real PostgreSQL: the WAL is read, and every way back to it loses nothing. */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Signals } from '../../src/core/signals.ts'
import { publicationName } from '../../src/outbox-relay/capture/replication/publication.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { dropSlot } from '../support/drop-slot.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'
import { slotFree } from '../support/wal-stage.ts'

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `streaming on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let broker: RecordingBroker
    let signals: Signals
    let slot: string
    let captures: string[]

    beforeEach(async () => {
      database = await createTestDatabase({ version })
      broker = recordingBroker()
      signals = new Signals()
      slot = slotName(database.name, 'outbox')
      captures = []
      signals.on('relay:capture', (capture: string) => captures.push(capture))
    })
    afterEach(() => database.close())

    const relayOf = (options: Partial<RelayOptions> = {}): Relay =>
      trackLifecycle(
        'relay',
        createRelay({ broker, capture: 'replication', postgres: database.pool, signals, ...options }),
      )
    const numbers = (): number[] => broker.stored.map((message) => read(message.payload).n)
    /** The numbers of each key without what was sent again. */
    const first = (): number[] => [...new Set(numbers())]
    const upTo = (last: number): number[] => Array.from({ length: last }, (_, i) => i + 1)
    const streams = async (relay: Relay): Promise<void> => {
      const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
      await relay.start()
      await streaming
    }
    const append = async (from: number, to: number, key = 'k'): Promise<void> => {
      for (let n = from; n <= to; n++) await appendSql(database.pool, key, n)
    }

    test('what commits is published, in the order of the commits; what rolls back is not', async () => {
      const relay = relayOf()
      await streams(relay)
      const early = await openTransaction(database.url)
      await appendSql(early, 'a', 3)
      await append(1, 2, 'b')
      const lost = await openTransaction(database.url)
      await appendSql(lost, 'a', 99)
      await lost.query('rollback')
      await early.query('savepoint s')
      await appendSql(early, 'a', 98)
      await early.query('rollback to s')
      await early.query('commit')
      await append(4, 4)
      await broker.until(4)
      expect(numbers()).toEqual([1, 2, 3, 4])
      await Promise.all([early.end(), lost.end()])
      await relay.stop()
    })

    test('events in the WAL alone come at their place among the others, and not when their transaction rolls back', async () => {
      const relay = relayOf()
      await streams(relay)
      const outbox = createOutbox()
      const event = (n: number) => ({
        topic: 'orders',
        key: 'k',
        type: 'x',
        payload: { key: 'k', n },
        headers: { a: 'b' },
      })
      const client = await openTransaction(database.url)
      await outbox.append(client, event(1))
      const { ids } = await outbox.appendWalOnly(client, [event(2), event(3)])
      await outbox.append(client, event(4))
      await client.query('commit')
      await client.query('begin')
      await outbox.appendWalOnly(client, event(99))
      await client.query('rollback')
      await append(5, 5)
      await broker.until(5)
      expect(numbers()).toEqual([1, 2, 3, 4, 5])
      const alone = broker.stored[1]
      expect(alone).toMatchObject({ id: ids[0], topic: 'orders', key: 'k', type: 'x' })
      expect(alone?.headers).toMatchObject({ a: 'b', 'content-type': 'application/json' })
      await client.end()
      await relay.stop()
    })

    test('an event in the WAL alone that nobody would read is refused', async () => {
      const client = await openTransaction(database.url)
      const append = createOutbox().appendWalOnly(client, { topic: 't', type: 'x', payload: 1 })
      await expect(append).rejects.toMatchObject({ code: 'WAL_ONLY_UNREAD' })
      await client.end()
    })

    test('a relay goes on where the last one stopped, and repeats nothing after a clean stop', async () => {
      const one = relayOf()
      await streams(one)
      await append(1, 10)
      await broker.until(10)
      await one.stop()
      await append(11, 20)
      const two = relayOf()
      await streams(two)
      await append(21, 30)
      await broker.until(30)
      await two.stop()
      expect(numbers()).toEqual(upTo(30))
      expect(captures).toEqual(['polling', 'replication', 'replication'])
    })

    test('what was appended while the slot was being made comes once, by polling or from the stream', async () => {
      await append(1, 5)
      const open = await openTransaction(database.url)
      await appendSql(open, 'late', 100)
      const relay = relayOf()
      await relay.start()
      // Making the slot waits for the open transaction; the relay does not.
      await append(6, 10)
      await broker.until(10)
      const streaming = signals.next('relay:capture', (capture) => capture === 'replication')
      await open.query('commit')
      await streaming
      await append(11, 15)
      await broker.until(16)
      await relay.stop()
      expect(numbers().toSorted((a, b) => a - b)).toEqual([...upTo(15), 100])
      await open.end()
    })

    test('a slot that is dropped under the relay is made anew, and nothing is lost', async () => {
      const relay = relayOf()
      await streams(relay)
      await append(1, 20)
      const again = signals.next('relay:capture', (capture) => capture === 'replication')
      const dropping = dropSlot(database.pool, slot)
      await append(21, 60)
      await dropping
      await again
      await append(61, 70)
      await broker.until(70)
      await relay.stop()
      expect(first()).toEqual(upTo(70))
    })

    test('a slot that was dropped and made anew behind the back of a relay that was down hides nothing', async () => {
      const one = relayOf()
      await streams(one)
      await append(1, 10)
      await broker.until(10)
      await one.stop()
      await append(11, 20)
      await dropSlot(database.pool, slot)
      await database.pool.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [slot])
      await append(21, 30)
      const two = relayOf()
      await streams(two)
      await append(31, 40)
      await broker.until(40)
      await two.stop()
      expect(first()).toEqual(upTo(40))
      expect(captures).toEqual(['polling', 'replication', 'polling', 'replication'])
    })

    test('a checkpoint that another cluster wrote fails the start itself, as it does for a relay that polls', async () => {
      const one = relayOf()
      await streams(one)
      await append(1, 1)
      await broker.until(1)
      await one.stop()
      await database.pool.query('update outbox.checkpoint set written_at = written_at') // another xmin than its writer
      await expect(relayOf().start()).rejects.toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
    })

    test("somebody else's slot of the same name is left alone, and the relay polls", async () => {
      const other = await createTestDatabase({ version, migrate: false })
      await other.pool.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [slot])
      const relay = relayOf()
      await relay.start()
      await append(1, 5)
      await broker.until(5)
      // It has tried to make its slot by now, or tries later; either way it must not drop this one.
      await signals.next('capture:look')
      expect(relay.stats()).toMatchObject({ capture: 'polling', state: 'relaying' })
      await relay.stop()
      const { rows } = await other.pool.query('select database from pg_replication_slots where slot_name = $1', [slot])
      expect(rows).toEqual([{ database: other.name }])
      await other.close()
    })

    test('a slot that was moved on by hand hides nothing', async () => {
      const one = relayOf()
      await streams(one)
      await append(1, 10)
      await broker.until(10)
      await one.stop()
      await append(11, 20)
      await slotFree(database.pool, slot)
      await database.pool.query('select pg_replication_slot_advance($1, pg_current_wal_lsn())', [slot])
      const two = relayOf()
      await two.start()
      await broker.until(20)
      await two.stop()
      expect(first()).toEqual(upTo(20))
    })

    const changes = {
      'dropped and made anew': [
        `drop publication "${publicationName('outbox')}"`,
        `create publication "${publicationName('outbox')}" for table outbox.record with (publish = 'insert', publish_via_partition_root)`,
      ],
      'told not to publish inserts for a while': [
        `alter publication "${publicationName('outbox')}" set (publish = 'update')`,
        `alter publication "${publicationName('outbox')}" set (publish = 'insert')`,
      ],
      'without the table for a while': [
        `alter publication "${publicationName('outbox')}" drop table outbox.record`,
        `alter publication "${publicationName('outbox')}" add table outbox.record`,
      ],
    }
    for (const [how, [away, back]] of Object.entries(changes)) {
      test(`a publication that is ${how} under the relay: nothing is lost, no key is inverted (trap 31)`, async () => {
        const relay = relayOf()
        await streams(relay)
        await append(1, 10)
        await broker.until(10)
        await database.pool.query(away as string)
        await append(11, 20)
        // The relay may have made it again already, or be just at it.
        await database.pool
          .query(back as string)
          .catch((error: { code?: string }) => expect(['42710', '23505', 'XX000']).toContain(error.code))
        await append(21, 30)
        await broker.until(30)
        await append(31, 40)
        await broker.until(40)
        await relay.stop()
        expect(first()).toEqual(upTo(40))
      })

      test(`a publication that is ${how} while no relay runs: nothing is lost`, async () => {
        const one = relayOf()
        await streams(one)
        await append(1, 10)
        await broker.until(10)
        await one.stop()
        await database.pool.query(away as string)
        await append(11, 20)
        await database.pool.query(back as string)
        await append(21, 30)
        const two = relayOf()
        await two.start()
        await broker.until(30)
        // It is known before the stream begins, and not by a stream that breaks.
        expect(two.stats()).toMatchObject({ failures: 0 })
        await two.stop()
        expect(first()).toEqual(upTo(30))
      })
    }

    test('from polling to streaming and back by configuration: nothing is lost, no key is inverted', async () => {
      let n = 0
      for (const capture of ['polling', 'replication', 'polling', 'polling', 'replication', 'replication'] as const) {
        await append(n + 1, n + 5)
        const relay = relayOf({ capture })
        if (capture === 'replication') await streams(relay)
        else await relay.start()
        await append(n + 6, n + 10)
        n += 10
        await broker.until(n)
        await relay.stop()
      }
      expect(first()).toEqual(upTo(60))
    })

    test('messages that somebody else writes under our prefixes stop nothing and move nothing', async () => {
      const relay = relayOf()
      await streams(relay)
      const forge = `select pg_logical_emit_message($1, $2, $3::bytea)`
      await database.pool.query(forge, [false, 'millrace-marker:outbox', Buffer.alloc(16)])
      await database.pool.query(forge, [true, 'millrace-event:outbox', Buffer.from('nonsense')])
      await database.pool.query(forge, [true, 'millrace-event:outbox', Buffer.of(1, 255, 255, 255, 255)])
      await append(1, 3)
      await broker.until(3)
      expect(numbers()).toEqual([1, 2, 3])
      expect(relay.stats()).toMatchObject({ capture: 'replication', failures: 0 })
      await relay.stop()
    })

    test('what is not published is not acknowledged, however long the broker takes', async () => {
      const relay = relayOf()
      await streams(relay)
      await append(1, 1)
      await broker.until(1)
      let open!: () => void
      const gate = new Promise<void>((resolve) => (open = resolve))
      broker.answer = async () => {
        await gate
        return []
      }
      const { rows: before } = await database.pool.query('select pg_current_wal_insert_lsn() as lsn')
      await append(2, 50)
      // Longer than a heartbeat of the stream takes with markers every second.
      await new Promise((resolve) => setTimeout(resolve, 2500))
      const { rows } = await database.pool.query(
        'select confirmed_flush_lsn <= $2::pg_lsn as held from pg_replication_slots where slot_name = $1',
        [slot, before[0].lsn],
      )
      expect(rows).toEqual([{ held: true }])
      open()
      await broker.until(50)
      await relay.stop()
      expect(numbers()).toEqual(upTo(50))
    })

    test('two that stream: one works and the other stands by, and takes over when the first is cut off', async () => {
      const pool = new pg.Pool({ connectionString: database.url })
      pool.on('error', () => {})
      const one = relayOf({ postgres: pool as never })
      await streams(one)
      const two = relayOf({ signals: new Signals() })
      await two.start()
      expect(two.stats().state).toBe('standby')
      await append(1, 10)
      await broker.until(10)
      await one.stop()
      await append(11, 20)
      await broker.until(20)
      expect(two.stats()).toMatchObject({ state: 'relaying' })
      await two.stop()
      await pool.end()
      expect(first()).toEqual(upTo(20))
    })
  })
}
