/** Events that the broker refuses for good: parked with their key, replayed in order, discarded; whatever dies meanwhile. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Signals } from '../../src/core/signals.ts'
import { systemClock } from '../../src/core/clock.ts'
import type { Logger } from '../../src/core/logger.ts'
import { CrashCounter, type Parking, ParkingOwner, createParking } from '../../src/outbox-relay/parking/index.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql, openTransaction, read } from '../support/outbox-writer.ts'
import { firstOf, joined, message, until } from '../support/parking-stage.ts'
import { type PickyBroker, pickyBroker } from '../support/picky-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

for (const [version, capture] of [
  [18, 'polling'],
  [15, 'polling'],
  [18, 'replication'],
] as const) {
  describeWith(`postgres${version}`, `parking on PostgreSQL ${version} with ${capture}`, () => {
    let broker: PickyBroker
    let database: TestDatabase
    let parking: Parking
    let signals: Signals
    const relays: Relay[] = []
    beforeEach(async () => {
      database = await createTestDatabase({ version })
      broker = pickyBroker()
      parking = createParking({ postgres: database.pool })
      signals = new Signals()
    })
    afterEach(async () => {
      for (const relay of relays.splice(0)) await relay.stop()
      await database.close()
    })

    const started = async (options: Partial<RelayOptions> = {}): Promise<Relay> => {
      const made = createRelay({ broker, capture, postgres: database.pool, signals, ...options })
      const relay = trackLifecycle('relay', made)
      relays.push(relay)
      await relay.start()
      return relay
    }
    const append = async (key: string | null, from: number, to: number, topic?: string): Promise<void> => {
      for (let n = from; n <= to; n++) await appendSql(database.pool, key, n, topic)
    }
    const published = (key: string | null): number[] => firstOf(broker.stored, key)
    const parked = async (key?: string): Promise<number[]> => {
      const { rows } = await database.pool.query(
        'select payload from outbox.parked_record where $1::text is null or key = $1 order by n',
        [key ?? null],
      )
      return rows.map((row: { payload: Buffer }) => read(row.payload).n)
    }
    const nothingParked = () => until(async () => (await parking.count({ all: true })).records === 0)
    const numbers = (to: number): number[] => Array.from({ length: to }, (_, i) => i + 1)

    test('a refused event and the later ones of its key are parked; the others go on; a replay keeps the order (trap 16)', async () => {
      broker.refuses = (message) => message.key === 'bad' && read(message.payload).n === 2
      await append('bad', 1, 4)
      await append('good', 1, 4)
      const relay = await started()
      await until(() => published('good').length === 4)
      await append('bad', 5, 6, 'another-topic')
      await append('good', 5, 6)
      await until(() => published('good').length === 6)
      await until(async () => (await parked()).length === 5)
      expect(published('bad')).toEqual([1])
      expect(await parked()).toEqual([2, 3, 4, 5, 6])
      expect(relay.stats()).toMatchObject({ parked: { keys: 1, records: 5 }, published: 7, failures: 0 })

      // Refused again: it stays, with what follows.
      expect(await parking.replay({ key: 'bad' })).toEqual({ keys: 1, records: 5 })
      await until(async () => (await parking.list())[0]?.attempts === 2)
      expect(await parked()).toEqual([2, 3, 4, 5, 6])

      broker.refuses = () => false
      await parking.replay({ key: 'bad' })
      await append('bad', 7, 9)
      await until(() => published('bad').length === 9)
      expect(published('bad')).toEqual(numbers(9))
      await nothingParked()
      await until(() => relay.stats().parked.keys === 0)
      await append('bad', 10, 10)
      await until(() => published('bad').length === 10)
      expect(relay.stats()).toMatchObject({ parked: { keys: 0, records: 0 }, published: 16 })
    })

    test('live events of the key park behind it while it is replayed, and none overtakes', async () => {
      broker.refuses = (message) => message.key === 'k'
      await append('k', 1, 30)
      await started({ pageSize: 5 })
      await until(async () => (await parked()).length === 30)
      broker.refuses = () => false
      let next = 31
      signals.on('parking:publish', async () => {
        if (next <= 60) await append('k', next, (next += 3) - 1)
      })
      await parking.replay({ all: true })
      await nothingParked()
      expect(next).toBeGreaterThan(31)
      await append('k', next, 60)
      await until(() => published('k').length === 60)
      expect(published('k')).toEqual(numbers(60))
      await nothingParked()
    })

    test('a key whose row somebody holds open is left alone, and not published again and again', async () => {
      broker.refuses = ({ topic }) => topic === 'orders'
      await append('open', 1, 3)
      await append('free', 1, 3)
      const relay = await started()
      await until(async () => (await parked()).length === 6)
      await relay.stop()
      await parking.replay({ all: true })
      const held = await openTransaction(database.url)
      await held.query(`select from outbox.parked_key where key = 'open' for update`)
      broker.refuses = () => false
      await started()
      await until(async () => (await parking.count({ all: true })).records === 3)
      expect(broker.stored.map(({ key }) => key)).toEqual(['free', 'free', 'free'])
      await held.query('rollback')
      await held.end()
      await nothingParked()
      expect(broker.stored.map(({ key }) => key).slice(3)).toEqual(['open', 'open', 'open'])
    })

    test('what was discarded while its page was held up for hours is passed over by whichever relay reads it again', async () => {
      await append('k', 1, 1)
      const relay = await started()
      await until(() => published('k').length === 1)
      await relay.stop()
      await append('k', 2, 3)
      await database.pool.query(
        `insert into outbox.parked_discard (shard, seq, id, topic, key, type, bytes, parked_at, discarded_by, reason)
         select shard, seq, id, topic, key, type, 1, now() - interval '5 hours', 'somebody', 'a test'
         from outbox.record order by seq offset 1 limit 1`,
      )
      await started()
      await until(() => published('k').includes(3))
      expect(published('k')).toEqual([1, 3])
    })

    test('events without a key are parked alone', async () => {
      broker.refuses = (message) => message.key === null && read(message.payload).n % 3 === 0
      await append(null, 1, 9)
      await started()
      await until(async () => published(null).length === 6 && (await parked()).length === 3)
      expect((await parking.list()).map((event) => [event.key, event.reason])).toEqual(Array(3).fill([null, 'poison']))
      broker.refuses = () => false
      expect(await parking.replay({ topic: 'orders' })).toEqual({ keys: 3, records: 3 })
      await until(() => published(null).length === 9)
      await nothingParked()
    })

    test('a topic that is missing for thousands of events costs a statement a page; made again, one replay brings all', async () => {
      broker.refuses = (message) => message.topic === 'missing'
      await database.pool.query(
        `select outbox.append('missing', 'k' || n % 700, 't', convert_to('{"key":"x","n":' || n || '}', 'UTF8'))
         from generate_series(1, 3000) n`,
      )
      await append('other', 1, 1)
      let statements = 0
      signals.on('parking:park', () => statements++)
      const relay = await started()
      await until(() => relay.stats().parked.records === 3000)
      await until(() => published('other').length === 1)
      expect(relay.stats().parked).toEqual({ keys: 700, records: 3000 })
      // Two at most a page: what joins its key, and what is refused anew.
      expect(statements).toBeLessThanOrEqual(14)
      broker.refuses = () => false
      expect(await parking.replay({ topic: 'missing' })).toEqual({ keys: 700, records: 3000 })
      await until(() => broker.stored.length >= 3001)
      await nothingParked()
      for (let key = 0; key < 700; key++) {
        const seen = broker.stored.filter((message) => message.key === `k${key}`).map((message) => BigInt(message.seq))
        expect(seen).toEqual([...seen].toSorted((a, b) => (a < b ? -1 : 1)))
      }
    })

    test('a broker that is unwell during a replay holds up nobody, and loses nothing', async () => {
      broker.refuses = (message) => message.key === 'k'
      await append('k', 1, 5)
      await started()
      await until(async () => (await parked()).length === 5)
      let unwell = 3
      const error = new Error('not now')
      broker.answer = (batch) =>
        batch.flatMap(({ key }, index) =>
          key === 'k' && unwell > 0 ? [{ index, outcome: 'failed' as const, class: 'retry' as const, error }] : [],
        )
      signals.on('parking:published', () => void unwell--)
      await parking.replay({ key: 'k' })
      await append('other', 1, 3)
      await until(() => published('other').length === 3 && published('k').length === 5)
      expect(published('k')).toEqual(numbers(5))
      expect(unwell).toBeLessThanOrEqual(0)
    })

    const STEPS = ['parking:park', 'parking:parked', 'parking:publish', 'parking:published', 'parking:settled'] as const
    for (const step of STEPS) {
      test(`a relay that dies at ${step} loses nothing, and the order of the key holds`, async () => {
        broker.refuses = (message) => message.key === 'k' && read(message.payload).n === 3
        let deaths = 0
        signals.on(step, () => {
          if (++deaths <= 3) throw new Error('dies here')
        })
        await append('k', 1, 20)
        await append('l', 1, 20)
        const relay = await started({ pageSize: 4 })
        await until(() => published('l').length === 20)
        await until(async () => (await parked()).filter((n) => n > 2).length === 18)
        // What was published before may come again, and then it stands behind.
        expect((await parked()).filter((n) => n > 2)).toEqual(numbers(20).slice(2))
        broker.refuses = () => false
        await parking.replay({ all: true })
        await append('k', 21, 25)
        await until(() => published('k').length === 25)
        expect(published('k')).toEqual(numbers(25))
        expect(published('l')).toEqual(numbers(20))
        await nothingParked()
        expect(deaths).toBeGreaterThanOrEqual(3)
        expect(relay.stats().failures).toBe(3)
      })
    }

    test('what is parked is known to the next relay, also when it is too much to remember', async () => {
      broker.refuses = (message) => message.key?.startsWith('bad') ?? false
      for (let k = 0; k < 5; k++) await append(`bad ${k}`, 1, 2)
      const first = await started()
      await until(() => first.stats().parked.records === 10)
      await first.stop()
      broker.refuses = () => false
      const lease = await joined(database)
      const owner = ownerOf(lease, 3)
      await owner.begin()
      // Headers that jsonb would refuse, as an event of the WAL alone may have them.
      const headers = { nul: 'a\0', half: '\ud800' }
      const messages = ['bad 0', 'fine', 'bad 4', null].map((key, i) => ({ ...message(key, i), headers }))
      expect((await owner.divert(messages)).map(({ key }) => key)).toEqual(['fine', null])
      await lease.release()
      await append('bad 1', 3, 3)
      await append('fine', 1, 1)
      const second = await started()
      await until(() => published('fine').length === 1)
      await until(() => second.stats().parked.records === 13)
      expect(published('bad 1')).toEqual([])
    })

    test('a relay that was replaced parks, releases and deletes nothing (trap 6)', async () => {
      broker.refuses = (message) => message.key === 'k'
      await append('k', 1, 3)
      const relay = await started()
      await until(() => relay.stats().parked.records === 3)
      await relay.stop()
      broker.refuses = () => false
      const old = await joined(database)
      const owner = ownerOf(old)
      await owner.begin()
      await parking.replay({ key: 'k' })
      // It stands still between the broker's answer and the delete, and another takes its shards.
      signals.on('parking:published', async () => {
        await database.pool.query(`update outbox.lease set epoch = epoch + 1, token = gen_random_uuid()`)
      })
      await expect(owner.attend()).rejects.toMatchObject({ code: 'LEASE_LOST' })
      expect(await parked()).toEqual([1, 2, 3])
      await expect(owner.park([{ message: message('x', 1), reason: 'poison', error: '' }])).rejects.toMatchObject({
        code: 'LEASE_LOST',
      })
      await expect(owner.divert([message('k', 9)])).rejects.toMatchObject({
        code: 'LEASE_LOST',
      })
      expect(await parked()).toEqual([1, 2, 3])
      await parking.discard({ all: true }, 'test')
      await expect(owner.reload(old.lease.shards).then(() => owner.attend())).rejects.toMatchObject({
        code: 'LEASE_LOST',
      })
      expect(await parked()).toEqual([1, 2, 3])
      expect((await database.pool.query('select from outbox.parked_discard')).rowCount).toBe(0)
      await old.release()
    })

    test('a session that holds the rows of a key does not hold the relay', async () => {
      broker.refuses = (message) => message.key !== 'other'
      await append('k', 1, 2)
      await append('l', 1, 2)
      const relay = await started()
      await until(() => relay.stats().parked.records === 4)
      broker.refuses = () => false
      await parking.replay({ all: true })
      const client = await database.pool.connect()
      await client.query(`begin; select from outbox.parked_key where key = 'k' for update`)
      await parking.replay({ key: 'l' })
      await until(async () => (await parking.count({ key: 'l' }).then(({ records }) => records)) === 0)
      await append('other', 1, 1)
      await until(() => published('other').length === 1)
      await client.query('rollback')
      client.release()
      await nothingParked()
      expect(published('k')).toEqual([1, 2])
    })

    test('discarded events are gone for good, with who and why; the rest of the key waits for a replay', async () => {
      broker.refuses = (message) => message.key === 'k' && read(message.payload).n === 2
      await append('k', 1, 4)
      const relay = await started()
      await until(() => relay.stats().parked.records === 3)
      const [head] = await parking.list({ key: 'k' })
      expect(head).toMatchObject({
        attempts: 1,
        asked: null,
        error: 'the event is refused',
        reason: 'poison',
        type: 'order.changed',
      })
      await expect(parking.discard({ id: head?.id ?? '' }, ' ')).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
      await expect(parking.discard({}, 'why')).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
      expect(await parking.discard({ id: head?.id ?? '' }, 'too large', 'ann')).toEqual({ keys: 1, records: 1 })
      await until(() => relay.stats().parked.records === 2)
      expect((await parking.list()).map((event) => event.reason)).toEqual(['behind', 'behind'])
      const { rows } = await database.pool.query('select * from outbox.parked_discard')
      expect(rows).toMatchObject([
        { id: head?.id, key: 'k', topic: 'orders', discarded_by: 'ann', reason: 'too large' },
      ])
      await parking.replay({ key: 'k' })
      await until(() => published('k').length === 3)
      expect(published('k')).toEqual([1, 3, 4])
      await nothingParked()
    })

    test('a discarded event is passed over when the relay meets it again', async () => {
      broker.refuses = (message) => message.key === 'k' && read(message.payload).n === 1
      await append('k', 1, 3)
      // The page with the refused event never counts as published: the next term begins before it.
      const stuck = new Error('dies before the checkpoint')
      let parkedOnce = false
      signals.on('parking:parked', () => {
        parkedOnce = true
        throw stuck
      })
      const relay = await started()
      await until(() => parkedOnce && relay.stats().failures > 0)
      await relay.stop().catch(() => {})
      signals = new Signals()
      expect(await parked()).toEqual([1, 2, 3])
      const [head] = await parking.list()
      await parking.discard({ id: head?.id ?? '' }, 'not wanted')
      await parking.replay({ all: true })
      broker.refuses = () => false
      // Neither published nor parked again, though it comes again.
      const next = await started()
      await append('k', 4, 4)
      await until(() => published('k').length === 3)
      await nothingParked()
      expect(published('k')).toEqual([2, 3, 4])
      await next.stop()
      await database.pool.query('truncate outbox.checkpoint')
      await started()
      await append('z', 1, 1)
      await until(() => published('z').length === 1)
      expect(published('k')).toEqual([2, 3, 4])
    })

    test('a request waits while no relay is there, and a discard of everything frees the keys', async () => {
      broker.refuses = (message) => message.key !== null
      for (const key of ['a', 'b', 'c']) await append(key, 1, 3)
      const relay = await started()
      await until(() => relay.stats().parked.records === 9)
      await relay.stop()
      expect(await parking.discard({ all: true }, 'clean up')).toEqual({ keys: 3, records: 9 })
      expect(await parking.discard({ all: true }, 'clean up')).toEqual({ keys: 0, records: 0 })
      expect(await parking.count({ all: true })).toEqual({ keys: 3, records: 9 })
      broker.refuses = () => false
      await started()
      await nothingParked()
      await append('a', 4, 4)
      await until(() => published('a').length === 1)
      expect(broker.stored.map((one) => read(one.payload).n)).toEqual([4])
    })

    // One that streams relays alone.
    if (capture === 'polling') {
      test('two relays park and replay side by side, each its shards; a shard takes what is parked along', async () => {
        broker.refuses = ({ payload }) => read(payload).n === 2
        const keys = Array.from({ length: 40 }, (_, i) => `key ${i}`)
        const [first, second] = [await started(), await started()]
        await until(() => first.stats().state === 'relaying' && second.stats().state === 'relaying')
        for (const key of keys) await append(key, 1, 3)
        await until(() => first.stats().parked.records + second.stats().parked.records === 80)
        expect(first.stats().parked.keys).toBeGreaterThan(0)
        expect(second.stats().parked.keys).toBeGreaterThan(0)
        await first.stop()
        await until(() => second.stats().parked.records === 80)
        for (const key of keys) await append(key, 4, 4)
        await until(() => second.stats().parked.records === 120)
        broker.refuses = () => false
        const third = await started()
        await parking.replay({ topic: 'orders' })
        await nothingParked()
        for (const key of keys) expect(published(key)).toEqual([1, 2, 3, 4])
        expect(second.stats().failures + third.stats().failures).toBe(0)
      })
    }

    test('the log tells what is parked and released by ids and sizes, never by payload', async () => {
      const lines: [string, object, string][] = []
      const at = (level: string) => (fields: object, text: string) => void lines.push([level, fields, text])
      const logger: Logger = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
      broker.refuses = (one) => one.key === 'k'
      const id = await appendSql(database.pool, 'k', 1)
      const relay = await started({ logger })
      await until(() => relay.stats().parked.records === 1)
      broker.refuses = () => false
      await parking.replay({ id })
      await nothingParked()
      await until(() => relay.stats().parked.records === 0)
      const told = lines.filter(([, , text]) => /parked/.test(text))
      expect(told).toMatchObject([
        ['error', { id, topic: 'orders', bytes: 18, reason: 'poison' }, expect.any(String)],
        ['info', { id }, 'released a parked key'],
      ])
      expect(JSON.stringify(lines)).not.toContain('"n\\":')
    })

    test('the list is bounded, paged and filtered; a payload is shown when it is asked for', async () => {
      broker.refuses = () => true
      for (let n = 1; n <= 5; n++) await append(`k${n}`, n, n, n % 2 === 0 ? 'even' : 'odd')
      const relay = await started()
      await until(() => relay.stats().parked.records === 5)
      const first = await parking.list({ limit: 2 })
      const rest = await parking.list({ after: first.at(-1)?.n ?? '', limit: 1000 })
      expect([...first, ...rest].map((event) => event.key)).toEqual(['k1', 'k2', 'k3', 'k4', 'k5'])
      expect((await parking.list({ topic: 'even' })).map((event) => event.key)).toEqual(['k2', 'k4'])
      expect(await parking.list({ type: 'other' })).toEqual([])
      expect(await parking.count({ topic: 'odd' })).toEqual({ keys: 3, records: 3 })
      await expect(parking.list({ limit: 1001 })).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
      const { id = '' } = first[0] ?? {}
      expect(await parking.show(id)).not.toHaveProperty('payload')
      expect(read((await parking.show(id, { payload: true }))?.payload ?? Buffer.from('{}'))).toMatchObject({ n: 1 })
      expect(await parking.show('00000000-0000-4000-8000-000000000000')).toBeUndefined()
    })

    test('shard and lane are the same here as in the database', async () => {
      broker.refuses = () => true
      await append('ключ " \\ {}', 1, 1)
      await append(null, 1, 1)
      const relay = await started()
      await until(() => relay.stats().parked.records === 2)
      const { rows } = await database.pool.query(
        `select r.shard, outbox.shard_of(coalesce(r.key, r.id::text)) as expected, p.payload = r.payload as whole
         from outbox.parked_record r join outbox.record p using (id)`,
      )
      for (const row of rows) expect(row).toMatchObject({ shard: row.expected, whole: true })
      await parking.discard({ all: true }, 'test')
      await nothingParked()
    })

    function ownerOf({ client, lease }: Awaited<ReturnType<typeof joined>>, maxLanes?: number): ParkingOwner {
      return new ParkingOwner({
        backoff: { minDelayMs: 1, maxDelayMs: 10 },
        bounds: { maxBytes: 1_000_000, maxMessages: 100 },
        clock: systemClock,
        crashes: new CrashCounter(),
        lease,
        logger: { debug() {}, info() {}, warn() {}, error() {} },
        ...(maxLanes === undefined ? {} : { maxLanes }),
        onParked: () => {},
        onReplayed: () => {},
        publisher: broker.publisher(),
        schema: 'outbox',
        signals,
        sql: client,
      })
    }
  })
}
