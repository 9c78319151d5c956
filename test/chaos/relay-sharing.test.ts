/**
 * Several daemons side by side, from the outside: `millrace relay` as processes, plain SQL before them, a plain client of
 * the broker behind them. They join, leave, are killed and stand still past their leases.
 */
import { randomInt } from 'node:crypto'
import type pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { CliProcess } from '../integration/cli-process.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'
import { type Found, natsReader } from './kill-readers.ts'
import { judge, missing, wentBack } from './kill-verdict.ts'
import { SqlWriters } from './kill-writers.ts'
import { passes, published } from './model-random.ts'

const PAGE_SIZE = 50
const seed = Number(process.env['MILLRACE_KILL_SEED'] ?? randomInt(2 ** 31))

// Who holds what, as the database sees it: living owners only.
const HELD_SQL = `
  select token::text, array_agg(shard order by shard) as shards
  from outbox.lease l where expires_at > clock_timestamp()
    and exists (select from pg_stat_activity a where a.pid = l.backend_pid and a.backend_start = l.backend_start)
  group by token`

async function stage() {
  const database = await createTestDatabase()
  const topic = await natsReader(database.name)
  const random = seeded(seed)
  const writers = new SqlWriters(database.url, database.name, random)
  await writers.start()
  onTestFinished(async () => {
    await writers.close()
    await topic.close()
    await database.close()
  })
  const daemon = (...more: string[]): CliProcess => {
    const flags = ['--database-url', database.url, '--broker', topic.brokerUrl, '--capture', 'polling']
    return new CliProcess(['relay', ...flags, '--page-size', String(PAGE_SIZE), ...more])
  }
  return { daemon, database, random, topic, writers }
}

/** Resolves when so many daemons hold all shards, each its even share. */
async function shared(pool: pg.Pool, daemons: number, withinMs = 60_000): Promise<void> {
  const until = performance.now() + withinMs
  for (;;) {
    const { rows } = await pool.query<{ shards: number[] }>(HELD_SQL)
    const counts = rows.map(({ shards }) => shards.length)
    const all = counts.reduce((sum, count) => sum + count, 0) === 16
    if (all && rows.length === daemons && Math.max(...counts) - Math.min(...counts) <= 1) return
    if (performance.now() > until) expect.unreachable(`not shared by ${daemons}: ${JSON.stringify(rows)}`)
    await passes(20)
  }
}

/** How many committed events the newest checkpoint of their shard does not cover. */
async function unwritten(pool: pg.Pool): Promise<number> {
  const { rows } = await pool.query<{ n: number }>(`
    with newest as materialized (
      select distinct on (s.shard) s.shard, c.base
      from outbox.checkpoint c cross join unnest(c.shards) s(shard) order by s.shard, c.n desc
    )
    select count(*)::int as n from outbox.record r left join newest using (shard)
    where base is null or not pg_visible_in_snapshot(r.tx, base)`)
  return rows[0]?.n ?? 0
}

/** How many messages were there before. */
function repeatsIn(found: ReadonlyMap<number, readonly Found[]>): number {
  const all = [...found.values()].flat()
  return all.length - new Set(all.map(({ id }) => id)).size
}

/** Ends daemons as an operator does. */
async function ended(...daemons: readonly CliProcess[]): Promise<void> {
  for (const daemon of daemons) daemon.signal('SIGTERM')
  for (const daemon of daemons) expect(await daemon.ended).toMatchObject({ code: 0, err: '' })
}

describeWith(['postgres18', 'nats'], `several daemons, seed ${seed}`, () => {
  for (const count of [2, 3, 5]) {
    test(`${count} divide the shards, some leave and some are killed: nothing lost, no key inverted, little repeated`, async () => {
      const { daemon, database, topic, writers } = await stage()
      let daemons = Array.from({ length: count }, () => daemon())
      await shared(database.pool, count)
      writers.allow(3000)
      const [leaving, killed, ...rest] = daemons as [CliProcess, CliProcess, ...CliProcess[]]
      await ended(leaving)
      daemons = [killed, ...rest, daemon()]
      await shared(database.pool, count)
      writers.allow(3000)
      await killed.kill()
      daemons = daemons.slice(1)
      await shared(database.pool, count - 1)
      daemons.push(daemon())
      writers.allow(3000)
      await shared(database.pool, count)
      await published(topic.until(await writers.finish()))
      await expect.poll(async () => missing(database.pool, topic.found), { timeout: 60_000 }).toBe(0)
      await ended(...daemons)
      await topic.caughtUp()
      const { events, repeats } = await judge(database.pool, topic.found)
      expect(events).toBeGreaterThanOrEqual(9000)
      // What the killed one had published and not written: a page of each of its groups.
      expect(repeats).toBeLessThanOrEqual(3 * PAGE_SIZE)
    }, 240_000)
  }

  test('the shards of one that is killed are relayed by the others within two seconds', async () => {
    const { daemon, database, topic, writers } = await stage()
    const [first, second] = [daemon(), daemon()]
    let quickest = Infinity
    // What the machine holds up once is measured again; what is slow by itself is slow each time.
    for (let round = 1; round <= 3 && quickest >= 2000; round++) {
      const killed = daemon()
      await shared(database.pool, 3)
      expect(killed.pid).toBeGreaterThan(0)
      await killed.kill()
      const begun = performance.now()
      await shared(database.pool, 2)
      quickest = Math.min(quickest, performance.now() - begun)
    }
    expect(quickest).toBeLessThan(2000)
    writers.allow(500)
    await published(topic.until(await writers.finish()))
    await expect.poll(async () => missing(database.pool, topic.found), { timeout: 60_000 }).toBe(0)
    await ended(first, second)
    await judge(database.pool, topic.found)
  }, 240_000)

  test('one of three stands still past its lease; awake again it moves no checkpoint, and repeats a page at most', async () => {
    const { daemon, database, random, topic, writers } = await stage()
    const ttl = ['--lease-ttl-ms', '3000']
    const [first, second, still] = [daemon(...ttl), daemon(...ttl), daemon(...ttl)]
    await shared(database.pool, 3)
    await still.logged({ state: 'relaying' })
    writers.allow(4000)
    await passes(random.below(150))
    still.signal('SIGSTOP')
    await shared(database.pool, 2)
    // Also written: whoever took over has repeated by then what the one that stands had published and not written.
    await expect.poll(async () => unwritten(database.pool), { timeout: 60_000 }).toBe(0)
    await topic.caughtUp()
    const before = repeatsIn(topic.found)
    const { rows } = await database.pool.query('select max(n)::text as n from outbox.checkpoint')
    const said = still.log.length
    still.signal('SIGCONT')
    await still.logged({ level: 'warn' }, said).catch(() => {})
    await shared(database.pool, 3)
    await topic.caughtUp()
    expect(repeatsIn(topic.found) - before, 'repeated by the one that woke').toBeLessThanOrEqual(PAGE_SIZE)
    // Along no shard does a checkpoint go back.
    expect(await wentBack(database.pool), `after row ${rows[0].n}`).toEqual([])
    writers.allow(1000)
    await published(topic.until(await writers.finish()))
    await expect.poll(async () => missing(database.pool, topic.found), { timeout: 60_000 }).toBe(0)
    await ended(first, second, still)
    await topic.caughtUp()
    await judge(database.pool, topic.found)
  }, 240_000)
})
