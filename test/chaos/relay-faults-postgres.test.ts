/**
 * What happens to a daemon's Postgres, under load and for both ways of reading: restarts, a kill, a connection that falls
 * silent, a publication and a slot that are dropped.
 */
import { expect, test } from 'vitest'
import { slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'
import type { PostgresServer } from '../../src/testing/services/index.ts'
import { dropSlot } from '../support/drop-slot.ts'
import { outboxDatabase, outboxServer } from '../support/outbox-server.ts'
import { describeWith, services } from '../support/services.ts'
import { silentProxy } from '../support/silent-proxy.ts'
import { campaign, faultStage, reads, report, seed } from './fault-stage.ts'
import { passes } from './model-random.ts'

const FAULTS: readonly (readonly [string, (server: PostgresServer) => Promise<void>])[] = [
  ['a fast restart', (server) => server.stop('fast')],
  ['an immediate restart', (server) => server.stop('immediate')],
  ['a kill', (server) => server.kill()],
]

const CAPTURES = ['polling', 'replication'] as const

/** A database of the server with writers, and what its daemon publishes. */
async function stageOn(server: PostgresServer, name: string, databaseSeenAt?: (url: string) => string) {
  const { url } = await outboxDatabase(server, name)
  return faultStage({
    broker: 'nats',
    brokerAddress: services().nats as string,
    database: () => url,
    ...(databaseSeenAt === undefined ? {} : { databaseSeenAt: databaseSeenAt(url) }),
    name: `${name}_${server.port}`,
  })
}

for (const version of [18, 15] as const) {
  describeWith([`private postgres${version}`, 'nats'], `a daemon and PostgreSQL ${version}, seed ${seed}`, () => {
    test(
      'restarted and killed under load it loses nothing, and publishing goes on',
      { timeout: 180_000 * campaign },
      async () => {
        const { server } = await outboxServer(version)
        const stages = await Promise.all(CAPTURES.map((capture) => stageOn(server, `by_${capture}`)))
        const daemons = await Promise.all(
          stages.map(async (stage, i) => {
            const daemon = stage.daemon('--capture', CAPTURES[i] as string)
            await reads(daemon, CAPTURES[i] as 'polling')
            return daemon
          }),
        )
        const faults = Array.from({ length: campaign }, () => FAULTS).flat()
        const upAt: number[] = []
        for (const [, stop] of faults) {
          await Promise.all(stages.map((stage) => stage.writers.more(300)))
          const said = daemons.map((daemon) => daemon.log.length)
          await stop(server)
          await server.start()
          upAt.push(Date.now())
          await Promise.all(daemons.map((daemon, i) => daemon.logged({ state: 'relaying' }, said[i])))
        }
        for (const [i, stage] of stages.entries()) {
          const judged = await stage.finish(...daemons.slice(i, i + 1))
          for (const [f, [name]] of FAULTS.entries()) {
            const gaps = upAt.filter((_, n) => n % FAULTS.length === f).map((at) => judged.backAfter(at))
            report(`PostgreSQL ${version}, ${CAPTURES[i]}: published again after ${name}`, gaps)
            for (const gap of gaps) expect(gap).toBeLessThan(12_000)
          }
        }
      },
    )

    test(
      'a publication and a slot that are dropped under load cost nothing but repeats',
      { timeout: 180_000 * campaign },
      async () => {
        const { server } = await outboxServer(version)
        const stage = await stageOn(server, 'dropped')
        const daemon = stage.daemon()
        await reads(daemon, 'replication')
        const slot = slotName('dropped', 'outbox')
        const publication = 'millrace_outbox'
        const again = `create publication ${publication} for table outbox.record with (publish = 'insert', publish_via_partition_root = true)`
        const gaps: { readonly name: string; readonly at: number }[] = []
        const fault = async (name: string, make: () => Promise<unknown>): Promise<void> => {
          await stage.writers.more(300)
          const said = daemon.log.length
          await make()
          gaps.push({ at: Date.now(), name })
          await reads(daemon, 'polling', said)
          await reads(daemon, 'replication', said)
        }
        for (let round = 0; round < campaign; round++) {
          await fault('the publication was dropped', () => stage.pool.query(`drop publication ${publication}`))
          await fault('it was dropped and made anew', async () => {
            await stage.pool.query(`drop publication ${publication}`)
            await passes(stage.random.below(300))
            // The relay may have been faster, or is at it.
            await stage.pool
              .query(again)
              .catch((error: { code?: string }) => expect(['42710', '23505']).toContain(error.code))
          })
          await fault('its table was taken out and put back', async () => {
            await stage.pool.query(`alter publication ${publication} drop table outbox.record`)
            await passes(stage.random.below(300))
            await stage.pool.query(`alter publication ${publication} add table outbox.record`).catch(() => {})
          })
          await fault('the slot was dropped', () => dropSlot(stage.pool, slot))
        }
        const judged = await stage.finish(daemon)
        for (const { at, name } of gaps) {
          report(`PostgreSQL ${version}: published again after ${name}`, [judged.backAfter(at)])
          expect(judged.backAfter(at)).toBeLessThan(12_000)
        }
      },
    )
  })
}

describeWith(['private postgres18', 'nats'], `a daemon and a network that falls silent, seed ${seed}`, () => {
  test.each(CAPTURES)(
    'connections to Postgres that fall silent are given up with the lease, %s',
    { timeout: 180_000 * campaign },
    async (capture) => {
      const { server } = await outboxServer(18)
      const proxy = await silentProxy(new URL(server.url))
      const stage = await stageOn(server, `silent_${capture}`, (url) => {
        const seen = new URL(proxy.url)
        seen.pathname = new URL(url).pathname
        return seen.href
      })
      const daemon = stage.daemon('--capture', capture, '--lease-ttl-ms', '2000')
      await reads(daemon, capture)
      const silentAt: number[] = []
      for (let n = 0; n < 2 * campaign; n++) {
        await stage.writers.more(300)
        const said = daemon.log.length
        proxy.silence()
        silentAt.push(Date.now())
        await daemon.logged({ message: 'the term ended; beginning anew' }, said)
        await daemon.logged({ state: 'relaying' }, said)
      }
      const judged = await stage.finish(daemon)
      const gaps = silentAt.map((at) => judged.silenceAfter(at))
      report(`${capture}: nothing was published when Postgres fell silent, lease 2 s, for`, gaps)
      for (const gap of gaps) expect(gap).toBeLessThan(15_000)
      await proxy.close()
    },
  )
})
