/**
 * The relay's two connections: one reads records, the other holds the lease and writes checkpoints, so that a page is
 * read while a checkpoint is written. Both must lead to the server itself: a pooler in transaction mode would mix their
 * settings, and a snapshot must not outlive its connection.
 */
import { type Clock, withDeadline } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import { clientInTurn } from '../postgres/client-in-turn.ts'
import { type PgSession, configure, takeSession } from '../postgres/session.ts'
import type { PgPool } from '../postgres/sql.ts'
import { checkSequence, refuseStandby, requireOneServer } from './preconditions.ts'

/** The two connections of one term. */
export interface RelaySessions {
  readonly reader: PgSession
  readonly writer: PgSession
  /** Closes both; what waits for an answer of theirs is rejected. Idempotent. */
  close(): void
}

/** How long the server lets one statement run. A client waits longer than that for no answer: the network is silent. */
export const STATEMENT_TIMEOUT_MS = 30_000

/** How long connecting and checking may take. */
const OPEN_TIMEOUT_MS = 10_000

// The plans are known, small tables included: two bounded index scans, never a sequential scan or a parallel plan.
const READER_SETTINGS = {
  application_name: 'millrace-relay-reader',
  default_transaction_isolation: 'read committed',
  enable_bitmapscan: 'off',
  enable_seqscan: 'off',
  jit: 'off',
  max_parallel_workers_per_gather: '0',
  statement_timeout: String(STATEMENT_TIMEOUT_MS),
}

const WRITER_SETTINGS = {
  application_name: 'millrace-relay-writer',
  default_transaction_isolation: 'read committed',
  statement_timeout: String(STATEMENT_TIMEOUT_MS),
}

// The flush of an opening write is what makes the records behind it durable, whatever the role's default is; one that
// asks for more than a flush keeps it.
const DURABLE_SQL = `
  select set_config('synchronous_commit',
    case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, false)`

/** Opens both connections and checks what the capture's proof rests on. */
export async function openRelaySessions(pool: PgPool, schema: string, clock: Clock): Promise<RelaySessions> {
  const taken: PgSession[] = []
  let closed = false
  const close = (): void => {
    closed = true
    for (const session of taken) session.close()
  }
  const take = async (settings: Readonly<Record<string, string>>): Promise<PgSession> => {
    const session = await takeSession(pool)
    taken.push(session)
    // The deadline has passed; this one comes too late.
    if (closed) session.close()
    await configure(session, settings)
    return session
  }
  const open = async (): Promise<RelaySessions> => {
    const writer = await take(WRITER_SETTINGS)
    await refuseStandby(writer.client)
    await writer.client.query(DURABLE_SQL)
    const reader = await take(READER_SETTINGS)
    await refuseStandby(reader.client)
    await requireOneServer(reader.client, writer.client)
    await checkSequence(reader.client, schema)
    // The lease is renewed while checkpoints are written.
    return { reader, writer: { ...writer, client: clientInTurn(writer.client) }, close }
  }
  try {
    return await withDeadline(clock, open(), OPEN_TIMEOUT_MS, () => notOpened(taken.length))
  } catch (error) {
    close()
    throw error
  }
}

function notOpened(taken: number): MillraceError {
  return new MillraceError(
    'CONNECTION_LOST',
    taken === 1
      ? `Postgres does not answer, or the pool has no second connection to give: the relay keeps two, so make the pool's max at least 3`
      : `Postgres does not answer, or the pool has no connection to give, within ${OPEN_TIMEOUT_MS} ms`,
  )
}

/** Waits for an answer no longer than the server may take for it: a server that fell silent must not hold a term. */
export function answered<T>(clock: Clock, answer: Promise<T>): Promise<T> {
  return withDeadline(clock, answer, STATEMENT_TIMEOUT_MS + 5000, serverSilent)
}

/** No answer came in time. */
export function serverSilent(): MillraceError {
  return new MillraceError('CONNECTION_LOST', 'Postgres does not answer')
}
