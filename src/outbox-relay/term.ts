/**
 * A term: one membership, with the shards it holds, from joining to losing a lease or leaving.
 *
 *     connect → join → ( take shards → load their checkpoints → ( read → open → publish → published )* )* → close → leave
 *
 * Relays that share hold some of the shards each, which change while the term lasts (sharing.ts). One that does not
 * holds all of them or stands by.
 *
 * Nothing in memory outlives a term: not a snapshot, not a page. When a connection is lost, or the lease, the term ends
 * with an error once what is in flight has been answered, and the next term begins from the checkpoint's row.
 */
import type { Publisher, Unresolved } from '../brokers/broker.ts'
import { type Clock, delay, withDeadline } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import type { Logger } from '../core/logger.ts'
import type { Signals } from '../core/signals.ts'
import type { Backoff } from '../flow/backoff.ts'
import type { PgClient, PgPool, Sql } from '../postgres/sql.ts'
import type { Page } from './capture/capture.ts'
import { PollingCapture } from './capture/polling/polling-capture.ts'
import type { PageBounds } from './capture/polling/page-reader.ts'
import { warnOfLeftoverSlot } from './capture/replication/leftover-slot.ts'
import { replicationHindrance } from './capture/replication/support.ts'
import { type Checkpoint, CheckpointLog, type ShardsCheckpoint } from './checkpoint-log.ts'
import { Lease } from './lease.ts'
import { type CrashCounter, ParkingOwner } from './parking/index.ts'
import { type StreamMemory, relayStream } from './relay-stream.ts'
import { type RelaySessions, openRelaySessions, serverSilent } from './sessions.ts'
import { shareShards } from './sharing.ts'

/** How a relay reads: `auto` streams where the server and the role allow it, and polls elsewhere. */
export type CaptureMode = 'auto' | 'polling' | 'replication'

/** What a term needs, and whom it tells. */
export interface TermOptions {
  readonly backoff: Backoff
  readonly bounds: PageBounds
  /** How committed records are read. */
  readonly capture: CaptureMode
  readonly clock: Clock
  /** Counts what kills the process; it outlives the terms. */
  readonly crashes: CrashCounter
  readonly holder: string
  readonly leaseTtlMs: number
  readonly logger: Logger
  /** How it reads from now on, and why when that is not what was asked for. */
  readonly onCapture: (reading: 'polling' | 'replication', why: string) => void
  readonly onParked: (keys: number, records: number) => void
  /** A page is done; so many of its events were not published but parked, or discarded before. */
  readonly onPublished: (page: Page, setAside: number) => void
  readonly onReplayed: (records: number, bytes: number) => void
  readonly onRetry: (unresolved: readonly Unresolved[]) => void
  readonly onState: (state: 'standby' | 'relaying', epoch: string, shards: readonly number[]) => void
  readonly pollIntervalMs: number
  readonly postgres: PgPool
  readonly publisher: Publisher
  readonly schema: string
  readonly signals: Signals
  /** What is remembered of the streams of earlier terms. */
  readonly streams: StreamMemory
  /** The name of the replication slot. Default: `millrace_<database>_<schema>`. */
  readonly slot?: string | undefined
}

/** What a term needs once it has joined. */
export interface JoinedTermOptions extends TermOptions {
  readonly parking: ParkingOwner
}

/** How often a relay that wants all shards looks whether they are free. */
const STANDBY_INTERVAL_MS = 500

/** Runs one term. Resolves after the signal aborted and everything was put in order; rejects with what ended it. */
export async function runTerm(options: TermOptions, signal: AbortSignal): Promise<void> {
  const { clock, holder, leaseTtlMs, postgres, schema } = options
  const sessions = await openRelaySessions(postgres, schema, clock)
  try {
    const writer = sessions.writer.client
    const hindrance = await streamingHindrance(options, writer)
    const sharing = hindrance !== undefined
    const joining = Lease.join(writer, { clock, holder, schema, sharing, ttlMs: leaseTtlMs })
    const lease = await withDeadline(clock, joining, leaseTtlMs, serverSilent)
    const parking = new ParkingOwner({ ...options, lease, sql: writer })
    const joined = { ...options, parking }
    const ending = new AbortController()
    const kept = keepLease(options, lease, sessions, ending.signal)
    try {
      if (hindrance !== undefined) {
        options.onCapture('polling', hindrance)
        await warnOfLeftoverSlot(writer, options)
        await shareShards(joined, lease, sessions, signal)
      } else if (await claimAll(options, lease, writer, signal)) await work(joined, lease, sessions, signal)
      await parking.rest()
    } finally {
      ending.abort()
      await kept
    }
    await withDeadline(clock, lease.release(writer), leaseTtlMs, serverSilent)
  } finally {
    sessions.close()
  }
}

/** Why the WAL is not streamed: '' when nobody asked for it; undefined when it is. */
async function streamingHindrance({ capture, schema }: TermOptions, sql: Sql): Promise<string | undefined> {
  if (capture === 'polling') return ''
  const hindrance = await replicationHindrance(sql, schema)
  if (hindrance === undefined || capture === 'auto') return hindrance
  throw new MillraceError('CONFIG_INVALID', `capture replication is not possible: ${hindrance}; or choose capture auto`)
}

/** Relays all shards, which are held. */
async function work(
  options: JoinedTermOptions,
  lease: Lease,
  sessions: RelaySessions,
  signal: AbortSignal,
): Promise<void> {
  const log = new CheckpointLog(sessions.writer.client, options.schema, lease)
  const reader = sessions.reader.client
  const poll = (start: readonly ShardsCheckpoint[], wal?: Checkpoint['wal']): PollingCapture => {
    const keeping: Pick<CheckpointLog, 'write'> = {
      write: (checkpoint, shards) => log.write({ ...checkpoint, wal }, shards),
    }
    return new PollingCapture({ ...options, log: keeping, reader, start })
  }
  await relayStream(options, { lease, log, poll, sessions }, options.streams, signal)
}

/** Waits until all shards are free, and takes them; false when the signal aborted before. */
async function claimAll(options: TermOptions, lease: Lease, writer: PgClient, signal: AbortSignal): Promise<boolean> {
  const { clock, onState } = options
  while (!signal.aborted) {
    lease.assertHeld()
    if (await withDeadline(clock, lease.claimAll(writer), lease.remainingMs, serverSilent)) return true
    onState('standby', '', [])
    await delay(clock, STANDBY_INTERVAL_MS * (0.5 + clock.random() / 2), signal)
  }
  return false
}

/**
 * Renews the lease until the signal aborts. When that fails, or is not answered before the lease runs out, or the
 * connection is lost, the lease is ended and both connections are closed, so that nothing waits for a server that has
 * fallen silent.
 */
async function keepLease(
  options: TermOptions,
  lease: Lease,
  sessions: RelaySessions,
  signal: AbortSignal,
): Promise<void> {
  const { clock, leaseTtlMs, logger } = options
  sessions.writer.onLost(() => lease.end())
  try {
    for (;;) {
      await delay(clock, leaseTtlMs / 3, signal)
      if (signal.aborted) return
      await withDeadline(clock, lease.renew(sessions.writer.client), lease.remainingMs, serverSilent)
    }
  } catch (error) {
    logger.warn({ error: (error as Error).message }, 'the lease could not be renewed; the term ends')
    lease.end()
    sessions.close()
  }
}
