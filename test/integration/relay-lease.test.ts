/** Who holds a shard, and what a relay that lost its place cannot do any more. */
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { Signals } from '../../src/core/signals.ts'
import { CheckpointLog } from '../../src/outbox-relay/checkpoint-log.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { Lease } from '../../src/outbox-relay/lease.ts'
import { reAnchor } from '../../src/outbox-relay/re-anchor.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

const WAITING_SQL = `select count(*)::int as n from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock'`

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `the lease on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    beforeEach(async () => void (database = await createTestDatabase({ version })))
    afterEach(() => database.close())

    const relayOf = (options: Partial<RelayOptions> = {}): Relay =>
      trackLifecycle(
        'relay',
        createRelay({ broker: recordingBroker(), capture: 'polling', postgres: database.pool, ...options }),
      )
    const acquire = (holder: string, ttlMs = 60_000): Promise<Lease | undefined> =>
      Lease.acquire(database.pool, { clock: systemClock, holder, schema: 'outbox', ttlMs })
    const floorOf = async (lease: Lease): Promise<bigint | undefined> =>
      (await new CheckpointLog(database.pool, 'outbox', lease).load())[0]?.checkpoint.base.floor
    const checkpoint = { base: { snapshot: Snapshot.NOTHING, floor: 0n } }

    test('twenty that want all shards at once: exactly one takes them', async () => {
      const leases = await Promise.all(Array.from({ length: 20 }, (_, i) => acquire(`relay ${i}`)))
      expect(leases.filter((lease) => lease !== undefined)).toHaveLength(1)
    })

    test('a lease whose owner is connected is taken only after it has expired', async () => {
      const owner = await database.pool.connect()
      const options = { clock: systemClock, holder: 'owner', schema: 'outbox', ttlMs: 400 }
      // From before it is taken: the answer may be long on its way.
      const begun = performance.now()
      const lease = await Lease.acquire(owner, options)
      expect(lease).toBeDefined()
      let next: Lease | undefined
      while ((next = await acquire('contender')) === undefined) await database.pool.query('select pg_sleep(0.02)')
      expect(performance.now() - begun).toBeGreaterThan(350)
      expect(BigInt(next.epoch)).toBe(BigInt(lease?.epoch ?? 0) + 1n)
      expect(() => lease?.assertHeld()).toThrow(/expired/)
      await expect(lease?.renew(owner)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      owner.release()
    })

    test('a lease whose owner has lost its connection is taken at once', async () => {
      const owner = await database.pool.connect()
      await Lease.acquire(owner, { clock: systemClock, holder: 'owner', schema: 'outbox', ttlMs: 3_600_000 })
      owner.release(true)
      const begun = performance.now()
      while ((await acquire('contender')) === undefined) await database.pool.query('select pg_sleep(0.01)')
      expect(performance.now() - begun).toBeLessThan(20_000)
    })

    test('an owner that was replaced writes no checkpoint, even one that began before (trap 6)', async () => {
      const owner = await database.pool.connect()
      const lease = await Lease.acquire(owner, { clock: systemClock, holder: 'old', schema: 'outbox', ttlMs: 1 })
      const old = new CheckpointLog(owner, 'outbox', lease as Lease)
      await old.write(checkpoint)
      await database.pool.query('select pg_sleep(0.01)')
      const next = (await acquire('new')) as Lease
      expect(next).toBeDefined()
      await expect(old.write(checkpoint)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await new CheckpointLog(database.pool, 'outbox', next).write(checkpoint)
      const { rows } = await database.pool.query('select epoch::int from outbox.checkpoint order by n')
      expect(rows.map((row) => row.epoch)).toEqual([1, 2])
      owner.release()
    })

    test('an owner that was replaced empties no bucket of the checkpoint log either (trap 6)', async () => {
      const owner = await database.pool.connect()
      const lease = await Lease.acquire(owner, { clock: systemClock, holder: 'old', schema: 'outbox', ttlMs: 1 })
      const old = new CheckpointLog(owner, 'outbox', lease as Lease, 100)
      const at = (n: number) => ({ base: { snapshot: Snapshot.NOTHING, floor: BigInt(n) } })
      for (let n = 1; n <= 100; n++) await old.write(at(n))
      const next = (await acquire('new')) as Lease
      const log = new CheckpointLog(database.pool, 'outbox', next, 100)
      await log.load()
      for (let n = 101; n <= 160; n++) await log.write(at(n))
      await expect(old.write(at(0))).rejects.toMatchObject({ code: 'LEASE_LOST' })
      expect(await floorOf(next)).toBe(160n)
      owner.release()
    })

    test('a lease belongs to the connection that took it: over another one nothing is written', async () => {
      const [one, two] = [await database.pool.connect(), await database.pool.connect()]
      const options = { clock: systemClock, holder: 'owner', schema: 'outbox', ttlMs: 60_000 }
      const lease = (await Lease.acquire(one, options)) as Lease
      await expect(new CheckpointLog(two, 'outbox', lease).write(checkpoint)).rejects.toMatchObject({
        code: 'LEASE_LOST',
      })
      await expect(lease.renew(two)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      expect(() => lease.assertHeld()).toThrow()
      one.release()
      two.release()
    })

    test('a takeover waits for a write that is under way, and finds it; a claim of some shards leaves them (trap 6)', async () => {
      const owner = await database.pool.connect()
      const old = (await Lease.acquire(owner, {
        clock: systemClock,
        holder: 'old',
        schema: 'outbox',
        ttlMs: 1,
      })) as Lease
      await owner.query('begin')
      await new CheckpointLog(owner, 'outbox', old).write({ base: { snapshot: Snapshot.NOTHING, floor: 7n } })
      await owner.query('select pg_sleep(0.01)')
      const some = await Lease.join(database.pool, {
        clock: systemClock,
        holder: 'some',
        schema: 'outbox',
        ttlMs: 60_000,
      })
      expect(await some.claim(database.pool, 16)).toEqual([])
      let taken = false
      const taking = acquire('new').then((lease) => {
        taken = true
        return lease as Lease
      })
      const waiting = async (): Promise<boolean> => (await database.pool.query(WAITING_SQL)).rows[0].n > 0
      while (!taken && !(await waiting())) await database.pool.query('select pg_sleep(0.01)')
      expect(taken).toBe(false)
      await owner.query('commit')
      expect(await floorOf(await taking)).toBe(7n)
      owner.release()
    })

    test('a backend with the number of the owner’s, and another start, is not the owner', async () => {
      await acquire('owner', 3_600_000)
      // As when the server was restarted, or has come round to the number.
      await database.pool.query(
        `update outbox.lease set backend_pid = (select max(pid) from pg_stat_activity where backend_type = 'checkpointer'),
           backend_start = now() - interval '1 day'`,
      )
      expect(await acquire('contender')).toBeDefined()
    })

    test('the dead are no members: the living divide all shards', async () => {
      const options = { clock: systemClock, holder: 'member', schema: 'outbox', ttlMs: 3_600_000 }
      const [one, two] = [await database.pool.connect(), await database.pool.connect()]
      const lease = await Lease.join(one, options)
      await Lease.join(two, options)
      expect((await lease.look(one)).share).toBe(8)
      two.release(true)
      while ((await lease.look(one)).share !== 16) await database.pool.query('select pg_sleep(0.01)')
      one.release()
    }, 30_000)

    test('the log certifies nobody else’s row: the bucket of one that is not certified stays as it is', async () => {
      const sql = await database.pool.connect()
      const lease = await Lease.join(sql, { clock: systemClock, holder: 'owner', schema: 'outbox', ttlMs: 60_000 })
      await lease.claim(sql, 15)
      await database.pool.query(
        `insert into outbox.checkpoint (bucket, shards, epoch, base, base_floor, writer) values (0, '{15}', 1, '3:3:', 0, '3')`,
      )
      const log = new CheckpointLog(sql, 'outbox', lease, 100)
      for (let n = 1; n <= 380; n++) await log.write({ base: { snapshot: Snapshot.NOTHING, floor: BigInt(n) } })
      const { rows } = await database.pool.query(
        `select writer::text, xmin::text = '3' as certified from outbox.checkpoint where shards = '{15}'`,
      )
      expect(rows).toEqual([{ writer: '3', certified: false }])
      sql.release()
    })

    test('a relay that takes its shards while a re-anchoring waits for the lease is seen, and nothing is changed', async () => {
      const client = await database.pool.connect()
      await client.query('begin')
      await client.query('select from outbox.lease for update')
      const anchoring = reAnchor(database.pool, { lockTimeoutMs: 60_000 }).catch((error: unknown) => error)
      while ((await database.pool.query(WAITING_SQL)).rows[0].n === 0)
        await database.pool.query('select pg_sleep(0.01)')
      const options = { clock: systemClock, holder: 'quick', schema: 'outbox', ttlMs: 60_000 }
      const lease = (await Lease.acquire(client, options)) as Lease
      await client.query('commit')
      expect(await anchoring).toMatchObject({ code: 'CHECKPOINT_IN_USE' })
      await lease.renew(client)
      client.release()
    })

    test('a sequence that was set back is refused instead of skipping what follows', async () => {
      const broker = recordingBroker()
      const relay = relayOf({ broker })
      await relay.start()
      for (let n = 0; n < 5; n++) await appendSql(database.pool, 'k', n)
      await broker.until(5)
      await database.pool.query(`select setval('outbox.record_seq_seq', 1)`)
      await expect(relay.stopped).rejects.toMatchObject({ code: 'SEQUENCE_ALTERED' })
    })

    test('an outbox that was restored without its checkpoints is refused while it holds transactions still to come', async () => {
      await appendSql(database.pool, 'k', 1)
      await database.pool.query(
        `update outbox.record set tx = (pg_current_xact_id()::text::bigint + 100000)::text::xid8`,
      )
      await expect(relayOf().start()).rejects.toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
    })

    test('renewing and taking over lock the rows in one order, wherever they lie: no deadlock', async () => {
      const [owner, contender, gate] = await Promise.all([1, 2, 3].map(() => database.pool.connect()))
      if (owner === undefined || contender === undefined || gate === undefined) throw new Error('no connection')
      const options = { clock: systemClock, schema: 'outbox', ttlMs: 60_000 }
      const lease = (await Lease.acquire(owner, { ...options, holder: 'owner' })) as Lease
      // The first rows now lie behind the others, and nothing but an `order by` brings them into the order of the shards.
      await database.pool.query(`update outbox.lease set expires_at = '-infinity' where shard >= 8`)
      await database.pool.query(`update outbox.lease set expires_at = '-infinity' where shard < 8`)
      await owner.query('set enable_indexscan = off; set enable_bitmapscan = off')
      const waiting = async (count: number): Promise<void> => {
        while ((await database.pool.query(WAITING_SQL)).rows[0].n < count)
          await database.pool.query('select pg_sleep(0.01)')
      }
      await gate.query('begin')
      await gate.query('select from outbox.lease where shard = 4 for update')
      // The takeover holds 0 to 3 and waits for 4; the renewal must not hold 8 to 15 while it waits for 0.
      const taking = Lease.acquire(contender, { ...options, holder: 'contender' })
      await waiting(1)
      const renewing = lease.renew(owner)
      renewing.catch(() => {})
      await waiting(2)
      await gate.query('commit')
      expect(await taking).toBeDefined()
      await expect(renewing).rejects.toMatchObject({ code: 'LEASE_LOST' })
      for (const client of [owner, contender, gate]) client.release(true)
    })

    test('a relay whose lease is taken away stops writing, and stands by', async () => {
      const broker = recordingBroker()
      const signals = new Signals()
      const errors: Error[] = []
      const relay = relayOf({ broker, signals, onError: (error) => errors.push(error) })
      await relay.start()
      await database.pool.query(
        `update outbox.lease set epoch = epoch + 1, token = gen_random_uuid(), expires_at = now() + interval '1 hour',
           backend_pid = (select pid from pg_stat_activity where pid = pg_backend_pid()), backend_start = null`,
      )
      await appendSql(database.pool, 'k', 1)
      while (relay.stats().state !== 'standby') await database.pool.query('select pg_sleep(0.02)')
      expect(errors.map((error) => (error as { code?: string }).code)).toContain('LEASE_LOST')
      expect(broker.stored).toEqual([])
      await relay.stop()
    })

    test('an onError that throws breaks nothing: the relay survives what it can, and says what ends it', async () => {
      const broker = recordingBroker()
      const told: string[] = []
      const onError = (error: Error): never => {
        told.push((error as { code?: string }).code ?? error.message)
        throw new Error('a bug')
      }
      const relay = relayOf({ broker, onError })
      await relay.start()
      await database.pool.query(
        `select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name like 'millrace-relay-%'`,
      )
      await expect.poll(() => told.length).toBeGreaterThan(0)
      await appendSql(database.pool, 'k', 1)
      await broker.until(1)
      broker.answer = () => [{ class: 'fatal', error: new Error('not authorized'), index: 0, outcome: 'failed' }]
      await appendSql(database.pool, 'k', 2)
      await expect(relay.stopped).rejects.toMatchObject({ code: 'PUBLISH_FATAL' })
      expect(told.at(-1)).toBe('PUBLISH_FATAL')
    })

    test('a checkpoint that another cluster wrote is refused, with the way out, and the way out works', async () => {
      const broker = recordingBroker()
      const first = relayOf({ broker })
      await first.start()
      await appendSql(database.pool, 'k', 1)
      await broker.until(1)
      await first.stop()
      // What dump and restore, or a logical copy, does to the row: another transaction writes it.
      await database.pool.query(`create table copied as table outbox.checkpoint`)
      await database.pool.query(`truncate outbox.checkpoint`)
      await database.pool.query(`insert into outbox.checkpoint overriding system value select * from copied`)
      const refused = relayOf({ broker })
      const error = await refused.start().catch((caught: unknown) => caught as Error)
      expect(error).toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
      expect((error as Error).message).toContain('millrace checkpoint re-anchor')
      // Until the connection of the refused one has gone, its shards are in use.
      const anchored = (): Promise<unknown> =>
        reAnchor(database.pool).then(
          ({ done }) => done,
          (thrown: unknown) => thrown,
        )
      await expect.poll(anchored).toBe(true)
      const again = relayOf({ broker })
      await again.start()
      while (broker.stored.length < 2) await database.pool.query('select pg_sleep(0.02)')
      expect(broker.stored.map((message) => read(message.payload).n)).toEqual([1, 1])
      await again.stop()
    })

    test('a sequence that hands out blocks is refused, with the statement that mends it (trap 36)', async () => {
      await database.pool.query('alter sequence outbox.record_seq_seq cache 10')
      const relay = relayOf()
      const error = await relay.start().catch((caught: unknown) => caught as Error)
      expect(error).toMatchObject({ code: 'SEQUENCE_ALTERED' })
      await database.pool.query(/altered, run: (.*)$/.exec((error as Error).message)?.[1] ?? '')
      const mended = relayOf()
      await mended.start()
      await mended.stop()
    })

    test('the checkpoint log goes from bucket to bucket, keeps the newest row and bounds what it stores', async () => {
      const lease = (await acquire('owner')) as Lease
      const log = new CheckpointLog(database.pool, 'outbox', lease, 100)
      const buckets = new Set<number>()
      for (let n = 1; n <= 520; n++) {
        await log.write({ base: { snapshot: Snapshot.NOTHING, floor: BigInt(n) } })
        if (n % 10 !== 0) continue
        const { rows } = await database.pool.query(
          'select count(*)::int as n, max(bucket) as bucket from outbox.checkpoint',
        )
        expect(rows[0].n).toBeLessThanOrEqual(200)
        const newest = await database.pool.query('select bucket from outbox.checkpoint order by n desc limit 1')
        buckets.add(newest.rows[0].bucket)
        expect(await floorOf(lease)).toBe(BigInt(n))
      }
      expect([...buckets]).toEqual([0, 1])
    })

    test('the log is bounded while several relays write it, and keeps the row of a shard that nobody writes', async () => {
      const writers = await Promise.all(
        [1, 2, 3].map(async (member) => {
          const sql = await database.pool.connect()
          const lease = await Lease.join(sql, {
            clock: systemClock,
            holder: `${member}`,
            schema: 'outbox',
            ttlMs: 60_000,
          })
          const shards = await lease.claim(sql, 5)
          return { sql, lease, shards, log: new CheckpointLog(sql, 'outbox', lease, 100) }
        }),
      )
      const idle = await database.pool.connect()
      const last = await Lease.join(idle, { clock: systemClock, holder: 'idle', schema: 'outbox', ttlMs: 60_000 })
      expect(await last.claim(idle, 16)).toEqual([15])
      await new CheckpointLog(idle, 'outbox', last, 100).write({ base: { snapshot: Snapshot.NOTHING, floor: 7777n } })
      const floors = writers.map(() => 0n)
      const write = async (i: number, times: number): Promise<void> => {
        const { log } = writers[i] as (typeof writers)[0]
        for (let n = 0; n < times; n++) {
          floors[i] = (floors[i] as bigint) + 1n
          await log.write({ base: { snapshot: Snapshot.NOTHING, floor: floors[i] as bigint } })
        }
      }
      // At very different rates, at once.
      for (let round = 0; round < 8; round++) {
        await Promise.all([write(0, 90), write(1, 17), write(2, 1)])
        const { rows } = await database.pool.query('select count(*)::int as n from outbox.checkpoint')
        expect(rows[0].n).toBeLessThanOrEqual(260)
        for (const [i, { sql, lease }] of writers.entries()) {
          const loaded = await new CheckpointLog(sql, 'outbox', lease).load()
          expect(loaded.map(({ checkpoint: { base } }) => base.floor)).toEqual([floors[i]])
        }
        const kept = await new CheckpointLog(idle, 'outbox', last).load()
        expect(kept.map(({ checkpoint: { base } }) => base.floor)).toEqual([7777n])
      }
      for (const { sql } of writers) sql.release(true)
      idle.release(true)
    })

    test('a checkpoint is found while the log empties the bucket that it lies in', async () => {
      const lease = (await acquire('owner')) as Lease
      const log = new CheckpointLog(database.pool, 'outbox', lease, 100)
      await log.write({ base: { snapshot: Snapshot.NOTHING, floor: 5n } })
      const [emptying, reader] = [await database.pool.connect(), await database.pool.connect()]
      // What the log does to a bucket, step by step.
      await emptying.query('begin')
      await emptying.query('lock table outbox.checkpoint_0 in access exclusive mode')
      await emptying.query(`insert into outbox.checkpoint (bucket, n, shards, epoch, base, base_floor) overriding system value
                            select 1, n, shards, epoch, base, base_floor from outbox.checkpoint`)
      const loading = new CheckpointLog(reader, 'outbox', lease).load()
      while ((await database.pool.query(WAITING_SQL)).rows[0].n < 1) await database.pool.query('select pg_sleep(0.01)')
      await emptying.query('truncate outbox.checkpoint_0')
      await emptying.query('commit')
      expect((await loading).map(({ checkpoint: { base } }) => base.floor)).toEqual([5n])
      for (const client of [emptying, reader]) client.release(true)
    })
  })
}
