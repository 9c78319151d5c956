import pg from 'pg'
import { expect, test } from 'vitest'
import { migrate, migrationSql, requireSchema } from '../../src/postgres/migrator.ts'
import { qualified } from '../../src/postgres/schemas.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

const EMPTY = { migrate: false } as const
const HOSTILE = [
  { inbox: 'in"box', outbox: 'out box; drop schema public' },
  { inbox: "in'box", outbox: '$function$ :outbox ::inbox $1' },
  { inbox: 'ин бокс 💧', outbox: 'out\n--box' },
  { inbox: 'Append', outbox: 'append' },
  { inbox: 'one', outbox: 'one' },
]

for (const version of [15, 18] as const) {
  describeWith(`postgres${version}`, `the migrator on PostgreSQL ${version}`, () => {
    test('eight that start at once on an empty database apply each migration once', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      const reports = await Promise.all(Array.from({ length: 8 }, () => migrate(database.pool)))
      expect(reports.flatMap((report) => report.applied)).toEqual(['0001_outbox_and_inbox'])
      expect(new Set(reports.map((report) => report.version))).toEqual(new Set([1]))
      const { rows } = await database.pool.query('select version, name, length(checksum) from outbox.migration')
      expect(rows).toEqual([{ version: 1, name: 'outbox_and_inbox', length: 64 }])
      await database.close()
    })

    test('a second run changes nothing, whatever transactions are by default', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      const options = '-c default_transaction_isolation=serializable -c default_transaction_read_only=on'
      const pool = new pg.Pool({ connectionString: database.url, options })
      pool.on('error', () => {})
      const reports = await Promise.all(Array.from({ length: 4 }, () => migrate(pool)))
      expect(reports.flatMap((report) => report.applied)).toHaveLength(1)
      const catalog = await snapshot(database.pool)
      expect(await migrate(pool)).toEqual({ applied: [], pending: [], sql: '', version: 1 })
      expect(await snapshot(database.pool)).toEqual(catalog)
      await pool.end()
      await database.close()
    })

    test('a migration that was applied from another file is refused', async () => {
      const database = await createTestDatabase({ version })
      await database.pool.query("update outbox.migration set checksum = repeat('0', 64)")
      await expect(migrate(database.pool)).rejects.toMatchObject({ code: 'MIGRATION_CHANGED' })
      await expect(migrate(database.pool, { dryRun: true })).rejects.toMatchObject({ code: 'MIGRATION_CHANGED' })
      await expect(requireSchema(database.pool)).rejects.toMatchObject({ code: 'MIGRATION_CHANGED' })
      await database.close()
    })

    test('a database of a newer package is refused', async () => {
      const database = await createTestDatabase({ version })
      await database.pool.query("insert into outbox.migration (version, name, checksum) values (9999, 'later', '')")
      await expect(migrate(database.pool)).rejects.toMatchObject({ code: 'SCHEMA_NEWER' })
      await expect(requireSchema(database.pool)).rejects.toMatchObject({
        code: 'SCHEMA_NEWER',
        message: expect.stringContaining('npm i millrace@latest') as string,
      })
      await database.close()
    })

    test('a dry run changes nothing, and the SQL it prints does what the migrator does', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      const before = await snapshot(database.pool)
      const report = await migrate(database.pool, { dryRun: true })
      expect(report).toMatchObject({ applied: [], pending: ['0001_outbox_and_inbox'], version: 0 })
      expect(await snapshot(database.pool)).toEqual(before)
      expect(await migrationSql({ postgres: database.pool })).toBe(report.sql)
      expect(await migrationSql()).toBe(report.sql)
      await database.pool.query(report.sql)
      const byHand = await snapshot(database.pool)
      const other = await createTestDatabase({ ...EMPTY, version })
      await migrate(other.pool)
      expect(byHand).toEqual(await snapshot(other.pool))
      expect(await migrate(database.pool)).toMatchObject({ applied: [] })
      expect(await migrationSql({ postgres: database.pool })).toBe('')
      await database.close()
      await other.close()
    })

    test.each(HOSTILE)('schemas named $outbox and $inbox are quoted everywhere', async (schemas) => {
      const database = await createTestDatabase({ ...EMPTY, version })
      const before = await snapshot(database.pool)
      expect((await migrate(database.pool, { schemas })).applied).toHaveLength(1)
      expect((await migrate(database.pool, { schemas })).applied).toHaveLength(0)
      await requireSchema(database.pool, schemas)
      await database.pool.query(`select ${qualified(schemas.outbox, 'append')}('t', 'k', 'x', '\\x00')`)
      const { rows } = await database.pool.query(`select count(*)::int from ${qualified(schemas.outbox, 'record')}`)
      expect(rows).toEqual([{ count: 1 }])
      const strangers = (await snapshot(database.pool)).filter((line) => !before.includes(line))
      const owned = new Set([schemas.outbox, schemas.inbox])
      expect(strangers.filter((line) => !owned.has((JSON.parse(line) as [string])[0]))).toEqual([])
      await database.close()
    })

    test('a role that may not create schemas migrates into those that are there', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      const role = `migrator_${database.name}`
      await database.pool.query(
        `create role ${role}; create schema outbox authorization ${role}; create schema inbox authorization ${role}`,
      )
      const limited = new pg.Pool({ connectionString: database.url, max: 1, options: `-c role=${role}` })
      limited.on('error', () => {})
      expect((await migrate(limited)).applied).toHaveLength(1)
      await limited.end()
      const { rows } = await database.pool.query("select tableowner from pg_tables where tablename = 'record'")
      expect(rows).toEqual([{ tableowner: role }])
      await database.pool.query(`drop owned by ${role}; drop role ${role}`)
      await database.close()
    })

    test('a migrator that waits too long for another says so and leaves nothing behind', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      const holder = await database.pool.connect()
      await holder.query("begin; select pg_advisory_xact_lock(x'4d696c6c72616365'::bigint)")
      await expect(migrate(database.pool, { lockTimeoutMs: 50 })).rejects.toMatchObject({
        code: 'MIGRATION_LOCKED',
        retryable: true,
      })
      await holder.query('rollback')
      holder.release()
      expect((await migrate(database.pool)).applied).toHaveLength(1)
      const { rows } = await database.pool.query('show lock_timeout')
      expect(rows).toEqual([{ lock_timeout: '0' }])
      await database.close()
    })

    test('a migration that fails leaves no part of it', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      await database.pool.query('create schema inbox; create table inbox.message (n int)')
      const before = await snapshot(database.pool)
      await expect(migrate(database.pool)).rejects.toMatchObject({ code: '42P07' })
      expect(await snapshot(database.pool)).toEqual(before)
      expect(database.pool.idleCount).toBe(database.pool.totalCount)
      await database.close()
    })

    test('a missing schema is named together with the command that makes it', async () => {
      const database = await createTestDatabase({ ...EMPTY, version })
      await expect(requireSchema(database.pool)).rejects.toMatchObject({
        code: 'SCHEMA_MISSING',
        message: expect.stringMatching(/npx millrace migrate --database-url <url>$/) as string,
      })
      await expect(requireSchema(database.pool, { outbox: "o'x" })).rejects.toThrow(`--outbox-schema 'o'\\''x'`)
      await migrate(database.pool)
      await requireSchema(database.pool)
      await expect(requireSchema(database.pool, { inbox: 'other' })).rejects.toMatchObject({ code: 'SCHEMA_MISSING' })
      await database.close()
    })
  })
}

/** Every schema, relation, column, function and constraint of the database, one line each. */
async function snapshot(sql: { query(text: string): Promise<{ rows: unknown[] }> }): Promise<string[]> {
  const { rows } = await sql.query(
    `select json_build_array(nspname)::text as line from pg_namespace where nspname !~ '^pg_(toast_)?temp_'
     union all select json_build_array(n.nspname, c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid))::text
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
       left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
       where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
     union all select json_build_array(n.nspname, p.proname, pg_get_functiondef(p.oid))::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
     union all select json_build_array(n.nspname, k.conname, pg_get_constraintdef(k.oid))::text from pg_constraint k join pg_namespace n on n.oid = k.connamespace
       where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
     order by 1`,
  )
  return (rows as { line: string }[]).map(({ line }) => line)
}
