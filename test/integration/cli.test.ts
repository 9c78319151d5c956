import { mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { createTestDatabase, describeWith } from '../support/services.ts'
import { runCommand } from './cli-process.ts'

describe('the command line as a process', () => {
  test('runs from source through a link, as npm makes one for a bin', async () => {
    const folder = await mkdtemp(path.join(tmpdir(), 'millrace-link-'))
    try {
      const link = path.join(folder, 'millrace')
      await symlink(path.resolve(import.meta.dirname, '../../src/cli/main.ts'), link)
      const { code, out, err } = await runCommand(['--version'], {}, link)
      expect({ code, err }).toEqual({ code: 0, err: '' })
      expect(out).toMatch(/^\d+\.\d+\.\d+\n$/)
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  test('a wrong command line is exit 2, a wrong value is exit 78, both on standard error alone', async () => {
    expect(await runCommand(['migrat'])).toMatchObject({ code: 2, out: '' })
    expect(await runCommand(['migrate', '--database-url', 'mysql://x'])).toMatchObject({ code: 78, out: '' })
    expect(await runCommand(['migrate'], { DATABASE_URL: 'mysql://x' })).toMatchObject({ code: 78, out: '' })
  })

  test('a database that is not there is exit 1, and the password stays out of the text', async () => {
    const { code, err } = await runCommand(['migrate', '--database-url', 'postgres://joe:s3cret@127.0.0.1:1/none'])
    expect(code).toBe(1)
    expect(err).toContain('ECONNREFUSED 127.0.0.1:1')
    expect(err).toContain('check host and port')
    expect(err).not.toContain('s3cret')
    expect(err.trim().split('\n')).toHaveLength(1)
  })
})

describe.each([18, 15] as const)('on PostgreSQL %i', (version) => {
  describeWith(`postgres${version}`, 'millrace migrate', () => {
    test('migrates, and finds nothing to do the second time', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      const args = ['migrate', '--database-url', database.url]
      const first = await runCommand(args)
      expect(first).toMatchObject({ code: 0, err: '' })
      expect(first.out).toMatch(/^millrace migrate: applied 0001_outbox_and_inbox.*; the schema has version \d+\n$/)
      const second = await runCommand(args)
      expect(second).toMatchObject({ code: 0, err: '' })
      expect(second.out).toContain('nothing to do')
      await database.close()
    })

    test('a dry run changes nothing and prints the SQL, which does the same when psql or a driver runs it', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      const args = [
        'migrate',
        '--database-url',
        database.url,
        '--outbox-schema',
        'shop out',
        '--inbox-schema',
        'shop_in',
      ]
      const dry = await runCommand([...args, '--dry-run'])
      expect(dry.code).toBe(0)
      expect(dry.err).toContain('to apply 0001_outbox_and_inbox')
      const { rows: before } = await database.pool.query("select from pg_namespace where nspname like 'shop%'")
      expect(before).toEqual([])
      await database.pool.query(dry.out)
      const after = await runCommand(args)
      expect(after.out).toContain('nothing to do')
      await database.close()
    })

    test('four at once: all succeed and one does the work', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      const all = await Promise.all([1, 2, 3, 4].map(() => runCommand(['migrate', '--database-url', database.url])))
      expect(all.map(({ code }) => code)).toEqual([0, 0, 0, 0])
      expect(all.filter(({ out }) => out.includes('applied 0001')).length).toBe(1)
      await database.close()
    })

    test.each(['MILLRACE_DATABASE_URL', 'DATABASE_URL', 'PG*'])('takes the database from %s', async (name) => {
      const database = await createTestDatabase({ migrate: false, version })
      const { hostname, password, pathname, port, username } = new URL(database.url)
      const pg = {
        PGDATABASE: pathname.slice(1),
        PGHOST: hostname,
        PGPASSWORD: decodeURIComponent(password),
        PGPORT: port,
        PGUSER: username,
      }
      const { code, err } = await runCommand(['migrate'], name === 'PG*' ? pg : { [name]: database.url })
      expect({ code, err }).toEqual({ code: 0, err: '' })
      await database.close()
    })

    test('a database that does not exist is exit 1 and named', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      const url = new URL(database.url)
      url.pathname = '/not_there'
      const { code, err } = await runCommand(['migrate', '--database-url', url.href])
      expect(code).toBe(1)
      expect(err).toContain('"not_there" does not exist')
      await database.close()
    })
  })
})
