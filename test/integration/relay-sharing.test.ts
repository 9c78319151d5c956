/** Many relays side by side: the shards are divided evenly, move without a repeat, and are nobody's for no longer than a moment. */
import pg from 'pg'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Signals } from '../../src/core/signals.ts'
import { Lease } from '../../src/outbox-relay/lease.ts'
import { type Relay, type RelayOptions, createRelay } from '../../src/outbox-relay/relay.ts'
import { ALL_SHARDS, shareOf } from '../../src/outbox-relay/shards.ts'
import type { PgPool } from '../../src/postgres/sql.ts'
import { SqlWriters } from '../chaos/kill-writers.ts'
import { passes } from '../chaos/model-random.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { type RecordingBroker, recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith, within } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'

test('the shares of any number of members are all shards, each even within one', () => {
  for (let members = 1; members <= 40; members++) {
    const shares = Array.from({ length: members }, (_, rank) => shareOf(rank, members))
    expect(shares.reduce((sum, share) => sum + share)).toBe(16)
    expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(1)
  }
})

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `relays that share, on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let broker: RecordingBroker
    let pool: pg.Pool

    beforeEach(async () => {
      database = await createTestDatabase({ version })
      broker = recordingBroker()
      pool = new pg.Pool({ connectionString: database.url, max: 60 })
      pool.on('error', () => {})
    })
    afterEach(async () => {
      await within(pool.end(), 5000)
      await database.close()
    })

    const relayOf = (options: Partial<RelayOptions> = {}): Relay =>
      trackLifecycle(
        'relay',
        createRelay({ broker, capture: 'polling', pageSize: 20, pollIntervalMs: 5, postgres: pool, ...options }),
      )

    /** Resolves when together the relays hold every shard once, each its even share. */
    const balanced = async (relays: readonly Relay[], withinMs = 50_000): Promise<void> => {
      const most = Math.ceil(16 / relays.length)
      const least = Math.floor(16 / relays.length)
      const until = performance.now() + withinMs
      for (;;) {
        const held = relays.map((relay) => relay.stats().shards)
        const even = held.every((shards) => shards.length >= least && shards.length <= most)
        const all = held.flat().toSorted((a, b) => a - b)
        if (even && all.join() === ALL_SHARDS.join()) return
        if (performance.now() > until) expect.unreachable(`not balanced: ${JSON.stringify(held)}`)
        await passes(20)
      }
    }

    /** Writers that commit until told to finish, and what they must find in the broker. */
    const writing = async (seed: number): Promise<SqlWriters> => {
      const writers = new SqlWriters(database.url, 'orders', seeded(seed))
      await writers.start()
      return writers
    }

    /** Expects every committed event once, no other, and each key in order; returns how many were stored twice. */
    const judged = async (): Promise<number> => {
      const { rows } = await pool.query<{ id: string }>('select id from outbox.record')
      await broker.until(rows.length)
      const next = new Map<string, number>()
      const seen = new Set<string>()
      for (const { id, payload } of broker.stored) {
        if (seen.has(id)) continue
        seen.add(id)
        const { key, n } = read(payload)
        expect(n, `the next of ${key}`).toBe((next.get(key) ?? 0) + 1)
        next.set(key, n)
      }
      expect(seen).toEqual(new Set(rows.map(({ id }) => id)))
      return broker.stored.length - seen.size
    }

    test('of two relays each takes half, and when one stops the other takes the rest and repeats nothing', async () => {
      const [first, second] = [relayOf(), relayOf()]
      await first.start()
      await balanced([first])
      await second.start()
      await balanced([first, second])
      for (let n = 1; n <= 40; n++) await appendSql(pool, `k${n}`, 1)
      await broker.until(40)
      expect(first.stats().published).toBeGreaterThan(0)
      expect(second.stats().published).toBeGreaterThan(0)
      await first.stop()
      await balanced([second])
      for (let n = 1; n <= 40; n++) await appendSql(pool, `k${n}`, 2)
      await broker.until(80)
      await second.stop()
      expect(await judged()).toBe(0)
    })

    test('relays join and leave under load: every shard is somebody’s, nothing is lost, repeated or inverted', async () => {
      broker.answer = async (batch: readonly OutgoingMessage[]) => {
        await passes(batch.length % 4)
        return []
      }
      const writers = await writing(version)
      const relays = [relayOf()]
      await relays[0]?.start()
      // A steady trickle, so that shards move in the middle of it; never far ahead of what is published.
      let over = false
      const trickle = (async () => {
        for (let allowed = 0; !over; await passes(5)) {
          if (allowed - broker.stored.length > 500) continue
          writers.allow(10)
          allowed += 10
        }
      })()
      for (const change of [1, 1, 1, 1, -1, -1, -1]) {
        if (change > 0) {
          const relay = relayOf()
          relays.push(relay)
          await relay.start()
        } else await relays.shift()?.stop()
        await balanced(relays)
      }
      over = true
      await trickle
      await writers.finish()
      const repeated = await judged()
      for (const relay of relays) await relay.stop()
      expect(relays.map((relay) => relay.stats().failures)).toEqual([0, 0])
      expect(repeated, 'a graceful hand-over repeats nothing').toBe(0)
    })

    test('five relays that all start at once, with a backlog, divide it and lose none of it', async () => {
      const writers = await writing(version)
      writers.allow(3000)
      await writers.finish()
      const relays = Array.from({ length: 5 }, () => relayOf())
      await Promise.all(relays.map((relay) => relay.start()))
      await balanced(relays)
      expect(await judged()).toBe(0)
      await Promise.all(relays.map((relay) => relay.stop()))
    })

    test('a relay whose connections are gone is replaced within two seconds', async () => {
      const survivor = relayOf({ leaseTtlMs: 60_000 })
      await survivor.start()
      let quickest = Infinity
      // What the machine holds up once is measured again; the lease would last for a minute.
      for (let round = 1; round <= 3 && quickest >= 2000; round++) {
        const doomedPool = new pg.Pool({ connectionString: database.url, application_name: 'doomed' })
        doomedPool.on('error', () => {})
        // Once it is cut off it cannot come back.
        let cutOff = false
        const postgres: PgPool = {
          query: (text, params) => doomedPool.query(text, params),
          connect: () => (cutOff ? Promise.reject(new Error('no route')) : doomedPool.connect()),
        }
        const doomed = relayOf({ leaseTtlMs: 60_000, postgres })
        await doomed.start()
        await balanced([survivor, doomed])
        const { rows } = await pool.query<{ pid: number }>(
          `select distinct backend_pid as pid from outbox.lease where shard = any($1)`,
          [doomed.stats().shards],
        )
        cutOff = true
        const begun = performance.now()
        await pool.query('select pg_terminate_backend($1)', [rows[0]?.pid])
        await balanced([survivor])
        quickest = Math.min(quickest, performance.now() - begun)
        cutOff = false
        await doomed.stop()
        await doomedPool.end()
      }
      expect(quickest).toBeLessThan(2000)
      await survivor.stop()
    })

    test('a group that is far behind neither stops the others nor starves', async () => {
      const relay = relayOf({ pageSize: 10 })
      await relay.start()
      await appendSql(pool, 'warm', 1)
      await broker.until(1)
      await relay.stop()
      // Shard by shard, where keys fall: one shard lags far, as if it had come from a relay that was long dead.
      const { rows } = await pool.query<{ key: string; shard: number }>(
        `select 'k' || i as key, outbox.shard_of('k' || i) as shard from generate_series(1, 200) i`,
      )
      const lagging = rows.filter(({ shard }) => shard === 3).map(({ key }) => key)
      const live = rows.find(({ shard }) => shard === 9)?.key as string
      await pool.query(
        `select outbox.append('orders', key, 't', convert_to(json_build_object('key', key, 'n', n)::text, 'UTF8'))
         from unnest($1::text[]) key cross join generate_series(1, 100) n order by n`,
        [lagging],
      )
      const backlog = lagging.length * 100
      // All others are where that backlog is passed already; shard 3 is where it was.
      const { rows: copied } = await pool.query(
        `with before as (select * from outbox.checkpoint order by n desc limit 1)
         insert into outbox.checkpoint (bucket, shards, epoch, base, base_floor)
         select bucket, array(select s::smallint from generate_series(0, 15) s where s <> 3), epoch, pg_current_snapshot(),
                base_floor from before returning n`,
      )
      expect(copied).toHaveLength(1)
      // While a page is in flight an event of another shard is committed, five times along the backlog.
      const appendedAt: number[] = []
      broker.answer = async () => {
        if (appendedAt.length < 5 && broker.stored.length > appendedAt.length * 120) {
          appendedAt.push(broker.stored.length)
          await appendSql(pool, live, appendedAt.length)
        }
        return []
      }
      expect(backlog).toBeGreaterThan(4 * 120 + 200)
      const again = relayOf({ pageSize: 10 })
      await again.start()
      await broker.until(1 + backlog + 5)
      await again.stop()
      // Each waited for some pages of the backlog at most, and the backlog was not done by then.
      const placesOf = broker.stored.flatMap(({ key }, place) => (key === live ? [place] : []))
      expect(placesOf).toHaveLength(5)
      for (const [n, place] of placesOf.entries()) expect(place - (appendedAt[n] ?? 0)).toBeLessThan(100)
      for (const key of lagging) {
        const order = broker.stored.filter((message) => message.key === key).map(({ payload }) => read(payload).n)
        expect(order).toEqual(Array.from({ length: 100 }, (_, i) => i + 1))
      }
    })

    test('twenty contenders at once: no shard has two owners, and none is left', async () => {
      const members = await Promise.all(
        Array.from({ length: 20 }, async (_, i) => {
          const sql = await pool.connect()
          const lease = await Lease.join(sql, { clock: systemClock, holder: `${i}`, schema: 'outbox', ttlMs: 60_000 })
          return { lease, sql }
        }),
      )
      for (let round = 0; members.some(({ lease }) => lease.shards.length === 0) && round < 20; round++) {
        await Promise.all(
          members.map(async ({ lease, sql }) => {
            const { share, free } = await lease.look(sql)
            const wanted = Math.min(free, share - lease.shards.length)
            if (wanted > 0) await lease.claim(sql, wanted)
            await lease.renew(sql)
          }),
        )
      }
      const held = members.flatMap(({ lease }) => lease.shards)
      expect(held.toSorted((a, b) => a - b)).toEqual(ALL_SHARDS)
      expect(members.filter(({ lease }) => lease.shards.length === 1)).toHaveLength(16)
      for (const { sql } of members) sql.release(true)
    })

    test('a claim waits for nobody: not for a checkpoint that is being written, nor for another claim', async () => {
      const [holder, one, two] = [await pool.connect(), await pool.connect(), await pool.connect()]
      const options = { clock: systemClock, holder: 'member', schema: 'outbox', ttlMs: 60_000 }
      await holder.query('begin')
      await holder.query('select from outbox.lease where shard in (2, 3) order by shard for share')
      const [first, second] = [await Lease.join(one, options), await Lease.join(two, options)]
      await one.query('begin')
      expect(await first.claim(one, 4)).toEqual([0, 1, 4, 5])
      expect(await second.claim(two, 4)).toEqual([6, 7, 8, 9])
      await one.query('commit')
      await holder.query('commit')
      expect(await second.claim(two, 3)).toEqual([2, 3, 10])
      expect([...first.fence.shards, ...second.fence.shards].toSorted((a, b) => a - b)).toEqual([
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
      ])
      await first.renew(one)
      await second.renew(two)
      for (const client of [holder, one, two]) client.release(true)
    })

    test('a shard that was lost unnoticed, and is free again, is not claimed by who still believes to hold it', async () => {
      const [one, two] = [await pool.connect(), await pool.connect()]
      const options = { clock: systemClock, holder: 'member', schema: 'outbox', ttlMs: 60_000 }
      const [first, second] = [await Lease.join(one, options), await Lease.join(two, options)]
      expect(await first.claim(one, 4)).toEqual([0, 1, 2, 3])
      await pool.query(`update outbox.lease set expires_at = '-infinity' where shard in (1, 2)`)
      expect(await second.claim(two, 2)).toEqual([1, 2])
      await second.give(two, [1, 2])
      expect(await first.claim(one, 3)).toEqual([4, 5, 6])
      await expect(first.renew(one)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      for (const client of [one, two]) client.release(true)
    })

    test('one that does not share is not counted, takes all or nothing, and keeps what it has', async () => {
      const [all, some] = [await pool.connect(), await pool.connect()]
      const options = { clock: systemClock, holder: 'member', schema: 'outbox', ttlMs: 60_000 }
      const greedy = await Lease.join(all, { ...options, sharing: false })
      const sharing = await Lease.join(some, options)
      expect(await sharing.look(some)).toEqual({ share: 16, free: 16 })
      await sharing.claim(some, 1)
      expect(await greedy.claimAll(all)).toBe(false)
      await sharing.give(some, [0])
      expect(await greedy.claimAll(all)).toBe(true)
      expect(await sharing.look(some)).toEqual({ share: 16, free: 0 })
      expect(await sharing.claim(some, 16)).toEqual([])
      for (const client of [all, some]) client.release(true)
    })

    test('a member that is dead is not counted, and a member whose row is gone renews nothing', async () => {
      const [dead, alive] = [await pool.connect(), await pool.connect()]
      const options = { clock: systemClock, holder: 'member', schema: 'outbox', ttlMs: 60_000 }
      const late = await Lease.join(dead, { ...options, ttlMs: 1 })
      const lease = await Lease.join(alive, options)
      await passes(10)
      expect((await lease.look(alive)).share).toBe(16)
      const third = await pool.connect()
      await Lease.join(third, options)
      const { rows } = await pool.query('select count(*)::int as n from outbox.member')
      expect(rows[0].n, 'whoever joins sweeps the dead away').toBe(2)
      await expect(late.renew(dead)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      third.release(true)
      while ((await lease.look(alive)).share !== 16) await passes(10)
      for (const client of [dead, alive]) client.release(true)
    })

    test('a relay that loses its place between reading a page and opening it publishes nothing of it', async () => {
      const signals = new Signals()
      const other = recordingBroker()
      const loser = relayOf({ signals })
      const next = relayOf({ broker: other })
      await Promise.all([loser.start(), next.start()])
      await balanced([loser, next])
      const { shards } = loser.stats()
      const { rows } = await pool.query<{ key: string }>(
        `select 'k' || i as key from generate_series(1, 100) i where outbox.shard_of('k' || i) = any($1)`,
        [shards],
      )
      let wake!: () => void
      const asleep = new Promise<void>((resolve) => (wake = resolve))
      let off!: () => void
      const opening = new Promise<void>((resolve) => {
        off = signals.on('capture:open', () => {
          resolve()
          return asleep
        })
      })
      for (const { key } of rows) await appendSql(pool, key, 1)
      // One that has no page at hand would be back before the other one looks.
      await opening
      await pool.query('select pg_terminate_backend(backend_pid) from outbox.lease where shard = $1', [shards[0]])
      await other.until(rows.length)
      off()
      wake()
      await expect.poll(() => loser.stats().failures).toBeGreaterThan(0)
      await balanced([loser, next])
      expect(broker.stored).toEqual([])
      await Promise.all([loser.stop(), next.stop()])
    })
  })
}
