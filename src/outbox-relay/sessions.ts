/**
 * The relay's two connections: one reads records, the other holds the lease and writes checkpoints, so that a page is
 * read while a checkpoint is written. Both must lead to the server itself: a pooler in transaction mode would mix their
 * settings, and a snapshot must not outlive its connection.
 */
import { MillraceError } from '../core/errors.ts'
import { type PgSession, openSession } from '../postgres/session.ts'
import { type PgPool, type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { standbyRefused } from './standby.ts'

/** The two connections of one term. */
export interface RelaySessions {
  readonly reader: PgSession
  readonly writer: PgSession
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
  // The flush of an opening write is what makes the records behind it durable, whatever the server's default is.
  synchronous_commit: 'on',
  statement_timeout: STATEMENT_TIMEOUT,
}

/** Opens both connections and checks what the capture's proof rests on. */
export async function openRelaySessions(pool: PgPool, schema: string): Promise<RelaySessions> {
  const writer = await openSession(pool, WRITER_SETTINGS)
  let reader: PgSession | undefined
  try {
    await refuseStandby(writer.client)
    reader = await openSession(pool, READER_SETTINGS)
    await refuseStandby(reader.client)
    await checkSequence(reader.client, schema)
  } catch (error) {
    reader?.close()
    writer.close()
    throw error
  }
  const opened = reader
  return {
    reader: opened,
    writer,
    close() {
      opened.close()
      writer.close()
    },
  }
}

/** A pool with several hosts may lead each connection to another server. */
async function refuseStandby(sql: Sql): Promise<void> {
  const { rows } = await sql.query('select pg_is_in_recovery() as standby')
  if ((rows[0] as { standby: boolean }).standby) throw standbyRefused()
}

/** A sequence that hands out values in blocks lets a later transaction take a lower value: the floor would not hold. */
async function checkSequence(sql: Sql, schema: string): Promise<void> {
  const { rows } = await sql.query(
    `select seqcache::text as cache, seqincrement::text as increment, seqcycle as cycle from pg_sequence where seqrelid = $1::regclass`,
    [`${quoteIdentifier(schema)}.record_seq_seq`],
  )
  const { cache, increment, cycle } = rows[0] as { cache: string; increment: string; cycle: boolean }
  if (cache === '1' && increment === '1' && !cycle) return
  throw new MillraceError(
    'SEQUENCE_CACHED',
    `the sequence ${schema}.record_seq_seq has been altered (cache ${cache}, increment ${increment}${cycle ? ', cycle' : ''}) and events would be lost; ` +
      `run: alter sequence ${quoteIdentifier(schema)}.record_seq_seq cache 1 increment 1 no cycle`,
  )
}
