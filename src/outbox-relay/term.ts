/**
 * A term: one ownership of the shards, from taking the lease to losing it or giving it back.
 *
 *     connect → wait for the lease → load the checkpoint → ( read → open → publish → published )* → close → release
 *
 * Nothing in memory outlives a term: not a snapshot, not a page. When a connection is lost, or the lease, the term ends
 * with an error once what is in flight has been answered, and the next term begins from the checkpoint's row.
 */
import type { Publisher, Unresolved } from '../brokers/broker.ts'
import { type Clock, delay, withDeadline } from '../core/clock.ts'
import type { Logger } from '../core/logger.ts'
import type { Signals } from '../core/signals.ts'
import type { Backoff } from '../flow/backoff.ts'
import type { PgClient, PgPool } from '../postgres/sql.ts'
import type { Page } from './capture/capture.ts'
import { PollingCapture } from './capture/polling/polling-capture.ts'
import type { PageBounds } from './capture/polling/page-reader.ts'
import { CheckpointLog } from './checkpoint-log.ts'
import { Lease } from './lease.ts'
import { type CrashCounter, ParkingOwner } from './parking/index.ts'
import { relayPages } from './relay-pages.ts'
import { type RelaySessions, openRelaySessions, serverSilent } from './sessions.ts'

/** What a term needs, and whom it tells. */
export interface TermOptions {
  readonly backoff: Backoff
  readonly bounds: PageBounds
  readonly clock: Clock
  readonly holder: string
  readonly leaseTtlMs: number
  readonly logger: Logger
  /** Counts what kills the process; it outlives the terms. */
  readonly crashes: CrashCounter
  readonly onParked: (keys: number, records: number) => void
  /** A page is done; so many of its events were not published but parked, or discarded before. */
  readonly onPublished: (page: Page, setAside: number) => void
  readonly onReplayed: (records: number, bytes: number) => void
  readonly onRetry: (unresolved: readonly Unresolved[]) => void
  readonly onState: (state: 'standby' | 'relaying', epoch: string) => void
  readonly pollIntervalMs: number
  readonly postgres: PgPool
  readonly publisher: Publisher
  readonly schema: string
  readonly signals: Signals
}

/** How often a standby looks whether the lease is free. */
const STANDBY_INTERVAL_MS = 500

/** Runs one term. Resolves after the signal aborted and everything was put in order; rejects with what ended it. */
export async function runTerm(options: TermOptions, signal: AbortSignal): Promise<void> {
  const { clock, postgres, schema } = options
  const sessions = await openRelaySessions(postgres, schema, clock)
  try {
    const writer = sessions.writer.client
    const lease = await waitForLease(options, writer, signal)
    if (lease === undefined) return
    const ending = new AbortController()
    const kept = keepLease(options, lease, sessions, ending.signal)
    try {
      await work(options, lease, sessions, signal)
    } finally {
      ending.abort()
      await kept
    }
    await withDeadline(clock, lease.release(writer), options.leaseTtlMs, serverSilent)
  } finally {
    sessions.close()
  }
}

async function work(options: TermOptions, lease: Lease, sessions: RelaySessions, signal: AbortSignal): Promise<void> {
  const log = new CheckpointLog(sessions.writer.client, options.schema, lease.fence)
  const start = await log.load()
  options.onState('relaying', lease.epoch)
  const reader = sessions.reader.client
  const capture = new PollingCapture({ ...options, log, reader, shards: lease.fence.shards, start })
  const parking = new ParkingOwner({ ...options, lease, sql: sessions.writer.client })
  await relayPages({ ...options, parking }, capture, lease, signal)
  await capture.close()
  await parking.rest()
}

async function waitForLease(options: TermOptions, writer: PgClient, signal: AbortSignal): Promise<Lease | undefined> {
  const { clock, holder, leaseTtlMs, schema, onState } = options
  while (!signal.aborted) {
    const acquiring = Lease.acquire(writer, { clock, holder, schema, ttlMs: leaseTtlMs })
    const lease = await withDeadline(clock, acquiring, leaseTtlMs, serverSilent)
    if (lease !== undefined) return lease
    onState('standby', '')
    await delay(clock, STANDBY_INTERVAL_MS * (0.5 + clock.random() / 2), signal)
  }
  return undefined
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
