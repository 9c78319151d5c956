/**
 * Brings the two schemas of a database to the version of this package.
 *
 * Each migration is one transaction that takes the database-wide advisory lock first and looks at the version table
 * after it, so any number of migrators may start at once and one does the work. The lock belongs to the transaction and
 * not to the session: it holds behind a pooler too, and nothing is left behind by a migrator that dies.
 */
import { MillraceError } from '../core/errors.ts'
import { readMigrations } from './migration-files.ts'
import type { Migration } from './migration-files.ts'
import { renderMigration } from './migration-template.ts'
import { qualified, resolveSchemas, schemaFlags } from './schemas.ts'
import { quoteIdentifier } from './sql.ts'
import type { PgPool, SchemaNames, Sql } from './sql.ts'
import { takeClient } from './take-client.ts'

/** How to migrate. */
export interface MigrateOptions {
  /** Reads only, and reports what would run with its SQL. Default: false. */
  readonly dryRun?: boolean
  /**
   * How long to wait for another migrator, and for each lock a migration needs, milliseconds. Raise it when a
   * migration has to wait for long transactions of the application; it costs waiting. Default: 60000.
   */
  readonly lockTimeoutMs?: number
  /** The schemas, when they are not `outbox` and `inbox`. */
  readonly schemas?: Partial<SchemaNames>
}

/** What a migrator did, or would do. */
export interface MigrationReport {
  /** The migrations that this call applied: `0001_outbox_and_inbox`. */
  readonly applied: readonly string[]
  /** The migrations that are still to be applied; empty unless it was a dry run. */
  readonly pending: readonly string[]
  /** The SQL of the pending ones; empty unless it was a dry run. */
  readonly sql: string
  /** The version of the database now; 0 before the first migration. */
  readonly version: number
}

// "Millrace" in ASCII. One lock for the whole database: schemas may be shared by two pairs of names.
const LOCK = String(0x4d696c6c72616365n)

const LOCK_TIMEOUT = '55P03'

/**
 * Creates or upgrades the schemas. Safe to call from every instance at every start.
 *
 * @example
 * await migrate(pool)
 * @throws MIGRATION_LOCKED, MIGRATION_CHANGED, SCHEMA_NEWER, SERVER_TOO_OLD; what Postgres says passes through.
 */
export async function migrate(postgres: PgPool, options: MigrateOptions = {}): Promise<MigrationReport> {
  const schemas = resolveSchemas(options.schemas)
  const migrations = await readMigrations()
  if (options.dryRun) {
    const { pending, version } = plan(migrations, await readVersions(postgres, schemas), schemas)
    return { applied: [], pending: pending.map(fileName), sql: script(pending, schemas, version === 0), version }
  }
  const lockTimeoutMs = options.lockTimeoutMs ?? 60_000
  const applied: string[] = []
  for (;;) {
    const step = await inTransaction(postgres, (client) => applyNext(client, migrations, schemas, lockTimeoutMs))
    if (step.applied === undefined) return { applied, pending: [], sql: '', version: step.version }
    applied.push(fileName(step.applied))
  }
}

/**
 * The SQL that `migrate` would run, to read or to hand to somebody who may run it; with a pool only what that database
 * still needs. It records its versions as `migrate` does.
 */
export async function migrationSql(options: MigrateOptions & { readonly postgres?: PgPool } = {}): Promise<string> {
  if (options.postgres !== undefined) return (await migrate(options.postgres, { ...options, dryRun: true })).sql
  return script(await readMigrations(), resolveSchemas(options.schemas), true)
}

/**
 * Makes sure that the database has the schema this version of the package works with, before anything starts.
 *
 * @throws SCHEMA_MISSING when it is not there or too old, SCHEMA_NEWER when it belongs to a newer package.
 */
export async function requireSchema(sql: Sql, schemas?: Partial<SchemaNames>): Promise<void> {
  const names = resolveSchemas(schemas)
  const { pending, version } = plan(await readMigrations(), await readVersions(sql, names), names)
  if (pending.length > 0) throw schemaMissing(names, version)
  const { rows } = await sql.query('select to_regclass($1) is null as missing', [qualified(names.inbox, 'message')])
  if ((rows[0] as { missing: boolean }).missing) throw schemaMissing(names, version)
}

interface AppliedVersion {
  readonly version: number
  readonly checksum: string
}

interface Plan {
  readonly pending: readonly Migration[]
  readonly version: number
}

/** What is left to do; refuses a database that these migrations did not make. */
function plan(migrations: readonly Migration[], applied: readonly AppliedVersion[], schemas: SchemaNames): Plan {
  const version = applied.at(-1)?.version ?? 0
  const newest = migrations.at(-1)?.version ?? 0
  if (version > newest) {
    throw new MillraceError(
      'SCHEMA_NEWER',
      `the schema ${quoteIdentifier(schemas.outbox)} has version ${version}, and this package knows ${newest}. ` +
        'Upgrade the package: npm i millrace@latest',
      { details: { database: version, package: newest } },
    )
  }
  const known = new Map(applied.map((row) => [row.version, row.checksum]))
  const pending: Migration[] = []
  for (const migration of migrations) {
    const checksum = known.get(migration.version)
    if (checksum === undefined && migration.version > version) pending.push(migration)
    else if (checksum !== migration.checksum) throw migrationChanged(migration, checksum)
  }
  return { pending, version }
}

async function applyNext(
  client: Sql,
  migrations: readonly Migration[],
  schemas: SchemaNames,
  lockTimeoutMs: number,
): Promise<{ readonly applied: Migration | undefined; readonly version: number }> {
  await client.query("select set_config('lock_timeout', $1, true)", [`${lockTimeoutMs}ms`])
  try {
    await client.query(`select pg_advisory_xact_lock(${LOCK})`)
  } catch (error) {
    if ((error as { code?: unknown }).code !== LOCK_TIMEOUT) throw error
    throw new MillraceError(
      'MIGRATION_LOCKED',
      `another migrator has held the lock for ${lockTimeoutMs} ms. Try again when it is done; ` +
        `if none is running, look for the session that holds advisory lock ${LOCK} in pg_locks.`,
      { cause: error, details: { lockTimeoutMs } },
    )
  }
  await requireServer(client)
  const { pending, version } = plan(migrations, await readVersions(client, schemas), schemas)
  const [next] = pending
  if (next === undefined) return { applied: undefined, version }
  await client.query('set local search_path = pg_catalog')
  // CREATE SCHEMA IF NOT EXISTS asks for the right to create one even when it exists.
  for (const schema of new Set([schemas.outbox, schemas.inbox])) {
    const { rows } = await client.query('select from pg_namespace where nspname = $1', [schema])
    if (rows.length === 0) await client.query(`create schema ${quoteIdentifier(schema)}`)
  }
  if (version === 0) await client.query(versionTable(schemas))
  await client.query(renderMigration(next.template, schemas))
  await client.query(versionRow(next, schemas))
  return { applied: next, version: next.version }
}

async function readVersions(sql: Sql, schemas: SchemaNames): Promise<readonly AppliedVersion[]> {
  const table = qualified(schemas.outbox, 'migration')
  const { rows: found } = await sql.query('select to_regclass($1) is not null as found', [table])
  if (!(found[0] as { found: boolean }).found) return []
  const { rows } = await sql.query(`select version, checksum from ${table} order by version`)
  return rows as AppliedVersion[]
}

async function requireServer(sql: Sql): Promise<void> {
  const { rows } = await sql.query(
    "select current_setting('server_version') as name, current_setting('server_version_num')::int as number",
  )
  const { name, number } = rows[0] as { name: string; number: number }
  if (number >= 150_000) return
  throw new MillraceError('SERVER_TOO_OLD', `this server is PostgreSQL ${name}. Upgrade it to PostgreSQL 15 or newer.`)
}

async function inTransaction<T>(pool: PgPool, work: (client: Sql) => Promise<T>): Promise<T> {
  const client = await takeClient(pool)
  const ignore = (): void => undefined // a connection that dies between two statements fails the next one
  client.on('error', ignore)
  let broken = false
  try {
    // Read committed whatever the default is: the version table is read after the lock was waited for.
    await client.query('begin isolation level read committed read write')
    const result = await work(client)
    await client.query('commit')
    return result
  } catch (error) {
    await client.query('rollback').catch(() => (broken = true))
    throw error
  } finally {
    client.removeListener('error', ignore)
    client.release(broken)
  }
}

function script(pending: readonly Migration[], schemas: SchemaNames, first: boolean): string {
  return pending
    .map((migration, index) =>
      [
        `-- ${fileName(migration)}`,
        'begin isolation level read committed read write;',
        `select pg_advisory_xact_lock(${LOCK});`,
        'set local search_path = pg_catalog;',
        ...(first && index === 0
          ? [...new Set([schemas.outbox, schemas.inbox])].map(
              (schema) => `create schema if not exists ${quoteIdentifier(schema)};`,
            )
          : []),
        ...(first && index === 0 ? [`${versionTable(schemas)};`] : []),
        renderMigration(migration.template, schemas).trim(),
        `${versionRow(migration, schemas)};`,
        'commit;\n',
      ].join('\n'),
    )
    .join('\n')
}

function versionTable(schemas: SchemaNames): string {
  return (
    `create table ${qualified(schemas.outbox, 'migration')} (version integer primary key, name text not null, ` +
    'checksum text not null, applied_at timestamptz not null default clock_timestamp())'
  )
}

/** Name and checksum are \w and hex by construction, so they stand as constants. */
function versionRow({ version, name, checksum }: Migration, schemas: SchemaNames): string {
  return `insert into ${qualified(schemas.outbox, 'migration')} (version, name, checksum) values (${version}, '${name}', '${checksum}')`
}

function fileName({ version, name }: Migration): string {
  return `${String(version).padStart(4, '0')}_${name}`
}

function migrationChanged(migration: Migration, found: string | undefined): MillraceError {
  const what = found === undefined ? 'was left out' : 'was applied from a different file'
  return new MillraceError(
    'MIGRATION_CHANGED',
    `migration ${fileName(migration)} ${what}, so the schema is not the one this package knows. ` +
      'Use the package version that made it, or migrate a database (or schemas) of its own.',
    { details: { version: migration.version, expected: migration.checksum, found } },
  )
}

function schemaMissing(schemas: SchemaNames, version: number): MillraceError {
  const what =
    version === 0 ? 'does not have the schema of Millrace' : `has an older or incomplete schema (version ${version})`
  return new MillraceError(
    'SCHEMA_MISSING',
    `this database ${what}. Run: npx millrace migrate --database-url <url>${schemaFlags(schemas)}`,
    { details: { ...schemas, version } },
  )
}
