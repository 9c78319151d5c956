import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import {
  backUp,
  startPostgres,
  startStandby,
  type PostgresServer,
  type PostgresVersion,
  type StandbyOptions,
} from '../../src/testing/services/index.ts'
import { track } from '../support/leaks.ts'
import { describeWith } from '../support/services.ts'

function disposed<T extends { dispose(): Promise<void> }>(name: string, server: T): T {
  const release = track(name, () => server.dispose())
  onTestFinished(async () => {
    await server.dispose()
    release()
  })
  return server
}

const started = async (version: PostgresVersion): Promise<PostgresServer> =>
  disposed('PostgreSQL', await startPostgres({ version }))

const standbyOf = async (primary: PostgresServer, options?: StandbyOptions): ReturnType<typeof startStandby> =>
  disposed('a standby', await startStandby(primary, options))

async function ask(url: string, text: string): Promise<unknown> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  try {
    const { rows } = (await client.query({ text, rowMode: 'array' })) as { rows: unknown[][] }
    return rows[0]?.[0]
  } finally {
    await client.end()
  }
}

for (const version of [15, 18] as const) {
  describeWith(`private postgres${version}`, `a standby of a private PostgreSQL ${version}`, () => {
    test('follows its primary over restarts, refuses writes, and takes its place', async () => {
      const primary = await started(version)
      await ask(primary.url, 'create table kept (n int)')
      const standby = await standbyOf(primary)
      await ask(primary.url, 'insert into kept values (1)')
      await standby.waitForReplay()
      expect(await ask(standby.url, 'select count(*)::int from kept')).toBe(1)
      await expect(ask(standby.url, 'insert into kept values (0)')).rejects.toThrow('read-only')

      await standby.kill()
      await ask(primary.url, 'insert into kept values (2)')
      await standby.start()
      await standby.waitForReplay()
      expect(await standby.isInSync()).toBe(true)
      await primary.restart('immediate')
      await standby.waitUntilStreaming()
      await ask(primary.url, 'insert into kept values (3)')
      await standby.waitForReplay()

      await primary.kill()
      await standby.waitForReplay()
      await standby.promote()
      await ask(standby.url, 'insert into kept values (4)')
      await standby.restart()
      expect(await ask(standby.url, 'select count(*)::int from kept')).toBe(4)
      expect(await ask(standby.url, 'select timeline_id::int from pg_control_checkpoint()')).toBe(2)

      const next = await standbyOf(standby)
      await ask(standby.url, 'insert into kept values (5)')
      await next.waitForReplay()
      expect(await ask(next.url, 'select count(*)::int from kept')).toBe(5)
    })

    test('is awaited by every commit when it is synchronous', async () => {
      const primary = await started(version)
      await ask(primary.url, 'create table kept (n int)')
      const standby = await standbyOf(primary, { synchronous: true })
      await ask(primary.url, 'insert into kept values (1)')
      await standby.kill()
      const client = new pg.Client({ connectionString: primary.url })
      await client.connect()
      onTestFinished(() => client.end())
      const waiting = client.query('insert into kept values (2)')
      let told = false
      void waiting.then(() => (told = true))
      const isWaiting = "select count(*)::int from pg_stat_activity where wait_event = 'SyncRep'"
      await expect.poll(() => ask(primary.url, isWaiting), { timeout: 20_000 }).toBe(1)
      expect(told).toBe(false)
      await standby.start()
      await waiting
      await standby.waitForReplay()
      expect(await ask(standby.url, 'select count(*)::int from kept')).toBe(2)
      await standby.kill()
      await standby.makeSynchronous(false)
      await ask(primary.url, 'insert into kept values (3)')
    })

    test('a restore brings back the state of a point in time, and only that', async () => {
      const server = await started(version)
      await ask(server.url, 'create table kept (n int)')
      const backup = disposed('a backup', await backUp(server))
      await ask(server.url, 'insert into kept values (1)')
      await ask(server.url, "select pg_create_restore_point('here')")
      const lsn = String(await ask(server.url, 'select pg_current_wal_insert_lsn()'))
      await ask(server.url, 'insert into kept values (2)')
      const xid = String(await ask(server.url, 'insert into kept values (3) returning pg_current_xact_id()::xid'))
      await ask(server.url, 'insert into kept values (4)')
      for (const [point, count] of [
        [{ name: 'here' }, 1],
        [{ lsn }, 1],
        [{ xid }, 3],
        [{}, 4],
      ] as const) {
        const restored = disposed('a restored server', await backup.restore(point))
        expect(await ask(restored.url, 'select count(*)::int from kept'), JSON.stringify(point)).toBe(count)
        await ask(restored.url, 'insert into kept values (9)')
        await restored.restart()
        expect(await ask(restored.url, 'select count(*)::int from kept')).toBe(count + 1)
        await restored.dispose()
      }
      expect(await ask(server.url, 'select count(*)::int from kept')).toBe(4)
    })
  })
}

describeWith('private postgres18', 'the failover slots of a standby of PostgreSQL 18', () => {
  test('are there after the promotion, and go on where they were', async () => {
    const primary = await started(18)
    const standby = await standbyOf(primary)
    await ask(primary.url, "select pg_create_logical_replication_slot('relay', 'test_decoding', failover => true)")
    await ask(primary.url, 'create table kept (n int)')
    let synced = false
    const read = "select count(*)::int from pg_logical_slot_get_changes('relay', null, null) where data like '%INSERT%'"
    const reader = (async () => {
      while (!synced) {
        await ask(primary.url, 'insert into kept values (0)')
        await ask(primary.url, read)
      }
    })()
    await standby.waitForSlot('relay').finally(() => (synced = true))
    await reader
    await ask(primary.url, 'insert into kept values (1)')
    await standby.waitForReplay()
    await primary.kill()
    await standby.promote()
    // What was read before may come again, for the copy lags; what was not read is there.
    const left = "select string_agg(data, ';') from pg_logical_slot_get_changes('relay', null, null)"
    expect(await ask(standby.url, left)).toContain('n[integer]:1')
  })
})
