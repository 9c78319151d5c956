/** A base backup and the WAL after it, and servers restored from them to a point in time. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { baseBackup, copyFolder, writeOwned } from './postgres-backup.ts'
import { PostgresServer, postgresParts, type PostgresParts } from './postgres.ts'
import { ask, inSession, until } from './postgres-session.ts'

/** Where a restored server stops to replay. Nothing given: at the end of what was archived. */
export interface RestorePoint {
  /** A position in the WAL. What ends after it is not there. */
  readonly lsn?: string
  /** A name that was given by `pg_create_restore_point`. */
  readonly name?: string
  /** A point in time, as PostgreSQL reads it. */
  readonly time?: string
  /** The last transaction to be there. */
  readonly xid?: string
}

/**
 * Takes a base backup of a running private PostgreSQL. From then on its WAL is kept, for restores of any later point.
 *
 * @example
 * const backup = await backUp(server)
 * await pool.query("select pg_create_restore_point('before')")
 * const restored = await backup.restore({ name: 'before' })
 */
export async function backUp(server: PostgresServer): Promise<PostgresBackup> {
  const { dataDir: _, port: __, ...rest } = server.options
  const parts = await postgresParts(rest)
  const backup = new PostgresBackup(server, parts)
  try {
    await baseBackup(server, backup.slotName, join(parts.folder, 'base'), parts.user)
  } catch (error) {
    await backup.dispose()
    throw error
  }
  return backup
}

/** A base backup with the WAL that its server has written since. Made by {@link backUp}. */
export class PostgresBackup implements AsyncDisposable {
  /** The slot that keeps the WAL on the server. */
  readonly slotName: string
  readonly #parts: PostgresParts
  readonly #server: PostgresServer

  /** @internal */
  constructor(server: PostgresServer, parts: PostgresParts) {
    this.slotName = `backup_${parts.port}`
    this.#parts = parts
    this.#server = server
  }

  /** Copies the WAL that the server has written to the archive. `restore` does so while the server's folder is there. */
  async archive(): Promise<void> {
    // Completes the segment that is being written; a server that is down has no more to say.
    await ask(this.#server.url, 'select pg_switch_wal()').catch(() => undefined)
    await copyFolder(join(this.#server.dataDir, 'pg_wal'), this.#archive, this.#parts.user)
  }

  /** Starts a new server on the backup, replays up to the point, and resolves when it takes writes, on a new timeline. */
  async restore(point: RestorePoint = {}): Promise<PostgresServer> {
    await this.archive()
    const { dataDir: _, port: __, settings, ...rest } = this.#server.options
    const target = Object.entries(point).map(([name, value]) => [`recovery_target_${name}`, String(value)])
    const restored = new PostgresServer(
      {
        ...rest,
        settings: {
          ...settings,
          restore_command: `cp "${this.#archive}/%f" "%p"`,
          ...(target.length === 0
            ? {}
            : { ...Object.fromEntries(target), recovery_target_action: 'promote', recovery_target_inclusive: 'on' }),
        },
      },
      await postgresParts(rest),
    )
    try {
      await copyFolder(join(this.#parts.folder, 'base'), restored.dataDir, restored.user)
      await writeOwned(join(restored.dataDir, 'recovery.signal'), '', restored.user)
      await restored.start()
      await until(restored.url, 'the restored server takes writes', 60_000, 'select not pg_is_in_recovery()')
    } catch (error) {
      await restored.dispose()
      throw error
    }
    return restored
  }

  /** Lets the server drop the WAL it kept, and removes the backup. Restored servers go on. */
  async dispose(): Promise<void> {
    const drop = 'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1'
    await inSession(this.#server.url, (client) => client.query(drop, [this.slotName])).catch(() => {})
    await rm(this.#parts.folder, { recursive: true, force: true, maxRetries: 3 })
    this.#parts.keeper.dismiss()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  get #archive(): string {
    return join(this.#parts.folder, 'archive')
  }
}
