import { is, SQL } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { getTableConfig, PgDialect, PgTable } from 'drizzle-orm/pg-core'
import { expect, test } from 'vitest'
import { fromDrizzle, millraceTables, record } from '../../drizzle/schema.ts'
import type { Sql } from '../../src/postgres/sql.ts'
import { migrate } from '../../src/postgres/migrator.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

const TABLES = {
  inbox: ['dead_letter', 'message'],
  outbox: [
    'checkpoint',
    'crash_start',
    'crash_suspect',
    'lease',
    'member',
    'migration',
    'parked_discard',
    'parked_key',
    'parked_record',
    'record',
  ],
} as const

for (const version of [15, 18] as const) {
  describeWith(`postgres${version}`, `the drizzle tables on PostgreSQL ${version}`, () => {
    test('are the migrated catalog: columns, types, nullability, defaults, identity, keys, checks, indexes', async () => {
      const database = await createTestDatabase({ version })
      // What drizzle says is made in two schemas of its own, so that Postgres itself writes both sides of the comparison.
      const copy = millraceTables({ inbox: 'copy_inbox', outbox: 'copy_outbox' })
      await database.pool.query('create schema copy_inbox; create schema copy_outbox')
      for (const table of [...Object.values(copy.inbox), ...Object.values(copy.outbox)]) {
        await database.pool.query(ddl(table))
      }
      for (const schema of ['inbox', 'outbox'] as const) {
        const migrated = await catalogOf(database.pool, schema)
        expect(Object.keys(migrated)).toEqual(TABLES[schema])
        expect(await catalogOf(database.pool, `copy_${schema}`)).toEqual(migrated)
      }
      await database.close()
    })

    test('read what append wrote, in schemas of other names too', async () => {
      const database = await createTestDatabase({ migrate: false, version })
      const schemas = { inbox: 'in "x"', outbox: "out $1 'x'" }
      await migrate(database.pool, { schemas })
      const outbox = createOutbox({ schemas })
      const tables = millraceTables(schemas)
      const db = drizzle(database.pool)
      await db.transaction(async (tx) => {
        await outbox.append(fromDrizzle(tx), { topic: 't', key: 'k', type: 'a', payload: Buffer.from([0, 255]) })
        await outbox.append(tx, { topic: 't', key: 'k', type: 'b', payload: { n: 1 } })
      })
      const rows = await db.select().from(tables.outbox.record).orderBy(tables.outbox.record.seq)
      expect(rows.map((row) => [row.type, row.payload.toString('hex'), row.headers, typeof row.seq])).toEqual([
        ['a', '00ff', {}, 'bigint'],
        ['b', Buffer.from('{"n":1}').toString('hex'), { 'content-type': 'application/json' }, 'bigint'],
      ])
      await database.close()
    })

    test('an event of a rolled back drizzle transaction is not there, and that of a kept savepoint is', async () => {
      const database = await createTestDatabase({ version })
      const outbox = createOutbox()
      const db = drizzle(database.pool)
      const event = (type: string) => ({ topic: 't', key: 'k', type, payload: {} })
      const thrown = new Error('no')
      const outcome = db.transaction(async (tx) => {
        await outbox.append(tx, event('lost'))
        throw thrown
      })
      await expect(outcome).rejects.toBe(thrown)
      await db.transaction(async (tx) => {
        const inner = tx.transaction(async (savepoint) => {
          await outbox.append(savepoint, event('undone'))
          throw thrown
        })
        await expect(inner).rejects.toBe(thrown)
        await tx.transaction((savepoint) => outbox.append(savepoint, event('kept')))
      })
      expect((await db.select().from(record)).map((row) => row.type)).toEqual(['kept'])
      await database.close()
    })

    test('the database object, and a tx after its end, are refused and nothing is written', async () => {
      const database = await createTestDatabase({ version })
      const outbox = createOutbox()
      const db = drizzle(database.pool)
      const event = { topic: 't', type: 'x', payload: {} }
      // @ts-expect-error -- the database object is refused by its type too
      await expect(outbox.append(db, event)).rejects.toMatchObject({ code: 'APPEND_POOL_GIVEN' })
      let ended: Parameters<typeof outbox.append>[0] | undefined
      await db.transaction(async (tx) => {
        await tx.execute('select 1')
        ended = tx
      })
      await expect(outbox.append(ended!, event)).rejects.toMatchObject({ code: 'APPEND_NOT_IN_TRANSACTION' })
      expect(await db.select().from(record)).toEqual([])
      await database.close()
    })

    test('what the database refuses comes without the parameters that drizzle prints', async () => {
      const database = await createTestDatabase({ version })
      await database.pool.query('alter table outbox.record add constraint no_x check (topic <> $$x$$)')
      const append = drizzle(database.pool).transaction((tx) =>
        createOutbox().append(tx, { topic: 'x', type: 'x', payload: 'secret' }),
      )
      const error: unknown = await append.catch((caught: unknown) => caught)
      expect(error).toMatchObject({ code: '23514' })
      expect(String(error)).not.toContain('secret')
      await database.close()
    })
  })
}

/** The statements that make a table as drizzle describes it. */
function ddl(table: PgTable): string {
  const config = getTableConfig(table)
  const dialect = new PgDialect()
  const text = (value: unknown): string =>
    is(value, SQL) ? dialect.sqlToQuery(value).sql : `'${String(value).replaceAll("'", "''")}'`
  const name = `"${config.schema}"."${config.name}"`
  const lines = config.columns.map((column) =>
    [
      `"${column.name}" ${column.getSQLType()}`,
      column.notNull ? 'not null' : '',
      column.generatedIdentity ? `generated ${column.generatedIdentity.type} as identity` : '',
      column.default === undefined ? '' : `default ${text(column.default)}`,
      column.primary ? 'primary key' : '',
    ].join(' '),
  )
  for (const key of config.primaryKeys) lines.push(`constraint "${key.getName()}" primary key (${names(key.columns)})`)
  for (const key of config.uniqueConstraints) lines.push(`constraint "${key.getName()}" unique (${names(key.columns)})`)
  for (const rule of config.checks) lines.push(`constraint "${rule.name}" check (${text(rule.value)})`)
  const indexes = config.indexes.map(
    (index) => `create index "${index.config.name}" on ${name} (${names(index.config.columns as { name: string }[])})`,
  )
  return [`create table ${name} (${lines.join(', ')})`, ...indexes].join(';\n')
}

function names(columns: readonly { name: string }[]): string {
  return columns.map((column) => `"${column.name}"`).join(', ')
}

/** What Postgres says of the tables of a schema (of partitioned ones their root), without the schema's name. */
async function catalogOf(sql: Sql, schema: string): Promise<Record<string, unknown>> {
  const { rows } = await sql.query(
    `select c.relname as name,
       (select array_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                 nullif(a.attidentity, ''), pg_get_expr(d.adbin, d.adrelid)) order by a.attnum)
        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select array_agg(k.conname || ' ' || pg_get_constraintdef(k.oid) order by k.conname)
        from pg_constraint k where k.conrelid = c.oid and k.contype in ('p', 'u', 'c')) as constraints,
       (select array_agg(replace(replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '), quote_ident($1) || '.', '')
                 order by i.indexrelid::regclass::text)
        from pg_index i where i.indrelid = c.oid) as indexes
     from pg_class c
     where c.relnamespace = $1::regnamespace and c.relkind in ('r', 'p') and not c.relispartition order by 1`,
    [schema],
  )
  return Object.fromEntries((rows as { name: string }[]).map(({ name, ...rest }) => [name, rest]))
}
