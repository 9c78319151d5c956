/** An event in whose publishing the process dies again and again is parked; no other one is, whoever kills whom. */
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Clock, systemClock } from '../../src/core/clock.ts'
import { silentLogger } from '../../src/core/logger.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Lease } from '../../src/outbox-relay/lease.ts'
import { CrashCounter, createParking } from '../../src/outbox-relay/parking/index.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { track, trackLifecycle } from '../support/leaks.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'

const CHILD = path.resolve(import.meta.dirname, 'parking-child.ts')

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `the crash counter on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    beforeEach(async () => void (database = await createTestDatabase({ version })))
    afterEach(() => database.close())

    const suspects = async (): Promise<number> =>
      (await database.pool.query('select from outbox.crash_suspect')).rowCount ?? 0
    const sent = async (key: string): Promise<number[]> => {
      const { rows } = await database.pool.query('select payload from public.sent where key = $1 order by n', [key])
      return [...new Set(rows.map((row: { payload: Buffer }) => read(row.payload).n))]
    }

    test('the event that kills the relay is parked with what follows of its key; everything else goes out', async () => {
      await database.pool.query('create table public.sent (n bigserial, key text, payload bytea)')
      const parking = createParking({ postgres: database.pool })
      for (let n = 1; n <= 6; n++) {
        await appendSql(database.pool, 'l', n)
        if (n === 4) await append('k', { n, deadly: true })
        else await appendSql(database.pool, 'k', n)
      }
      let deaths = 0
      let relay = new Child(database.url)
      const done = async (): Promise<boolean> =>
        (await sent('l')).length === 6 && (await parking.count({ all: true })).records >= 3
      while (!(await relay.livesUntil(done))) {
        expect(++deaths).toBeLessThanOrEqual(9)
        relay = new Child(database.url)
      }
      // Three starts without progress, then three deaths of this event; the first start may be one with progress.
      expect(deaths).toBeGreaterThanOrEqual(6)
      const parked = await parking.list()
      expect(parked[0]).toMatchObject({ key: 'k', reason: 'crash' })
      expect(parked.map((event) => event.reason).slice(1)).toEqual(parked.slice(1).map(() => 'behind'))
      expect(await sent('k')).toEqual([1, 2, 3])
      expect(await sent('l')).toEqual([1, 2, 3, 4, 5, 6])
      expect(await suspects()).toBe(0)

      // Replayed, it kills once, and is still parked; the next relay lives.
      await parking.replay({ key: 'k' })
      expect(await relay.ended).toBe('SIGKILL')
      const next = new Child(database.url)
      await appendSql(database.pool, 'l', 7)
      expect(await next.livesUntil(async () => (await sent('l')).length === 7)).toBe(true)
      expect(await sent('k')).toEqual([1, 2, 3])
      const { id = '' } = (await parking.list())[0] ?? {}
      await parking.discard({ id }, 'it kills')
      await until(async () => (await parking.list())[0]?.id !== id)
      await parking.replay({ key: 'k' })
      await until(async () => (await parking.count({ all: true })).records === 0)
      expect(await sent('k')).toEqual([1, 2, 3, 5, 6])
      await next.stop()
    })

    test('what the relay publishes of other shards hides nothing: shards taken from a dead relay are counted alone', async () => {
      await database.pool.query('create table public.sent (n bigserial, key text, payload bytea)')
      const parking = createParking({ postgres: database.pool })
      const [busy, deadly] = [await keyIn(0, 7), await keyIn(8, 15)]
      await appendSql(database.pool, busy, 1)
      const first = new Child(database.url)
      expect(await first.livesUntil(async () => (await sent(busy)).length === 1)).toBe(true)
      await first.stop()
      // As when another relay had half of the shards: they bring a checkpoint of their own.
      await database.pool.query(`
        insert into outbox.checkpoint (bucket, shards, epoch, base, base_floor)
        select bucket, '{8,9,10,11,12,13,14,15}', epoch, base, base_floor from outbox.checkpoint order by n desc limit 1`)
      await append(deadly, { n: 1, deadly: true })
      let n = 1
      for (let deaths = 0; ; deaths++) {
        expect(deaths).toBeLessThanOrEqual(9)
        await appendSql(database.pool, busy, ++n)
        const relay = new Child(database.url)
        if (!(await relay.livesUntil(async () => (await parking.count({ all: true })).records === 1))) continue
        await until(async () => (await sent(busy)).length === n)
        await relay.stop()
        break
      }
      expect(await parking.list()).toMatchObject([{ key: deadly, reason: 'crash' }])
      expect(await suspects()).toBe(0)
    })

    test('relays that are killed while they are idle, or between two pages, condemn nobody', async () => {
      await database.pool.query('create table public.sent (n bigserial, key text, payload bytea)')
      for (let n = 1; n <= 8; n++) {
        const relay = new Child(database.url)
        expect(await relay.livesUntil(async () => (await sent('l')).length === n - 1 && relay.relaying)).toBe(true)
        await relay.kill()
        if (n < 8) await appendSql(database.pool, 'l', n)
        expect(await suspects()).toBe(0)
      }
      const { rows } = await database.pool.query('select max(starts) as most from outbox.crash_start')
      expect(rows[0].most).toBeLessThanOrEqual(2)
    })

    test('a careful relay publishes one by one, keeps no note, and ends its care', async () => {
      const broker = recordingBroker()
      const sizes: number[] = []
      broker.answer = async (batch) => {
        sizes.push(batch.length)
        return []
      }
      // Nothing was ever published, and three relays began here.
      await database.pool.query(
        `insert into outbox.crash_start (shard, position, starts) select shard, '', 3 from outbox.lease`,
      )
      await appendSql(database.pool, 'k', 1)
      await database.pool.query(
        `select outbox.append('orders', 'k' || n % 7, 't', '\\x7b7d') from generate_series(1, 1100) n`,
      )
      const relay = trackLifecycle(
        'relay',
        createRelay({ broker, capture: 'polling', pageSize: 100, postgres: database.pool }),
      )
      await relay.start()
      await broker.until(1101)
      await relay.stop()
      expect(sizes.slice(0, 1000)).toEqual(Array(1000).fill(1))
      expect(Math.max(...sizes.slice(1000))).toBeGreaterThan(1)
      expect(await suspects()).toBe(0)
      expect(relay.stats().parked.records).toBe(0)
      const { rows } = await database.pool.query('select max(starts) as most from outbox.crash_start')
      expect(rows[0].most).toBe(0)
    })

    test('a call that stays out, as when the broker is away, leaves no note behind when the process is killed', async () => {
      const fast: Clock = { ...systemClock, setTimer: (callback, ms) => systemClock.setTimer(callback, ms / 100) }
      const lease = await joined()
      for (let times = 0; times < 8; times++) {
        const counter = new CrashCounter()
        await counter.begin({ ...term(lease), clock: fast })
        await counter.before(message)
        // Killed while it waits, but not at once.
        await until(async () => (await suspects()) === 0)
        expect(counter.condemning).toBe(false)
      }
      await lease.release()
    })

    test('a call that was cut off by the end of a connection leaves no note when the process goes on', async () => {
      const counter = new CrashCounter()
      for (let times = 0; times < 5; times++) {
        const lease = await joined()
        await counter.begin(term(lease))
        expect(await suspects()).toBe(0)
        await counter.before({ ...message, id: message.id.replace(/.$/, String(times)) })
        expect(await suspects()).toBe(1)
        await database.pool.query(
          `select pg_terminate_backend(backend_pid) from outbox.lease where backend_pid is not null limit 1`,
        )
        await expect(counter.after(true)).rejects.toThrow(/./)
        lease.client.release(true)
      }
      const lease = await joined()
      await counter.begin(term(lease))
      expect(await suspects()).toBe(0)
      await lease.release()
    })

    test('three notes condemn, two do not', async () => {
      const lease = await joined()
      for (let deaths = 1; deaths <= 3; deaths++) {
        const dying = new CrashCounter()
        await dying.begin(term(lease))
        expect(dying.condemns(message.id)).toBe(false)
        await dying.before(message)
      }
      const next = new CrashCounter()
      await next.begin(term(lease))
      expect([next.careful, next.condemns(message.id)]).toEqual([true, true])
      await next.parked(message.id)
      expect(await suspects()).toBe(0)
      await lease.release()
    })

    test('a relay that was replaced notes nothing', async () => {
      const lease = await joined()
      const counter = new CrashCounter()
      await counter.begin(term(lease))
      await database.pool.query('update outbox.lease set epoch = epoch + 1')
      await expect(counter.before(message)).rejects.toMatchObject({ code: 'LEASE_LOST' })
      await expect(new CrashCounter().begin(term(lease))).rejects.toMatchObject({ code: 'LEASE_LOST' })
      expect(await suspects()).toBe(0)
      await lease.release()
    })

    async function keyIn(from: number, to: number): Promise<string> {
      const { rows } = await database.pool.query(
        `select 'k' || n as key from generate_series(1, 100) n where outbox.shard_of('k' || n) between $1 and $2 limit 1`,
        [from, to],
      )
      return rows[0].key
    }

    async function append(key: string, body: object): Promise<void> {
      await database.pool.query(`select outbox.append('orders', $1, 't', $2)`, [
        key,
        Buffer.from(JSON.stringify({ key, ...body })),
      ])
    }

    async function joined() {
      const client = await database.pool.connect()
      client.on('error', () => {})
      let lease: Lease | undefined
      const options = { clock: systemClock, holder: 'test', schema: 'outbox', ttlMs: 60_000 }
      await until(async () => (lease = await Lease.acquire(client, options)) !== undefined)
      const release = async (): Promise<void> => {
        await lease?.release(client)
        client.release()
      }
      return { client, lease: lease as unknown as Lease, release }
    }

    function term({ client, lease }: Awaited<ReturnType<typeof joined>>) {
      return { clock: systemClock, lease, logger: silentLogger, pageSize: 10, schema: 'outbox', sql: client }
    }
  })
}

const message: OutgoingMessage = {
  id: '01900000-0000-7000-8000-000000000000',
  topic: 'orders',
  key: 'k',
  type: 't',
  payload: Buffer.from('{}'),
  headers: {},
  timeMs: 0,
  seq: '1',
}

/** A relay in a process of its own. */
class Child {
  readonly ended: Promise<NodeJS.Signals | number | null>
  relaying = false
  readonly #process: ChildProcess
  #over = false
  #err = ''

  constructor(url: string) {
    const args = ['--disable-warning=ExperimentalWarning', CHILD, url]
    this.#process = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    const release = track(`relay ${this.#process.pid}`, () => this.kill())
    this.#process.stdout?.on('data', () => (this.relaying = true))
    this.#process.stderr?.on('data', (text: Buffer) => (this.#err += text.toString()))
    this.ended = new Promise((resolve) => {
      this.#process.on('close', (code, signal) => {
        this.#over = true
        release()
        resolve(signal ?? code)
      })
    })
  }

  /** True when the state was reached, false when the process was killed before. */
  async livesUntil(holds: () => Promise<boolean>): Promise<boolean> {
    await until(async () => this.#over || (await holds()))
    if (!this.#over) return true
    expect(await this.ended, this.#err).toBe('SIGKILL')
    return false
  }

  async kill(): Promise<void> {
    this.#process.kill('SIGKILL')
    await this.ended
  }

  async stop(): Promise<void> {
    this.#process.kill('SIGTERM')
    expect(await this.ended, this.#err).toBe(0)
  }
}

/** Waits for a state, generously: the machine may be busy. */
async function until(holds: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 60_000
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`not within 60 s: ${String(holds)}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
