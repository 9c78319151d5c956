/** A streaming standby of a private PostgreSQL, for tests of a failover. */
import { join } from 'node:path'
import { delay, systemClock } from '../../core/clock.ts'
import { baseBackup, writeOwned } from './postgres-backup.ts'
import { PostgresServer, postgresParts, type PostgresOptions, type PostgresParts } from './postgres.ts'
import { ask, inSession, until } from './postgres-session.ts'
import { MillraceError } from '../../core/errors.ts'

/** How a standby is made. Its version and settings are the primary's. */
export interface StandbyOptions extends Pick<PostgresOptions, 'port' | 'startTimeoutMs' | 'stopTimeoutMs'> {
  /** More settings, over the primary's. Default: none. */
  readonly settings?: Readonly<Record<string, string>>
  /**
   * Copies the primary's logical slots that were made with `failover => true`, so that they survive a promotion; the
   * standby's feedback then keeps dead rows on the primary. PostgreSQL 17 and later. Default: true where it exists.
   */
  readonly slotSync?: boolean
  /** Every commit on the primary waits for this standby, from now on. Default: false. */
  readonly synchronous?: boolean
}

const PATIENCE_MS = 30_000
const SLOT_POLL_MS = 200

/**
 * Makes a copy of a running private PostgreSQL and starts it as its streaming standby; resolves when it streams. It
 * takes the primary's place with `promote()`, and can have a standby of its own then.
 *
 * @example
 * const primary = await startPostgres()
 * const standby = await startStandby(primary, { synchronous: true })
 * await primary.kill()
 * await standby.promote()
 */
export async function startStandby(primary: PostgresServer, options: StandbyOptions = {}): Promise<PostgresStandby> {
  const { port, settings, slotSync, startTimeoutMs, stopTimeoutMs, synchronous } = options
  const { dataDir: _, port: __, settings: inherited, ...rest } = primary.options
  const parts = await postgresParts({ ...rest, ...(port === undefined ? {} : { port }) })
  const slotName = `standby_${parts.port}`
  const syncs = slotSync ?? knowsSlotSync(primary)
  const standby = new PostgresStandby(
    {
      ...rest,
      ...(startTimeoutMs === undefined ? {} : { startTimeoutMs }),
      ...(stopTimeoutMs === undefined ? {} : { stopTimeoutMs }),
      settings: {
        ...inherited,
        primary_conninfo: `host=127.0.0.1 port=${primary.port} user=postgres dbname=postgres application_name=${slotName}`,
        primary_slot_name: slotName,
        // It looks for a primary that was away twice a second, and not every five.
        wal_retrieve_retry_interval: '500ms',
        ...(syncs ? { hot_standby_feedback: 'on', sync_replication_slots: 'on' } : {}),
        ...settings,
      },
    },
    parts,
    primary,
  )
  try {
    await baseBackup(primary, slotName, standby.dataDir, standby.user)
    await writeOwned(join(standby.dataDir, 'standby.signal'), '', standby.user)
    // What the primary was told by ALTER SYSTEM about its own standbys is none of this server's business.
    const names = ['synchronous_standby_names', ...(knowsSlotSync(primary) ? ['synchronized_standby_slots'] : [])]
    const lines = names.map((name) => `${name} = ''\n`).join('')
    await writeOwned(join(standby.dataDir, 'postgresql.auto.conf'), lines, standby.user, 'a')
    await standby.start()
    await standby.waitUntilStreaming()
    if (synchronous === true) await standby.makeSynchronous()
  } catch (error) {
    await standby.dispose()
    throw error
  }
  return standby
}

/** A standby: stopped, killed and started like any server. Made by {@link startStandby}. */
export class PostgresStandby extends PostgresServer {
  /** Its name on the primary: the physical slot it streams from, and its `application_name`. */
  readonly slotName: string
  readonly #primary: PostgresServer

  /** @internal */
  constructor(options: PostgresOptions, parts: PostgresParts, primary: PostgresServer) {
    super(options, parts)
    this.slotName = `standby_${parts.port}`
    this.#primary = primary
  }

  /** Ends the recovery; resolves when the server takes writes. The old primary should be gone by then. */
  async promote(): Promise<void> {
    if ((await ask<boolean>(this.url, 'select pg_promote(true, 60)')) === true) return
    throw new MillraceError('SERVICE_START_FAILED', 'The standby was not promoted within 60 s.')
  }

  /** Whether it has replayed all that the primary has flushed by now. */
  async isInSync(): Promise<boolean> {
    const lsn = await ask<string>(this.#primary.url, 'select pg_current_wal_flush_lsn()::text')
    return (await ask<boolean>(this.url, REPLAYED, [lsn])) === true
  }

  /**
   * Resolves when it has replayed the WAL up to `lsn`. Default: all that the primary has flushed by now or, when that does
   * not answer, all that this server has received.
   */
  async waitForReplay(lsn?: string, timeoutMs: number = PATIENCE_MS): Promise<void> {
    const from = this.#primary.url
    const target =
      lsn ??
      (await ask<string>(from, 'select pg_current_wal_flush_lsn()::text').catch(() => undefined)) ??
      (await ask<string>(this.url, 'select pg_last_wal_receive_lsn()::text'))
    await until(this.url, `the standby replays up to ${target}`, timeoutMs, REPLAYED, [target])
  }

  /** Resolves when the primary streams to it. */
  async waitUntilStreaming(timeoutMs: number = PATIENCE_MS): Promise<void> {
    await until(
      this.#primary.url,
      'the standby streams',
      timeoutMs,
      "select exists (select from pg_stat_replication where application_name = $1 and state = 'streaming')",
      [this.slotName],
    )
  }

  /**
   * Resolves when this server holds a copy of the primary's logical slot that survives a promotion: whoever reads the
   * slot must be confirming what it reads, for a copy of an older position than this server's WAL cannot be kept.
   */
  async waitForSlot(slot: string, timeoutMs: number = PATIENCE_MS): Promise<void> {
    const text = 'select exists (select from pg_replication_slots where slot_name = $1 and synced and not temporary)'
    const end = systemClock.monotonic() + timeoutMs
    while ((await ask(this.url, text, [slot])) !== true) {
      if (systemClock.monotonic() > end) {
        throw new MillraceError('SERVICE_UNAVAILABLE', `slot ${slot} is not synced within ${timeoutMs} ms`)
      }
      // Lets the slot move; the reload wakes the worker, which else sleeps for up to 30 s.
      await ask(this.#primary.url, 'select pg_log_standby_snapshot()')
      await ask(this.url, 'select pg_reload_conf()')
      await delay(systemClock, SLOT_POLL_MS)
    }
  }

  /** Lets every commit on the primary wait for this standby, or for nobody; resolves when it is so. */
  async makeSynchronous(synchronous = true): Promise<void> {
    const names = synchronous ? `FIRST 1 (${this.slotName})` : ''
    await inSession(this.#primary.url, async (client) => {
      await client.query(`alter system set synchronous_standby_names = '${names}'`)
      await client.query('select pg_reload_conf()')
    })
    const isAwaited = "select sync_state = 'sync' from pg_stat_replication where application_name = $1"
    // A standby that is away is in no list; so ask for the setting alone.
    const isNot = "select current_setting('synchronous_standby_names') not like '%' || $1 || '%'"
    const text = synchronous ? isAwaited : isNot
    await until(this.#primary.url, 'the primary knows whom to wait for', PATIENCE_MS, text, [this.slotName])
  }
}

const REPLAYED = 'select coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)'

function knowsSlotSync(server: PostgresServer): boolean {
  return (server.options.version ?? 18) >= 17
}
