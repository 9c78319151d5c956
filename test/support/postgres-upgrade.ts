/**
 * What pg_upgrade does: the real one where it is installed beside the server, and an imitation of what matters to an
 * outbox where it is not, for the npm servers bring none.
 */
import { execFile } from 'node:child_process'
import { access, copyFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type pg from 'pg'
import { migrate } from '../../src/postgres/migrator.ts'
import { type PostgresServer, type PostgresVersion, startPostgres } from '../../src/testing/services/index.ts'
import { burnTransactionIds } from './outbox-copy.ts'
import { poolOf } from './outbox-server.ts'

/** The folder with the programs of a version that has its own pg_upgrade, if there is one. */
export async function programsWithUpgrade(version: PostgresVersion): Promise<string | undefined> {
  const bin = `/usr/lib/postgresql/${version}/bin`
  return access(join(bin, 'pg_upgrade')).then(
    () => bin,
    () => undefined,
  )
}

/** Upgrades the data of a stopped server with pg_upgrade itself, to the version whose programs these are. */
export async function upgrade(old: PostgresServer, bin: string, version: PostgresVersion): Promise<PostgresServer> {
  const dataDir = join(old.folder, 'upgraded')
  const env = { HOME: old.folder, LC_ALL: 'C', PATH: process.env['PATH'] ?? '', TZ: 'UTC' }
  const options = { cwd: old.folder, env, ...old.user }
  const run = promisify(execFile)
  const cluster = ['-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
  await run(join(bin, 'initdb'), ['-D', dataDir, ...cluster], options)
  const both = ['-b', bin, '-B', bin, '-d', old.dataDir, '-D', dataDir]
  await run(join(bin, 'pg_upgrade'), [...both, '-U', 'postgres', '-s', old.folder], options)
  return startPostgres({ dataDir, version })
}

/**
 * Imitates pg_upgrade: a new cluster of another version, with another identifier, goes on behind the transaction ids of
 * the old one, its catalogs are made then, and the files of the outbox's tables and sequences are put in place as they
 * are. The old server is stopped by it.
 */
export async function imitateUpgrade(old: PostgresServer, version: PostgresVersion): Promise<PostgresServer> {
  // Each of these pools ends right before its server stops, which then may tell a connection on its way out: an error.
  const source = poolOf(old.url)
  // Hints in the rows stand for the pg_xact that is not copied.
  await source.query('vacuum')
  const from = await filesOf(source)
  const { rows } = await source.query('select pg_snapshot_xmax(pg_current_snapshot())::text as next')
  await source.end()
  await old.stop('fast')

  // The old pages have no checksums, which version 18 looks for.
  const server = await startPostgres({ settings: { ignore_checksum_failure: 'on' }, version })
  const target = poolOf(server.url, { max: 1 })
  await burnTransactionIds(target, Number(rows[0].next))
  // The WAL must be ahead of the pages that are put in place.
  for (let i = 0; i < 4; i++) {
    await target.query(`select pg_logical_emit_message(false, 'a', 'b')`)
    await target.query('select pg_switch_wal()')
  }
  await migrate(target)
  const to = await filesOf(target)
  await target.end()
  await server.stop('fast')
  for (const [table, file] of to) {
    const path = join(server.dataDir, file)
    await copyFile(join(old.dataDir, from.get(table) ?? ''), path)
    for (const fork of ['_vm', '_fsm']) await rm(`${path}${fork}`, { force: true })
  }
  await server.start()
  const restored = poolOf(server.url, { max: 1 })
  await restored.query('reindex schema outbox')
  await restored.end()
  return server
}

async function filesOf(pool: pg.Pool): Promise<Map<string, string>> {
  const { rows } = await pool.query(
    `select relname as name, pg_relation_filepath(oid) as file from pg_class
     where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'S')`,
  )
  return new Map((rows as { name: string; file: string }[]).map(({ name, file }) => [name, file]))
}
