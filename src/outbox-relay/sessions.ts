/**
 * The relay's two connections: one reads records, the other holds the lease and writes checkpoints, so that a page is
 * read while a checkpoint is written. Both must lead to the server itself: a pooler in transaction mode would mix their
 * settings, and a snapshot must not outlive its connection.
 */
import { type PgSession, openSession } from '../postgres/session.ts'
import type { PgPool } from '../postgres/sql.ts'
import { checkSequence, refuseStandby, requireOneServer } from './preconditions.ts'

/** The two connections of one term. */
export interface RelaySessions {
  readonly reader: PgSession
  readonly writer: PgSession
  /** Closes both; what waits for an answer of theirs is rejected. Idempotent. */
  close(): void
}

const STATEMENT_TIMEOUT = '60s'

// The plans are known, small tables included: two bounded index scans, never a sequential scan or a parallel plan.
const READER_SETTINGS = {
  application_name: 'millrace-relay-reader',
  default_transaction_isolation: 'read committed',
  enable_bitmapscan: 'off',
  enable_seqscan: 'off',
  jit: 'off',
  max_parallel_workers_per_gather: '0',
  statement_timeout: STATEMENT_TIMEOUT,
}

const WRITER_SETTINGS = {
  application_name: 'millrace-relay-writer',
  default_transaction_isolation: 'read committed',
  statement_timeout: STATEMENT_TIMEOUT,
}

// The flush of an opening write is what makes the records behind it durable, whatever the role's default is; one that
// asks for more than a flush keeps it.
const DURABLE_SQL = `
  select set_config('synchronous_commit',
    case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, false)`

/** Opens both connections and checks what the capture's proof rests on. */
export async function openRelaySessions(pool: PgPool, schema: string): Promise<RelaySessions> {
  const writer = await openSession(pool, WRITER_SETTINGS)
  let reader: PgSession | undefined
  const close = (): void => {
    reader?.close()
    writer.close()
  }
  try {
    await refuseStandby(writer.client)
    await writer.client.query(DURABLE_SQL)
    reader = await openSession(pool, READER_SETTINGS)
    await refuseStandby(reader.client)
    await requireOneServer(reader.client, writer.client)
    await checkSequence(reader.client, schema)
    return { reader, writer, close }
  } catch (error) {
    close()
    throw error
  }
}
