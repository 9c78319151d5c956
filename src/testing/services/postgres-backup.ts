/**
 * A base backup through SQL and a copy of the files: the npm programs bring no `pg_basebackup`. A physical slot that is
 * made first keeps the WAL from the backup's start, for a standby that streams it or a restore that reads it from an
 * archive.
 */
import { chown, copyFile, mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { inSession } from './postgres-session.ts'
import type { SystemUser } from './postgres-user.ts'

/** What is of no use to a copy, or harms it: the WAL comes by another way, and a slot belongs to its own server. */
const EMPTIED = new Set([
  'pg_dynshmem',
  'pg_notify',
  'pg_replslot',
  'pg_serial',
  'pg_snapshots',
  'pg_stat_tmp',
  'pg_subtrans',
  'pg_wal',
])
const LEFT_OUT =
  /^(postmaster\.(pid|opts)|standby\.signal|recovery\.signal|backup_label.*|pgsql_tmp.*|pg_internal\.init.*)$/

/** Where a backup is taken from. */
export interface BackupSource {
  readonly dataDir: string
  readonly url: string
}

/** Copies the data of a running server to `target`, a folder that is not there yet, for `user` to own. */
export async function baseBackup(
  source: BackupSource,
  slot: string,
  target: string,
  user: SystemUser | undefined,
): Promise<void> {
  await inSession(source.url, async (client) => {
    await client.query('select pg_create_physical_replication_slot($1, true)', [slot])
    await client.query("select pg_backup_start('millrace', fast => true)")
    await copyFolder(source.dataDir, target, user, true)
    const { rows } = await client.query<{ labelfile: string; spcmapfile: string }>(
      'select labelfile, spcmapfile from pg_backup_stop(wait_for_archive => false)',
    )
    await writeOwned(join(target, 'backup_label'), rows[0]?.labelfile ?? '', user)
  })
}

/** Writes a file that the server's user owns. */
export async function writeOwned(file: string, text: string, user: SystemUser | undefined, flag = 'w'): Promise<void> {
  await writeFile(file, text, { flag, mode: 0o600 })
  await own(file, user)
}

/**
 * Copies a folder; of `live` data, only what a backup needs. What goes away meanwhile is left out: the WAL will say that it
 * went.
 */
export async function copyFolder(from: string, to: string, user: SystemUser | undefined, live = false): Promise<void> {
  await mkdir(to, { mode: 0o700, recursive: true })
  await own(to, user)
  for (const entry of await readdir(from, { withFileTypes: true }).catch(gone)) {
    if (live && LEFT_OUT.test(entry.name)) continue
    const [source, copy] = [join(from, entry.name), join(to, entry.name)]
    if (entry.isDirectory()) {
      if (live && EMPTIED.has(entry.name)) {
        await mkdir(copy, { mode: 0o700 })
        await own(copy, user)
      } else await copyFolder(source, copy, user, live)
    } else if (entry.isFile()) {
      const copied = await copyFile(source, copy).then(() => true, gone)
      if (copied === true) await own(copy, user)
    }
  }
}

function gone(error: NodeJS.ErrnoException): [] {
  if (error.code === 'ENOENT') return []
  throw error
}

async function own(path: string, user: SystemUser | undefined): Promise<void> {
  if (user !== undefined) await chown(path, user.uid, user.gid)
}
