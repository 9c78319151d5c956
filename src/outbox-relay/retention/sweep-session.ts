/** The connection of one sweep: taken from the pool, with its own settings, and closed after. */
import { type Clock, withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { type PgSession, configure, takeSession } from '../../postgres/session.ts'
import type { PgPool } from '../../postgres/sql.ts'
import { STATEMENT_TIMEOUT_MS } from '../sessions.ts'

/**
 * Read committed, because what is looked at under the lock must be newer than the lock: an older snapshot would miss a
 * record that was committed while the lock was waited for. No commit waits for a standby while the lock is held: a
 * TRUNCATE that a failover takes back is done again.
 */
const SETTINGS = {
  application_name: 'millrace-retention',
  default_transaction_isolation: 'read committed',
  enable_bitmapscan: 'off',
  enable_seqscan: 'off',
  jit: 'off',
  statement_timeout: String(STATEMENT_TIMEOUT_MS),
  synchronous_commit: 'local',
}

/** How long the pool may take to give a connection. */
const TAKE_TIMEOUT_MS = 10_000

/** Opens it; when the signal aborts it is closed, and what waits for it is rejected. */
export async function openSweepSession(pool: PgPool, clock: Clock, signal: AbortSignal): Promise<PgSession> {
  const taking = takeSession(pool)
  let late = true
  try {
    const session = await withDeadline(clock, orAborted(taking, signal), TAKE_TIMEOUT_MS, noConnection)
    late = false
    const onAbort = (): void => session.close()
    signal.addEventListener('abort', onAbort, { once: true })
    const close = (): void => {
      signal.removeEventListener('abort', onAbort)
      session.close()
    }
    try {
      await configure(session, SETTINGS)
    } catch (error) {
      close()
      throw error
    }
    return { ...session, close }
  } finally {
    // It comes when nobody waits for it any more.
    if (late) void taking.then((session) => session.close()).catch(() => {})
  }
}

function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = (): void => reject(new MillraceError('LIFECYCLE_STOPPED', 'the relay is stopping'))
    if (signal.aborted) aborted()
    signal.addEventListener('abort', aborted, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted))
  })
}

function noConnection(): MillraceError {
  return new MillraceError(
    'CONNECTION_LOST',
    `the pool has no connection to give within ${TAKE_TIMEOUT_MS} ms: the relay keeps two and retention takes one now ` +
      `and then, so make the pool's max at least 3`,
  )
}
