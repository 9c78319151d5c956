/** The checkpoint goes on where the files go on: after a crash, a promotion, a restore, and whatever vacuum does. */
import type pg from 'pg'
import { expect, test } from 'vitest'
import { backUp, startStandby } from '../../src/testing/services/index.ts'
import { appendSql } from '../support/outbox-writer.ts'
import { byKey, disposed, outboxServer, poolOf, refusalOf, relayInto, upTo } from '../support/outbox-server.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

const KEYS = ['a', 'b', 'c'] as const

/** Appends `from` to `to` to every key, each event in a transaction of its own; returns the ids of the transactions. */
async function append(pool: pg.Pool, from: number, to: number): Promise<Set<string>> {
  const ids: string[] = []
  for (let n = from; n <= to; n++) for (const key of KEYS) ids.push(await appendSql(pool, key, n))
  const { rows } = await pool.query('select tx::text as tx from outbox.record where id = any($1::uuid[])', [ids])
  return new Set(rows.map(({ tx }) => tx as string))
}

const each = (numbers: number[]): Record<string, number[]> => Object.fromEntries(KEYS.map((key) => [key, numbers]))

/** Publishes what is there, and stops: the checkpoint says so. */
async function publish(pool: pg.Pool, count: number): Promise<Record<string, number[]>> {
  const { relay, broker } = await relayInto(pool)
  await broker.until(count)
  await relay.stop()
  return byKey(broker)
}

for (const version of [18, 15] as const) {
  describeWith(`private postgres${version}`, `a checkpoint of PostgreSQL ${version} certifies itself`, () => {
    test(
      'after crashes under load: synchronous and asynchronous writers, nothing lost, nothing phantom',
      { timeout: 120_000 },
      async () => {
        const { server, pool } = await outboxServer(version, { autovacuum: 'off' })
        const { relay, broker } = await relayInto(pool, { pageSize: 40 })
        let over = false
        const write = async (key: string, mode: 'on' | 'off'): Promise<void> => {
          while (!over) {
            try {
              const client = await pool.connect()
              client.on('error', () => {})
              try {
                await client.query(`set synchronous_commit = ${mode}`)
                // Goes on behind what is there: a crash may have taken back what was committed asynchronously.
                const { rows } = await client.query(`select count(*)::int as n from outbox.record where key = $1`, [
                  key,
                ])
                for (let n = rows[0].n + 1; !over; n++) await appendSql(client, key, n)
              } finally {
                client.release(true)
              }
            } catch {
              await new Promise((resolve) => setTimeout(resolve, 20))
            }
          }
        }
        const writers = Promise.all([write('a', 'on'), write('b', 'on'), write('c', 'off'), write('d', 'off')])
        for (let crash = 1; crash <= 3; crash++) {
          await broker.until(crash * 400)
          await server.kill()
          await server.start()
        }
        await broker.until(1600)
        over = true
        await writers
        const { rows } = await pool.query(`select id, key from outbox.record order by seq`)
        await broker.until(rows.length)
        await relay.stop()
        expect(relay.stats().failures, 'the crashes were felt').toBeGreaterThan(0)
        expect(new Set(broker.stored.map(({ id }) => id))).toEqual(new Set(rows.map(({ id }) => id)))
        const count = (key: string): number => rows.filter((row) => row.key === key).length
        expect(byKey(broker)).toEqual(Object.fromEntries(['a', 'b', 'c', 'd'].map((key) => [key, upTo(count(key))])))
      },
    )

    test('on a standby that is promoted: it goes on where the primary was', async () => {
      const { server: primary, pool } = await outboxServer(version)
      const standby = disposed('a standby', await startStandby(primary))
      await append(pool, 1, 20)
      await publish(pool, 60)
      await append(pool, 21, 25)
      await standby.waitForReplay()
      await primary.kill()
      await standby.promote()
      const promoted = poolOf(standby.url)
      await append(promoted, 26, 30)
      expect(await publish(promoted, 30)).toEqual(each(upTo(30, 21)))
    })

    test(
      'on a standby that lost the end: transactions that get the ids of lost ones are not skipped',
      { timeout: 120_000 },
      async () => {
        const { server: primary, pool } = await outboxServer(version)
        const standby = disposed('a standby', await startStandby(primary))
        await append(pool, 1, 20)
        expect(await publish(pool, 60)).toEqual(each(upTo(20)))
        await standby.waitForReplay()
        await standby.kill()
        // Published, and its checkpoint written; neither reached the standby.
        const lost = await append(pool, 21, 40)
        expect(await publish(pool, 60)).toEqual(each(upTo(40, 21)))
        await primary.kill()
        await standby.start()
        await standby.promote()
        const promoted = poolOf(standby.url)
        const anew = await append(promoted, 121, 160)
        expect(
          [...lost].filter((tx) => anew.has(tx)).length,
          'ids are used again; without that the test shows nothing',
        ).toBeGreaterThan(0)
        expect(await publish(promoted, 120)).toEqual(each(upTo(160, 121)))
      },
    )

    test('in a restore to a point in time: nothing committed after it is skipped', async () => {
      const { server, pool } = await outboxServer(version)
      const backup = disposed('a backup', await backUp(server))
      await append(pool, 1, 20)
      await publish(pool, 60)
      await append(pool, 21, 22)
      await pool.query("select pg_create_restore_point('here')")
      const later = await append(pool, 23, 40)
      await publish(pool, 60)
      const restored = poolOf(disposed('a restored server', await backup.restore({ name: 'here' })).url)
      const anew = await append(restored, 123, 160)
      expect(
        [...later].filter((tx) => anew.has(tx)).length,
        'ids are used again; without that the test shows nothing',
      ).toBeGreaterThan(0)
      expect(await publish(restored, 120)).toEqual(each([21, 22, ...upTo(160, 123)]))
    })
  })

  describeWith(`postgres${version}`, `maintenance of PostgreSQL ${version}`, () => {
    test('freezing, VACUUM FULL and CLUSTER keep the certificate', async () => {
      const database = await createTestDatabase({ version })
      const { pool } = database
      await append(pool, 1, 5)
      await publish(pool, 15)
      let n = 5
      for (const statement of [
        'vacuum (freeze, disable_page_skipping) outbox.checkpoint, outbox.record, outbox.lease',
        'vacuum (full) outbox.checkpoint, outbox.record, outbox.lease',
        'vacuum (full, freeze) outbox.checkpoint, outbox.record, outbox.lease',
        'cluster outbox.checkpoint_0 using checkpoint_0_n_idx',
        'cluster outbox.checkpoint_1 using checkpoint_1_n_idx',
        'vacuum full pg_attribute',
      ]) {
        await pool.query(statement)
        await append(pool, ++n, n)
        expect(await publish(pool, 3), statement).toEqual(each([n]))
      }
      await database.close()
    })

    test(
      'an ALTER TABLE that writes the log anew is refused, and says which command goes on',
      { timeout: 120_000 },
      async () => {
        const database = await createTestDatabase({ version })
        const { pool } = database
        await append(pool, 1, 5)
        await publish(pool, 15)
        await pool.query('alter table outbox.checkpoint alter epoch type numeric')
        const error = await refusalOf(pool)
        expect(error).toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
        expect(error.message).toContain('millrace checkpoint re-anchor')
        await database.close()
      },
    )
  })
}
