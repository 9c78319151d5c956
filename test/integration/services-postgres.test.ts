import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { startPostgres, type PostgresServer, type PostgresVersion } from '../../src/testing/services/index.ts'
import { allGone, childrenOf } from '../../src/testing/services/processes.ts'
import { track } from '../support/leaks.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

async function started(version: PostgresVersion): Promise<PostgresServer> {
  const server = await startPostgres({ version })
  const release = track('PostgreSQL', () => server.dispose())
  onTestFinished(async () => {
    await server.dispose()
    release()
  })
  return server
}

async function ask(url: string, text: string): Promise<unknown> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    const { rows } = (await client.query({ text, rowMode: 'array' })) as { rows: unknown[][] }
    return rows[0]?.[0]
  } finally {
    await client.end()
  }
}

for (const version of [15, 18] as const) {
  describeWith(`postgres${version}`, `PostgreSQL ${version} of the run`, () => {
    test('really is that version, writes a logical WAL, and is durable', async () => {
      const database = await createTestDatabase({ version })
      const { rows } = await database.pool.query(
        "select current_setting('server_version_num')::int / 10000 as major, current_setting('wal_level') as wal, current_setting('fsync') as fsync",
      )
      await database.close()
      expect(rows).toEqual([{ major: version, wal: 'logical', fsync: 'on' }])
    })

    test('gives each test a migrated database of its own', async () => {
      const [one, two] = await Promise.all([createTestDatabase({ version }), createTestDatabase({ version })])
      await one.pool.query('delete from outbox.lease')
      const { rows } = await two.pool.query('select count(*)::int as n from outbox.lease')
      await Promise.all([one.close(), two.close()])
      expect(one.name).not.toBe(two.name)
      expect(rows).toEqual([{ n: 16 }])
      await expect(ask(one.url, 'select 1')).rejects.toThrow('does not exist')
    })

    test('gives an empty database on request', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      const { rows } = await database.pool.query("select to_regclass('outbox.record') as found")
      await database.close()
      expect(rows).toEqual([{ found: null }])
    })
  })

  describeWith(`private postgres${version}`, `a private PostgreSQL ${version}`, () => {
    test('keeps its data and its port over a stop, a crash and a SIGKILL of all its processes', async () => {
      const server = await started(version)
      const { pid, port } = server
      await ask(server.url, 'create table kept (n int)')
      await ask(server.url, 'insert into kept values (1)')
      await server.restart()
      await ask(server.url, 'insert into kept values (2)')
      await server.restart('immediate')
      await ask(server.url, 'insert into kept values (3)')
      await server.kill()
      await expect(ask(server.url, 'select 1')).rejects.toThrow('ECONNREFUSED')
      expect(() => server.pid).toThrow('not running')
      await server.start()
      expect(await ask(server.url, 'select count(*)::int from kept')).toBe(3)
      expect(server.port).toBe(port)
      expect(server.pid).not.toBe(pid)
      expect(server.version).toMatch(new RegExp(`^${version}\\.`))
    })
  })
}

describeWith('private postgres18', 'a SIGKILL of a private PostgreSQL', () => {
  test('reaches every process, also one that is paused', async () => {
    const server = await started(18)
    const found = await childrenOf(server.pid)
    // The one that answered the first question may be on its way out.
    const children = found.filter((pid) => {
      try {
        return process.kill(pid, 'SIGSTOP')
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
        return false
      }
    })
    expect(children.length).toBeGreaterThan(3)
    await server.kill()
    expect(await allGone(children, 0)).toBe(true)
  })
})

test('settings given to a private PostgreSQL win over ours, and ALTER SYSTEM wins over them', async () => {
  const server = await startPostgres({ settings: { max_connections: '37', work_mem: '5MB' } })
  onTestFinished(() => server.dispose())
  expect(await ask(server.url, 'show max_connections')).toBe('37')
  await ask(server.url, "alter system set work_mem = '6MB'")
  await server.restart()
  expect(await ask(server.url, 'show work_mem')).toBe('6MB')
})
