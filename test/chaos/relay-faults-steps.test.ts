/**
 * A relay that is killed, or stands still past its lease, at every named step of both ways of reading.
 */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import type pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { publicationName } from '../../src/outbox-relay/capture/replication/publication.ts'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { CliProcess } from '../integration/cli-process.ts'
import { dropSlot } from '../support/drop-slot.ts'
import type { RelayChildOptions, Step } from '../support/relay-child.ts'
import { createTestDatabase, describeWith, services } from '../support/services.ts'
import { campaign, faultStage, seed } from './fault-stage.ts'
import { passes } from './model-random.ts'

const CHILD = path.resolve(import.meta.dirname, '../support/relay-child.ts')

type Place = Omit<Step, 'signal'> & {
  /** What must be made anew on the way there. */
  readonly anew?: 'publication' | 'slot'
}

const WRITE = '.checkpoint (bucket'
const MARK = 'pg_logical_emit_message'
const RENEW = 'renewed as'

const POLLING: readonly Place[] = [
  { where: 'before:free as materialized', nth: 1 },
  { where: 'after:free as materialized', nth: 1 },
  { where: 'capture:look', nth: 3 },
  { where: 'capture:open', nth: 1 },
  { where: 'dispatch:publish', nth: 3 },
  { where: 'dispatch:published', nth: 3 },
  { where: `before:${WRITE}`, nth: 3 },
  { where: `after:${WRITE}`, nth: 3 },
  { where: 'checkpoint:written', nth: 3 },
  { where: `before:${RENEW}`, nth: 1 },
  { where: `after:${RENEW}`, nth: 1 },
]

const STREAMING: readonly Place[] = [
  // On the way to the stream.
  { where: 'before:pg_drop_replication_slot', nth: 1, anew: 'publication' },
  { where: 'after:pg_drop_replication_slot', nth: 1, anew: 'publication' },
  { where: 'before:create publication', nth: 1, anew: 'publication' },
  { where: 'after:create publication', nth: 1, anew: 'publication' },
  { where: 'capture:look', nth: 2, anew: 'slot' },
  { where: 'capture:open', nth: 1, anew: 'slot' },
  { where: 'dispatch:published', nth: 1, anew: 'slot' },
  { where: `after:${WRITE}`, nth: 2, anew: 'slot' },
  // Polling is over, the stream begins.
  { where: 'relay:capture', nth: 2, anew: 'slot' },
  { where: 'dispatch:published', nth: 8, anew: 'slot' },
  // In the stream.
  { where: 'after:free as materialized', nth: 1 },
  { where: 'before:pg_terminate_backend(active_pid)', nth: 1 },
  { where: 'relay:capture', nth: 1 },
  { where: 'dispatch:publish', nth: 3 },
  { where: 'dispatch:published', nth: 3 },
  { where: `before:${MARK}`, nth: 2 },
  { where: `after:${MARK}`, nth: 1 },
  { where: 'capture:marked', nth: 2 },
  { where: `before:${WRITE}`, nth: 2 },
  { where: `after:${WRITE}`, nth: 2 },
  { where: 'checkpoint:written', nth: 3 },
  { where: `before:${RENEW}`, nth: 1 },
  { where: `after:${RENEW}`, nth: 1 },
]

/** The steps at which a relay that wakes up has something in its hands. */
const STILL: Readonly<Record<'polling' | 'replication', readonly Place[]>> = {
  polling: POLLING.filter(
    ({ where }) => where.startsWith('dispatch') || where.endsWith(WRITE) || where === 'capture:look',
  ),
  replication: STREAMING.filter(
    ({ anew, where }) =>
      where.startsWith('dispatch') || where.includes(WRITE) || (anew === undefined && where.includes(MARK)),
  ),
}

// The rows of the checkpoint log that put a shard back.
const WENT_BACK_SQL = `
  select * from (
    select s.shard, c.n, pg_snapshot_xmax(base) as xmax, lag(pg_snapshot_xmax(base)) over of as before
    from outbox.checkpoint c cross join unnest(c.shards) s(shard) window of as (partition by s.shard order by c.n)
  ) w where xmax < before`

async function staged(version: 15 | 18) {
  const database = await createTestDatabase({ version })
  onTestFinished(() => database.close())
  const stage = await faultStage({
    broker: 'nats',
    brokerAddress: services().nats as string,
    database: () => database.url,
    name: `${database.name}_${version}`,
  })
  const child = (options: Omit<RelayChildOptions, 'broker' | 'database'>): CliProcess =>
    new CliProcess(
      [JSON.stringify({ broker: stage.brokerUrl, database: database.url, pageSize: 20, ...options })],
      {},
      CHILD,
    )
  return { child, database, stage }
}

async function hasSlot(pool: pg.Pool, database: string): Promise<boolean> {
  const { rowCount } = await pool.query('select from pg_replication_slots where slot_name = $1', [
    slotName(database, 'outbox'),
  ])
  return rowCount === 1
}

/** Takes away what is to be made anew. */
async function takeAway(pool: pg.Pool, database: string, what: Place['anew']): Promise<void> {
  if (what === undefined) return
  if (what === 'publication') await pool.query(`drop publication if exists ${publicationName('outbox')}`)
  else await dropSlot(pool, slotName(database, 'outbox'))
}

/** Resolves when the process stands still. */
async function standsStill(child: CliProcess): Promise<void> {
  for (;;) {
    const stat = await readFile(`/proc/${child.pid}/stat`, 'utf8')
    if (/\) [Tt] /.test(stat)) return
    await passes(10)
  }
}

/** Kills a relay at each place in turn. */
async function killedEverywhere(version: 15 | 18, capture: 'polling' | 'replication', some: readonly Place[]) {
  const { child, database, stage } = await staged(version)
  const places = Array.from({ length: campaign }, () => some).flat()
  for (const { anew, nth, where } of places) {
    if (capture === 'replication' && !(await hasSlot(database.pool, database.name))) {
      const first = child({ capture, leaseTtlMs: 1000 })
      await first.logged({ capture })
      await first.kill()
    }
    await takeAway(database.pool, database.name, anew)
    const relay = child({ capture, leaseTtlMs: 1000, step: { nth, signal: 'SIGKILL', where } })
    const ended = await relay.ended
    expect(ended.signal, `${where} ${nth}: ${ended.out}${ended.err}`).toBe('SIGKILL')
  }
  return stage.finish(child({ capture }))
}

/** Stops a relay at each place in turn, lets another take its lease, and lets it go on. */
async function stillEverywhere(version: 15 | 18, capture: 'polling' | 'replication', places: readonly Place[]) {
  const { child, database, stage } = await staged(version)
  for (const { anew, nth, where } of Array.from({ length: campaign }, () => places).flat()) {
    await takeAway(database.pool, database.name, anew)
    const still = child({ capture, leaseTtlMs: 1000, step: { nth, signal: 'SIGSTOP', where } })
    await Promise.race([standsStill(still), still.ended])
    const other = child({ capture, leaseTtlMs: 1000 })
    await other.logged({ state: 'relaying' })
    await stage.writers.more(50)
    const said = still.log.length
    still.signal('SIGCONT')
    // It finds that its lease is lost, or that its connection was ended by the one that took its slot.
    await still.logged({ level: 'warn', text: 'the term ended; beginning anew' }, said)
    await Promise.all([still.kill(), other.kill()])
  }
  await stage.finish(child({ capture }))
  expect((await database.pool.query(WENT_BACK_SQL)).rows).toEqual([])
}

for (const version of [18, 15] as const) {
  describeWith([`postgres${version}`, 'nats'], `a relay at each step, PostgreSQL ${version}, seed ${seed}`, () => {
    test(
      'killed there, it loses nothing, publishes nothing uncommitted, and inverts no key',
      { timeout: 300_000 * campaign },
      async () => {
        // The versions differ in how a slot is made and lost.
        const streaming = version === 18 ? STREAMING : STREAMING.filter(({ anew }) => anew !== undefined)
        const half = Math.ceil(streaming.length / 2)
        const done = await Promise.all([
          killedEverywhere(version, 'replication', streaming.slice(0, half)),
          killedEverywhere(version, 'replication', streaming.slice(half)),
          ...(version === 18 ? [killedEverywhere(version, 'polling', POLLING)] : []),
        ])
        for (const judged of done) expect(judged.events).toBeGreaterThan(500)
      },
    )

    test(
      'stood still there past its lease, it is replaced; awake again it moves no checkpoint and inverts no key',
      { timeout: 300_000 * campaign },
      async () => {
        const { polling, replication } = STILL
        const half = Math.ceil(replication.length / 2)
        const runs =
          version === 18
            ? ([
                ['polling', polling],
                ['replication', replication.slice(0, half)],
                ['replication', replication.slice(half)],
              ] as const)
            : ([
                ['polling', polling.slice(0, 2)],
                ['replication', replication.slice(-4)],
              ] as const)
        await Promise.all(runs.map(([capture, places]) => stillEverywhere(version, capture, places)))
      },
    )
  })
}
