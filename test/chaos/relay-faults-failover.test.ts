/**
 * Postgres fails over under a daemon: to a synchronous standby with the slot, to one without, and to one that lags and
 * loses transactions; and what a commit that waits for a dead standby does.
 *
 * The daemon's address leads through a switch to whichever server is the primary, as a virtual address or a name does.
 */
import { expect, onTestFinished, test } from 'vitest'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import { type PostgresServer, type PostgresStandby, startStandby } from '../../src/testing/services/index.ts'
import { CliProcess } from '../integration/cli-process.ts'
import { disposed, outboxServer, poolOf } from '../support/outbox-server.ts'
import { appendSql } from '../support/outbox-writer.ts'
import { describeWith, services } from '../support/services.ts'
import { silentProxy } from '../support/silent-proxy.ts'
import { type FaultStage, faultStage, reads, report, seed } from './fault-stage.ts'
import { makeStream, readNats } from './kill-readers.ts'
import { judge } from './kill-verdict.ts'
import { passes } from './model-random.ts'

const SLOT = slotName('postgres', 'outbox')

async function staged(version: 15 | 18, { slotSync, synchronous }: { slotSync: boolean; synchronous: boolean }) {
  const { server } = await outboxServer(version)
  const standby = disposed('a standby', await startStandby(server, { slotSync, synchronous }))
  const proxy = await silentProxy(new URL(server.url))
  onTestFinished(() => proxy.close())
  let primary: PostgresServer = server
  const stage = await faultStage({
    broker: 'nats',
    brokerAddress: services().nats as string,
    database: () => primary.url,
    databaseSeenAt: proxy.url,
    name: `failover_${version}_${synchronous ? 'sync' : 'async'}_${server.port}`,
  })
  /** Kills the primary, promotes the standby, and leads everybody there; when that was. */
  const failOver = async (): Promise<number> => {
    await server.kill()
    proxy.cut()
    await standby.promote()
    primary = standby
    proxy.lead(new URL(standby.url))
    return Date.now()
  }
  return { failOver, server, stage, standby }
}

/** Resolves when the standby has a copy of the slot that survives its promotion. */
async function slotIsThere(stage: FaultStage, standby: PostgresStandby): Promise<void> {
  // The copy must first come to a consistent point, which it hardly does while transactions are open all the time.
  stage.writers.calm = true
  await standby.waitForSlot(SLOT, 60_000)
  stage.writers.calm = false
}

const SCENES = [
  { version: 18, capture: 'replication', synced: true, name: 'that has the slot: it streams on' },
  {
    version: 18,
    capture: 'replication',
    synced: false,
    name: 'that has no slot: it polls from the last marker and makes one',
  },
  {
    version: 15,
    capture: 'replication',
    synced: false,
    name: 'that cannot have the slot: it polls from the last marker and makes one',
  },
  { version: 18, capture: 'polling', synced: false, name: 'while it polls' },
] as const

for (const { capture, name, synced, version } of SCENES) {
  describeWith([`private postgres${version}`, 'nats'], `a failover of PostgreSQL ${version}, seed ${seed}`, () => {
    test(`to a synchronous standby ${name}; nothing is lost`, { timeout: 180_000 }, async () => {
      const { failOver, stage, standby } = await staged(version, { slotSync: synced, synchronous: true })
      const daemon = stage.daemon('--capture', capture)
      await reads(daemon, capture)
      await stage.writers.more(300)
      if (synced) await slotIsThere(stage, standby)
      await stage.writers.more(300)
      const said = daemon.log.length
      const promotedAt = await failOver()
      const before = [...stage.writers.acknowledged]
      await daemon.logged({ state: 'relaying' }, said)
      if (capture === 'replication' && !synced) await reads(daemon, capture, said)
      await stage.writers.more(300)
      const judged = await stage.finish(daemon)
      const ids = new Set([...judged.found.values()].flat().map(({ id }) => id))
      expect(
        before.filter((id) => !ids.has(id)),
        'committed before the failover, and lost',
      ).toEqual([])
      const fellBack = daemon.log.slice(said).some((line) => line['capture'] === 'polling')
      if (capture === 'replication') expect(fellBack).toBe(!synced)
      const gap = judged.backAfter(promotedAt)
      report(
        `PostgreSQL ${version}, ${capture}${synced ? ' with the slot' : ''}: published again after the promotion`,
        [gap],
      )
      expect(gap).toBeLessThan(12_000)
    })
  })
}

for (const version of [18, 15] as const) {
  describeWith(
    [`private postgres${version}`, 'nats'],
    `a lossy failover of PostgreSQL ${version}, seed ${seed}`,
    () => {
      test.each(['polling', 'replication'] as const)(
        'to an asynchronous standby that lags: nothing that is committed there is lost or skipped, what it lacks may have been published, %s',
        { timeout: 180_000 },
        async (capture) => {
          const { failOver, stage, standby } = await staged(version, { slotSync: version === 18, synchronous: false })
          const daemon = stage.daemon('--capture', capture)
          await reads(daemon, capture)
          await stage.writers.more(300)
          if (version === 18 && capture === 'replication') await slotIsThere(stage, standby)
          // From here on the standby gets nothing more.
          const atStandby = poolOf(standby.url)
          await atStandby.query(`alter system set primary_conninfo = ''`)
          await atStandby.query('select pg_reload_conf()')
          await expect
            .poll(async () => (await atStandby.query('select from pg_stat_wal_receiver')).rowCount, { timeout: 20_000 })
            .toBe(0)
          await stage.writers.more(300)
          const lost = [...stage.writers.acknowledged]
          const said = daemon.log.length
          const promotedAt = await failOver()
          await daemon.logged({ state: 'relaying' }, said)
          await stage.writers.more(600)
          const found = await stage.settle()
          daemon.signal('SIGTERM')
          expect(await daemon.ended).toMatchObject({ code: 0, err: '' })
          const { rows } = await stage.pool.query<{ id: string }>('select id::text as id from outbox.record')
          const committed = new Set(rows.map(({ id }) => id))
          expect(
            lost.filter((id) => !committed.has(id)).length,
            'without losses the test shows nothing',
          ).toBeGreaterThan(50)
          const phantoms = [...found.values()].flat().filter(({ id }) => !committed.has(id)).length
          expect(phantoms).toBeGreaterThan(0)
          const real = new Map(
            [...found].map(([partition, list]) => [partition, list.filter(({ id }) => committed.has(id))]),
          )
          await judge(stage.pool, real)
          const gap = Math.min(
            ...[...real.values()].flat().map(({ at }) => (at > promotedAt ? at - promotedAt : Infinity)),
          )
          report(`PostgreSQL ${version}, ${capture}: ${phantoms} phantoms; published again after a lossy promotion`, [
            gap,
          ])
          expect(gap).toBeLessThan(12_000)
        },
      )
    },
  )
}

describeWith(
  ['private postgres18', 'nats'],
  'a commit that waits for a synchronous standby that is down (trap 32)',
  () => {
    test.each([
      { capture: 'replication', slots: 'synchronized_standby_slots' },
      { capture: 'polling', slots: 'plain' },
    ] as const)(
      'is not published before it is answered ($capture, $slots)',
      { timeout: 120_000 },
      async ({ capture, slots }) => {
        const { pool, server } = await outboxServer(18)
        const standby = disposed('a standby', await startStandby(server, { synchronous: true }))
        if (slots !== 'plain') {
          await pool.query(`alter system set synchronized_standby_slots = '${standby.slotName}'`)
          await pool.query('select pg_reload_conf()')
        }
        const topic = `waits_${capture}_${slots}_${server.port}`
        const address = services().nats as string
        await makeStream(address, topic)
        const reader = await readNats(address, topic)
        onTestFinished(() => reader.close())
        const flags = ['--database-url', server.url, '--broker', `nats://${address}`, '--capture', capture]
        const daemon = new CliProcess(['relay', ...flags])
        await reads(daemon, capture)
        const { rows } = await pool.query('select pg_current_wal_lsn()::text as lsn')
        await reader.until(await appendSql(pool, 'k', 1, topic))
        // A checkpoint that is under way would wait for the standby as well, and the relay for it.
        const written = `select count(*)::int as n from outbox.checkpoint where wal > $1 or $2 = 'polling'`
        await expect.poll(async () => (await pool.query(written, [rows[0].lsn, capture])).rows[0].n).toBeGreaterThan(0)

        await standby.stop('immediate')
        const writer = await pool.connect()
        await writer.query('begin')
        const id = await appendSql(writer, 'k', 2, topic)
        let answeredAt = Infinity
        const answered = writer.query('commit').then(() => (answeredAt = Date.now()))
        // Long enough for a relay that would publish it.
        await passes(2000)
        expect(answeredAt, 'the commit waits').toBe(Infinity)
        const backAt = Date.now()
        await standby.start()
        await answered
        writer.release()
        await reader.until(id)
        const at = [...reader.found.values()].flat().find((one) => one.id === id)?.at
        expect(at).toBeGreaterThan(backAt)
        daemon.signal('SIGTERM')
        expect(await daemon.ended).toMatchObject({ code: 0 })
      },
    )
  },
)
