import { Socket } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { delay, systemClock } from '../../src/core/clock.ts'
import { readPage } from '../../src/outbox-relay/capture/polling/page-reader.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { slotTrouble } from '../../src/outbox-relay/capture/replication/server-report.ts'
import { createSlot, dropSlot, freeSlot, readSlot } from '../../src/outbox-relay/capture/replication/slot.ts'
import { parseWalPosition } from '../../src/outbox-relay/capture/replication/wal-position.ts'
import { ALL_SHARDS } from '../../src/outbox-relay/shards.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import { openTransaction } from '../support/outbox-writer.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { silentProxy } from '../support/silent-proxy.ts'
import { poll, Recorded, slotAt, slotFree, stageOn, type WalStage, walStage } from '../support/wal-stage.ts'

const VERSIONS = [15, 18] as const
const INSERT = `insert into outbox.record (shard, id, topic, key, type, payload, headers) values`

for (const version of VERSIONS)
  describeWith(`postgres${version}`, `the replication stream of PostgreSQL ${version}`, () => {
    test('hands over each record as polling reads it', async () => {
      const stage = await walStage(version)
      await stage.pool.query(`select outbox.append('t', null, 'no key', '')`)
      await stage.pool.query(`select outbox.append('t', 'ключ 🗝', 'unicode', '\\x00ff', '{"e": "ü", "n": "1"}')`)
      await stage.pool.query(`${INSERT} (1, gen_random_uuid(), 't', 'k', 'uuid v4', 'x', '{"__proto__": "p"}')`)
      await stage.pool.query(`${INSERT} (-1, outbox.new_id(), 't', '', 'odd', 'x', '[]')`)
      await stage.pool.query(
        `${INSERT} (15, outbox.new_id(), 't', 'wide', 'toasted', decode(repeat('00ff', 400000), 'hex'),
          jsonb_build_object('h', repeat('x', 50000)))`,
      )
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      await seen.until(() => seen.messages.length === 5)
      expect(seen.messages).toEqual(await polled(stage))
      const { rows } = await stage.pool.query<{ tx: string }>('select tx::text from outbox.record order by seq')
      expect(seen.txs.map(String)).toEqual(rows.map((row) => row.tx))
      expect(Object.getPrototypeOf(seen.messages[2]?.headers)).toBe(Object.prototype)
    })

    test('follows the commits, and shows nothing that was rolled back', async () => {
      const stage = await walStage(version)
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      const slow = await transaction(stage)
      await slow.query(`select outbox.append('t', 'k', 'ty', 'slow 1')`)
      await stage.append('quick')
      const aborted = await transaction(stage)
      await aborted.query(`select outbox.append('t', 'k', 'ty', 'phantom')`)
      await aborted.query('rollback')
      await slow.query('savepoint s')
      await slow.query(`select outbox.append('t', 'k', 'ty', 'phantom')`)
      await slow.query('rollback to savepoint s')
      await slow.query(`select outbox.append('t', 'k', 'ty', 'slow 2')`)
      await slow.query('commit')
      await stage.append('last')
      await seen.until(() => seen.messages.length >= 4 && seen.order.at(-1) === 'commit')
      const expected = ['begin', 'quick', 'commit', 'begin', 'slow 1', 'slow 2', 'commit', 'begin', 'last', 'commit']
      expect(seen.order).toEqual(expected)
    })

    test('hands over logical messages, of a transaction in it and others at once', async () => {
      const stage = await walStage(version)
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      await stage.pool.query(`select pg_logical_emit_message(true, 'millrace', '\\x00ff'::bytea)`)
      await stage.pool.query(`select pg_logical_emit_message(false, 'other', 'text')`)
      await stage.append('flushes what is before it')
      await seen.until(() => seen.messages.length === 1 && seen.logical.length === 2)
      expect(seen.logical).toMatchObject([
        { content: Buffer.from([0, 255]), prefix: 'millrace', transactional: true },
        { content: Buffer.from('text'), prefix: 'other', transactional: false },
      ])
    })

    test.each(['own', 'ordinary'] as const)(
      'a large transaction passes in bounded memory, and a paused sink gets nothing (%s socket)',
      { timeout: 120_000 },
      async (kind) => {
        const stage = await walStage(version)
        const rows = 50_000
        await stage.pool.query(
          `${INSERT.replace('values', '')} select 1, outbox.new_id(), 't', 'k', 'ty', decode(repeat('ab', 2000), 'hex'), '{}'
           from generate_series(1, $1::int)`,
          [rows],
        )
        // A pool with a stream option of its own is read by events.
        const pool =
          kind === 'own'
            ? stage.pool
            : new pg.Pool({ connectionString: stage.url, stream: () => new Socket({ noDelay: true }) })
        if (pool !== stage.pool) pool.on('error', () => {})
        let count = 0
        let early = 0
        let peak = 0
        const before = held()
        let done!: () => void
        const finished = new Promise<void>((resolve) => (done = resolve))
        const sink = new (class extends Recorded {
          override onMessage(): void {
            if (stream.paused) early++
            if (++count % 1000 !== 0) return
            stream.pause()
            if (count % 5000 === 0) peak = Math.max(peak, held() - before)
            // Not at once: the server fills what there is to fill.
            systemClock.setTimer(() => stream.resume(), 2)
          }
          override onCommit(endLsn: bigint): void {
            if (stream.paused) early++
            super.onCommit(endLsn)
            if (count === rows) done()
          }
        })()
        const stream = await stage.open(sink, { pool })
        stream.resume()
        await Promise.race([finished, stream.ended])
        expect(count).toBe(rows)
        expect(early).toBe(0)
        // 100 MB came through.
        expect(peak).toBeLessThan(40_000_000)
        if (pool !== stage.pool) await pool.end()
      },
    )

    test('a paused stream outlives wal_sender_timeout and claims nothing', async () => {
      const stage = await walStage(version)
      await stage.pool.query(`do $$ begin execute format('alter database %I set wal_sender_timeout = ''3s''',
        current_database()); end $$`)
      for (let n = 0; n < 5; n++) await stage.append(`payload ${n}`)
      const before = await stage.confirmed()
      const seen = new Recorded()
      const stream = await stage.open(seen)
      await delay(systemClock, 6500)
      expect(seen.order).toEqual([])
      stream.resume()
      await seen.until(() => seen.messages.length === 5)
      stream.pause()
      await delay(systemClock, 1500)
      expect(await stage.confirmed()).toBe(before)
      expect(stream.stats().acknowledged).toBe(0n)
      stream.resume()
      await stage.append('after')
      await seen.until(() => seen.messages.length === 6)
    })

    test(
      'an acknowledge moves the slot, no further than was received, and never back',
      { timeout: 120_000 },
      async () => {
        const stage = await walStage(version)
        const seen = new Recorded()
        const stream = await stage.open(seen)
        stream.resume()
        await stage.append('one')
        await seen.until(() => seen.order.at(-1) === 'commit')
        const one = seen.lastEnd
        stream.acknowledge(one)
        await slotAt(stage, (lsn) => lsn >= one)
        const received = stream.stats().receivedLsn
        expect(() => stream.acknowledge(received + 1n)).toThrow(RangeError)
        stream.acknowledge(one - 1n)
        expect(stream.stats().acknowledged).toBe(one)
        // Not even one that another connection received.
        await stream.close()
        await slotFree(stage.pool, stage.slot)
        await stage.append('two')
        const again = new Recorded()
        const second = await stage.open(again)
        expect(() => second.acknowledge(received)).toThrow(RangeError)
        second.resume()
        await again.until(() => again.order.at(-1) === 'commit')
        expect(again.order).toEqual(['begin', 'two', 'commit'])
        expect(parseWalPosition(await stage.confirmed())).toBeLessThan(again.lastEnd)
      },
    )

    test(
      'what is not acknowledged comes again; the last acknowledge before close counts',
      { timeout: 120_000 },
      async () => {
        const stage = await walStage(version)
        for (const name of ['one', 'two', 'three']) await stage.append(name)
        const ends: bigint[] = []
        const seen = new (class extends Recorded {
          override onCommit(endLsn: bigint): void {
            super.onCommit(endLsn)
            ends.push(endLsn)
          }
        })()
        const stream = await stage.open(seen)
        stream.resume()
        await seen.until(() => ends.length === 3)
        stream.acknowledge(ends[0] as bigint)
        stream.acknowledge(ends[1] as bigint)
        await stream.close()
        expect(await stream.ended).toBeUndefined()
        await slotFree(stage.pool, stage.slot)
        const again = new Recorded()
        ;(await stage.open(again)).resume()
        await again.until(() => again.order.at(-1) === 'commit')
        expect(again.order).toEqual(['begin', 'three', 'commit'])
      },
    )

    test('an idle slot follows the keep-alives, past what others write', async () => {
      const stage = await walStage(version)
      await stage.pool.query(`do $$ begin execute format('alter database %I set wal_sender_timeout = ''4s''',
        current_database()); end $$`)
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      await stage.pool.query('create table other as select generate_series(1, 1000)')
      const { rows } = await stage.pool.query<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn')
      const target = parseWalPosition(rows[0]?.lsn as string)
      await seen.until(() => seen.walEnd >= target)
      stream.acknowledge(seen.walEnd)
      await slotAt(stage, (lsn) => lsn >= target)
      expect(seen.messages).toEqual([])
    })

    test.each(['dropped', 'made anew'])(
      'a publication that is %s ends the stream before any later record',
      { timeout: 120_000 },
      async (fate) => {
        const stage = await walStage(version)
        const seen = new Recorded()
        const stream = await stage.open(seen)
        stream.resume()
        await stage.append('before')
        await seen.until(() => seen.order.at(-1) === 'commit')
        stream.pause()
        await stage.pool.query('drop publication millrace')
        await stage.append('skipped by PostgreSQL 18')
        if (fate === 'made anew') {
          await stage.pool.query(`create publication millrace for table outbox.record
            with (publish = 'insert', publish_via_partition_root = true)`)
          await stage.append('after')
        }
        stream.resume()
        expect(await stream.ended).toMatchObject({ code: 'PUBLICATION_MISSING' })
        expect(seen.messages.map((message) => message.payload.toString())).toEqual(['before'])
      },
    )

    test(
      'a publication that never was ends the stream, whatever the role says of notices',
      { timeout: 120_000 },
      async () => {
        const stage = await walStage(version)
        await stage.pool.query(`do $$ begin execute format('alter database %I set client_min_messages = error',
        current_database()); end $$`)
        const seen = new Recorded()
        const stream = await stage.open(seen, { publication: 'nobody' })
        stream.resume()
        await stage.append('lost')
        expect(await stream.ended).toMatchObject({ code: 'PUBLICATION_MISSING' })
        expect(seen.messages).toEqual([])
      },
    )

    test(
      'a publication of partitions, or of another table, is refused at its first row',
      { timeout: 120_000 },
      async () => {
        const stage = await walStage(version)
        await stage.pool.query('alter publication millrace set (publish_via_partition_root = false)')
        await stage.append('one')
        const stream = await stage.open(new Recorded())
        stream.resume()
        expect(await stream.ended).toMatchObject({ code: 'PUBLICATION_INVALID' })
        await stage.pool.query('create table stranger (id bigint)')
        await stage.pool.query('alter publication millrace set table stranger')
        await stage.pool.query('insert into stranger values (1)')
        await slotFree(stage.pool, stage.slot)
        await dropSlot(stage.pool, stage.slot)
        await createSlot({ clock: systemClock, pool: stage.pool, slot: stage.slot })
        await stage.pool.query('insert into stranger values (2)')
        const other = await stage.open(new Recorded())
        other.resume()
        expect(await other.ended).toMatchObject({ code: 'PUBLICATION_INVALID', details: { table: 'stranger' } })
      },
    )

    test('columns that are added while it streams are passed over', async () => {
      const stage = await walStage(version)
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      await stage.append('one')
      await stage.pool.query(`alter table outbox.record add column note text default 'n'`)
      await stage.append('two')
      await seen.until(() => seen.messages.length === 2)
      expect(seen.messages).toEqual(await polled(stage))
    })

    test('hostile names of schema and publication are only names', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      onTestFinished(() => database.close())
      const schema = `o"ut'b\\x,(); --`
      await migrate(database.pool, { schemas: { outbox: schema } })
      const publication = `p"u'b,"\\',millrace"); drop`
      const slot = `hostile_${process.pid}_${version}`
      const stage = await stageOn(database.pool, database.url, slot, publication, schema)
      const seen = new Recorded()
      const stream = await stage.open(seen)
      stream.resume()
      await stage.append('one')
      await seen.until(() => seen.messages.length === 1)
      expect(seen.order[1]).toBe('one')
      await expect(stage.open(seen, { slot: `x" LOGICAL 0/0` })).rejects.toThrow(RangeError)
      await expect(stage.open(seen, { publication: 'a\0b' })).rejects.toThrow(RangeError)
    })

    test('a walsender that is ended is a lost connection, at once', async () => {
      const stage = await walStage(version)
      const stream = await stage.open(new Recorded())
      stream.resume()
      await stage.pool.query('select pg_terminate_backend($1)', [stream.processId])
      expect(await stream.ended).toMatchObject({ code: 'CONNECTION_LOST', details: { sqlstate: '57P01' } })
    })

    test('what the sink throws ends the stream, and nothing comes after it', async () => {
      const stage = await walStage(version)
      for (const name of ['one', 'two']) await stage.append(name)
      const failure = new Error('full')
      const seen = new (class extends Recorded {
        override onMessage(): void {
          this.order.push('thrown')
          throw failure
        }
      })()
      const stream = await stage.open(seen)
      stream.resume()
      expect(await stream.ended).toBe(failure)
      expect(seen.order).toEqual(['begin', 'thrown'])
    })

    test(
      'a slot that is missing, held, of another database or no slot at all is told apart',
      { timeout: 120_000 },
      async () => {
        const stage = await walStage(version)
        const trouble = async (slot: string): Promise<unknown> =>
          slotTrouble(await stage.open(new Recorded(), { slot }).catch((error: unknown) => error))
        expect(await trouble('nobody')).toBe('missing')
        const holder = await stage.open(new Recorded())
        // A paused one is told by its next status, ten seconds later.
        holder.resume()
        expect(await trouble(stage.slot)).toBe('in-use')
        expect(await readSlot(stage.pool, stage.slot)).toMatchObject({
          activePid: holder.processId,
          failover: version === 18,
          lost: false,
          plugin: 'pgoutput',
        })
        const other = await walStage(version)
        expect(await trouble(other.slot)).toBe('lost')
        expect(await readSlot(stage.pool, 'nobody')).toBeUndefined()
        // Freed, and taken by the next; the one before is told.
        const free = { clock: systemClock, slot: stage.slot, sql: stage.pool, timeoutMs: 20_000 }
        expect(await freeSlot(free)).toBe(true)
        expect(await holder.ended).toMatchObject({ code: 'CONNECTION_LOST' })
        await dropSlot(stage.pool, stage.slot)
        await dropSlot(stage.pool, stage.slot)
        expect(await readSlot(stage.pool, stage.slot)).toBeUndefined()
        expect(await freeSlot(free)).toBe(true)
      },
    )

    test(
      'the making of a slot that waits for a transaction can be given up, and leaves none',
      { timeout: 120_000 },
      async () => {
        const stage = await walStage(version)
        const writer = await transaction(stage)
        await writer.query('create temp table held (id int)')
        const abort = new AbortController()
        const slot = `${stage.slot}_late`
        const making = createSlot({ clock: systemClock, pool: stage.pool, signal: abort.signal, slot })
        const refused = expect(making).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
        await poll(async () => (await readSlot(stage.pool, slot)) !== undefined)
        abort.abort()
        await refused
        await poll(async () => (await readSlot(stage.pool, slot)) === undefined)
        await writer.query('rollback')
      },
    )

    test('silence ends the stream, and close does not wait for a silent server', async () => {
      const stage = await walStage(version)
      const proxy = await silentProxy(new URL(stage.url))
      onTestFinished(() => proxy.close())
      const pool = new pg.Pool({ connectionString: proxy.url })
      pool.on('error', () => {})
      onTestFinished(() => pool.end())
      await stage.pool.query(`do $$ begin execute format('alter database %I set wal_sender_timeout = ''3s''',
        current_database()); end $$`)
      const stream = await stage.open(new Recorded(), { pool, silenceMs: 3000 })
      stream.resume()
      // It answers while there is nothing to say.
      expect(await Promise.race([stream.ended, delay(systemClock, 6000).then(() => 'alive')])).toBe('alive')
      proxy.silence()
      expect(await stream.ended).toMatchObject({ code: 'CONNECTION_LOST' })
      const free = { clock: systemClock, slot: stage.slot, sql: stage.pool, timeoutMs: 20_000 }
      expect(await freeSlot(free)).toBe(true)
      const second = await stage.open(new Recorded(), { pool })
      proxy.silence()
      const began = systemClock.monotonic()
      await second.close()
      expect(systemClock.monotonic() - began).toBeLessThan(10_000)
      expect(await second.ended).toBeUndefined()
      proxy.newcomers('silent')
      await expect(stage.open(new Recorded(), { openTimeoutMs: 300, pool })).rejects.toMatchObject({
        code: 'CONNECTION_LOST',
      })
      const abort = new AbortController()
      const opening = stage.open(new Recorded(), { pool, signal: abort.signal })
      abort.abort()
      await expect(opening).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    })
  })

/** Everything in the outbox, as a polling relay reads it. */
async function polled(stage: WalStage): Promise<readonly unknown[]> {
  const client = await stage.pool.connect()
  try {
    const { rows } = await client.query<{ text: string }>('select pg_current_snapshot()::text as text')
    const target = { floor: 0n, snapshot: Snapshot.parse(rows[0]?.text as string) }
    const delta = { base: { floor: 0n, snapshot: Snapshot.NOTHING }, high: 1_000_000n, target }
    const bounds = { maxBytes: 100_000_000, maxMessages: 1000 }
    const page = await readPage(client, 'outbox', { after: 0n, delta, shards: ALL_SHARDS }, bounds)
    return page?.messages ?? []
  } finally {
    client.release()
  }
}

async function transaction(stage: WalStage): Promise<pg.Client> {
  const client = await openTransaction(stage.url)
  onTestFinished(() => client.end())
  return client
}

/** What is in use, garbage aside. */
function held(): number {
  collectGarbage()
  const { arrayBuffers, heapUsed } = process.memoryUsage()
  return arrayBuffers + heapUsed
}

const collectGarbage = ((): (() => void) => {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
})()
