/**
 * pg_upgrade keeps the checkpoint: it copies the files of the tables, `xmin` and all, into a cluster with another
 * identifier, which goes on behind the old transaction ids and makes its catalogs only then.
 */
import { expect, test } from 'vitest'
import type { PostgresServer } from '../../src/testing/services/index.ts'
import { appendSql } from '../support/outbox-writer.ts'
import { imitateUpgrade, programsWithUpgrade, upgrade } from '../support/postgres-upgrade.ts'
import { byKey, disposed, outboxServer, poolOf, refusalOf, relayInto, upTo } from '../support/outbox-server.ts'
import { describeWith } from '../support/services.ts'

const bin = await programsWithUpgrade(15)

/** Fills an outbox, upgrades it, and expects the relay to go on exactly where it was. */
async function expectToGoOn(by: (old: PostgresServer) => Promise<PostgresServer>): Promise<PostgresServer> {
  const { server: old, pool } = await outboxServer(15)
  const { relay: first, broker: before } = await relayInto(pool)
  for (let n = 1; n <= 40; n++) await appendSql(pool, 'a', n)
  await before.until(40)
  await first.stop()
  for (let n = 41; n <= 45; n++) await appendSql(pool, 'a', n)
  const system = 'select system_identifier::text as id from pg_control_system()'
  const { rows: was } = await pool.query(system)
  await pool.end()
  const server = disposed('an upgraded server', await by(old))
  const upgraded = poolOf(server.url)
  const { rows: is } = await upgraded.query(system)
  expect(is[0].id, 'the identifier changes; without that the test shows nothing').not.toBe(was[0].id)
  for (let n = 46; n <= 50; n++) await appendSql(upgraded, 'a', n)
  const { relay, broker } = await relayInto(upgraded)
  await broker.until(10)
  await relay.stop()
  expect(byKey(broker)).toEqual({ a: upTo(50, 41) })
  return server
}

describeWith(['private postgres15', 'private postgres18'], 'an upgrade of the cluster', () => {
  test('15 to 18, pg_upgrade imitated by its files: the relay goes on where it was', async () => {
    await expectToGoOn((old) => imitateUpgrade(old, 18))
  }, 240_000)

  test('the other identifier alone, without an upgrade, is refused', async () => {
    const { pool } = await outboxServer(15)
    const { relay, broker } = await relayInto(pool)
    await appendSql(pool, 'a', 1)
    await broker.until(1)
    await relay.stop()
    // As pg_createsubscriber leaves it: the same files, the same catalogs, another identifier.
    await pool.query('create table was as table outbox.checkpoint')
    await pool.query('truncate outbox.checkpoint')
    await pool.query(`insert into outbox.checkpoint (bucket, shards, epoch, base, base_floor, system)
                      select bucket, shards, epoch, base, base_floor, system + 1 from was order by n desc limit 1`)
    const { rows } = await pool.query('select xmin = writer::xid as same from outbox.checkpoint')
    expect(rows).toEqual([{ same: true }])
    expect(await refusalOf(pool)).toMatchObject({ code: 'CHECKPOINT_UNCERTIFIED' })
  })

  // Registered where the program is, and said where it is not: the imitation above stands for it everywhere.
  if (bin === undefined) console.log('pg_upgrade of PostgreSQL 15 is not installed: only its imitation is tested')
  else {
    test('pg_upgrade itself, 15 to 15: the relay goes on where it was', async () => {
      await expectToGoOn(async (old) => {
        await old.stop('fast')
        return upgrade(old, bin, 15)
      })
    }, 240_000)
  }
})
