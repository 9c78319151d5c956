/**
 * Relays that are killed, or stand still past their lease, while they park, while they release and while they hand over
 * shards. Each ends in the middle of the work of the one before it, on one outbox; the verdict is over all of them.
 */
import path from 'node:path'
import type pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { createParking } from '../../src/outbox-relay/parking/index.ts'
import { CliProcess } from '../integration/cli-process.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import type { ParkingStep } from './parking-kill-child.ts'

const CHILD = path.resolve(import.meta.dirname, 'parking-kill-child.ts')
const LEASE_GIVEN = `l set expires_at = '-infinity'`
const TAKEN = 'limit $4 for update skip locked'
const LOADED = 'select s.shard, c.n::text as n'

/** The largest page of the relays. */
const PAGE = 20

const PARKING = ['parking:park', 'parking:parked'] as const
const RELEASING = ['parking:publish', 'parking:published', 'parking:settled'] as const
const DISCARDING = ['parking:discard', 'parking:discarded'] as const
const GIVING = [`before:${LEASE_GIVEN}`, `after:${LEASE_GIVEN}`] as const
const TAKING = [`after:${TAKEN}`, `after:${LOADED}`] as const

async function stage(version: 15 | 18) {
  const database = await createTestDatabase({ version })
  onTestFinished(() => database.close())
  const { pool } = database
  await pool.query('create table public.sent (n bigserial primary key, id uuid, key text, payload bytea)')
  await pool.query('create table public.refused (key text primary key)')
  const parking = createParking({ postgres: pool })
  const { rows } = await pool.query<{ key: string }>(
    `select min('k' || n) as key from generate_series(1, 400) n group by outbox.shard_of('k' || n), n % 2`,
  )
  const keys = rows.map(({ key }) => key)
  const bad = keys.filter((key) => Number(key.slice(1)) % 2 === 0)
  const versions = new Map<string, number>()
  const discarded = new Set<string>()

  const append = async (): Promise<void> => {
    const client = await pool.connect()
    for (let times = 0; times < 3; times++) {
      for (const key of keys) {
        const n = (versions.get(key) ?? 0) + 1
        versions.set(key, n)
        await appendSql(client, key, n)
      }
    }
    client.release()
  }
  const refuse = async (some: readonly string[]): Promise<void> => {
    await pool.query('delete from public.refused')
    await pool.query('insert into public.refused select unnest($1::text[])', [some])
  }
  const relay = (step?: ParkingStep): CliProcess =>
    new CliProcess([JSON.stringify({ database: database.url, step })], {}, CHILD)
  /** Everything of the good keys is out. */
  const caughtUp = (): Promise<void> =>
    until(async () => {
      const { rows: missing } = await pool.query(
        `select from outbox.record r where not exists (select from public.sent s where s.id = r.id)
         and not exists (select from outbox.parked_record p where p.id = r.id)
         and not exists (select from outbox.parked_discard d where d.id = r.id) limit 1`,
      )
      return missing.length === 0
    }, 'caught up')
  const work: Record<'discard' | 'park' | 'release', () => Promise<void>> = {
    async park() {
      await refuse(bad)
      await append()
    },
    async release() {
      await refuse([])
      await parking.replay({ all: true })
      await append()
    },
    async discard() {
      await refuse(bad)
      await append()
      await until(async () => (await parking.count({ all: true })).keys === bad.length, 'all parked')
      const heads = await pool.query('select id, key from outbox.parked_key order by key')
      for (const { id, key } of heads.rows as { id: string; key: string }[]) {
        const event = await pool.query('select payload from outbox.record where id = $1', [id])
        discarded.add(`${key} ${read(event.rows[0].payload).n}`)
        await parking.discard({ id }, 'a test')
      }
    },
  }
  /** Every event once at least, the discarded ones never, first appearances in order; how many repeats. */
  const judge = async (): Promise<number> => {
    const sent = await pool.query<{ id: string; payload: Buffer }>('select id, payload from public.sent order by n')
    const seen = new Set<string>()
    const next = new Map<string, number>()
    for (const { id, payload } of sent.rows) {
      if (seen.has(id)) continue
      seen.add(id)
      const { key, n } = read(payload)
      let expected = (next.get(key) ?? 0) + 1
      while (discarded.has(`${key} ${expected}`)) expected++
      expect(n, `the next of ${key}`).toBe(expected)
      next.set(key, n)
    }
    expect(Object.fromEntries(next)).toEqual(Object.fromEntries(versions))
    return sent.rows.length - seen.size
  }
  return { append, bad, caughtUp, database, judge, parking, pool, relay, work }
}

const HELD = `select array_agg(shard order by shard) as shards from outbox.lease l where expires_at > clock_timestamp()
  and exists (select from pg_stat_activity a where a.pid = l.backend_pid and a.backend_start = l.backend_start)
  group by token`

/** Resolves when so many relays hold all shards. */
const held = (pool: pg.Pool, relays: number): Promise<void> =>
  until(async () => {
    const { rows } = await pool.query<{ shards: number[] }>(HELD)
    return rows.length === relays && rows.flatMap(({ shards }) => shards).length === 16
  }, `held by ${relays}`)

async function until(holds: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + 60_000
  while (!(await holds())) {
    if (performance.now() > deadline) expect.unreachable(`not within a minute: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

describeWith(['postgres18', 'postgres15'], 'parking and handing over', () => {
  test('relays killed at each step lose nothing, and publish no key out of order', async () => {
    const { caughtUp, judge, parking, pool, relay, work } = await stage(18)
    const steps = [
      ...PARKING.map((where) => ({ where, what: work.park })),
      ...DISCARDING.map((where) => ({ where, what: work.discard })),
      ...RELEASING.map((where) => ({ where, what: work.release })),
    ]
    let deaths = 0
    for (const { where, what } of steps) {
      if (what === work.release) await work.park()
      const dying = relay({ where, signal: 'SIGKILL' })
      await what()
      expect(await dying.ended, where).toMatchObject({ signal: 'SIGKILL', err: '' })
      deaths++
    }
    for (const where of [...GIVING, ...TAKING]) {
      const giving = GIVING.some((one) => one === where)
      const first = relay(giving ? { where, signal: 'SIGKILL' } : undefined)
      await held(pool, 1)
      await work.park()
      const second = relay(giving ? undefined : { where, signal: 'SIGKILL' })
      expect(await (giving ? first : second).ended, where).toMatchObject({ signal: 'SIGKILL', err: '' })
      await work.release()
      await held(pool, 1)
      await (giving ? second : first).kill()
      deaths++
    }
    expect(deaths).toBe(11)
    const last = relay()
    await work.release()
    await until(async () => (await parking.count({ all: true })).records === 0, 'nothing is parked')
    await caughtUp()
    last.signal('SIGTERM')
    expect(await last.ended).toMatchObject({ code: 0, err: '' })
    await judge()
  }, 240_000)

  test('a relay that stands still at a step and wakes up replaced writes nothing, and repeats a page at most', async () => {
    const { bad, caughtUp, judge, parking, pool, relay, work } = await stage(15)
    const steps = [
      { where: 'parking:park', what: work.park },
      { where: 'parking:published', what: work.release },
      { where: 'parking:publish', what: work.release },
      { where: 'parking:discard', what: work.discard },
      { where: GIVING[0], what: work.park },
      { where: `after:${LOADED}`, what: work.park },
    ]
    for (const { where, what } of steps) {
      const still = relay({ where, signal: 'SIGSTOP' })
      if (what === work.release) {
        await work.park()
        await until(async () => (await parking.count({ all: true })).keys === bad.length, 'all parked')
      }
      const giving = where === GIVING[0]
      if (giving) await held(pool, 1)
      const joining = giving ? relay() : undefined
      await what()
      await still.logged({ at: where })
      const other = joining ?? relay()
      await other.logged({ state: 'relaying' })
      await held(pool, 1)
      if (what === work.release) {
        await until(async () => (await parking.count({ all: true })).records === 0, `released after ${where}`)
      }
      await caughtUp()
      await until(async () => {
        const { rows } = await pool.query('select from outbox.parked_key where asked_at is not null')
        return rows.length === 0
      }, `all that was asked is done after ${where}`)
      const before = await standing(pool)
      const said = still.log.length
      still.signal('SIGCONT')
      // Its term ends, and it begins anew beside the other.
      await still.logged({ state: 'relaying' }, said)
      await held(pool, 2)
      const after = await standing(pool)
      expect(after.parked, where).toBe(before.parked)
      expect(after.sent - before.sent, `repeated after ${where}`).toBeLessThanOrEqual(PAGE)
      await still.kill()
      await other.kill()
    }
    const last = relay()
    await work.release()
    await until(async () => (await parking.count({ all: true })).records === 0, 'nothing is parked')
    await caughtUp()
    await last.kill()
    await judge()
  }, 240_000)
})

/** How much was sent, and what is parked. */
async function standing(pool: pg.Pool): Promise<{ parked: string; sent: number }> {
  const { rows } = await pool.query(`select (select count(*) from public.sent)::int as sent,
    (select coalesce(string_agg(id::text, ',' order by n), '') from outbox.parked_record) as parked`)
  return rows[0]
}
