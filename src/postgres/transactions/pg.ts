import { MillraceError } from '../../core/errors.ts'
import type { Sql } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'

/** The shape of a `pg` client or pool that matters here. */
interface PgShape extends Sql {
  readonly connect?: unknown
  /** 'I' outside a transaction, 'T' inside, 'E' inside a failed one; since pg 8.19. */
  getTransactionStatus?(): string | null
}

/** `pg`: a Client or PoolClient after BEGIN. A Pool, and whatever else must connect first, is refused. */
export const pgTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as PgShape
    if (typeof given.query !== 'function') return undefined
    if (typeof given.getTransactionStatus === 'function') return notInTransaction(given) ?? given
    if (typeof given.connect !== 'function') return undefined
    // A client of pg before 8.19 does not tell its state; a pool of another make has no escapeLiteral.
    return typeof (given as { escapeLiteral?: unknown }).escapeLiteral === 'function' ? given : poolGiven()
  },
}

/** Why this `pg` client is not in a transaction that can take an event; undefined when it is, or does not say. */
export function notInTransaction(client: { getTransactionStatus?(): string | null }): MillraceError | undefined {
  const status = client.getTransactionStatus?.()
  if (status === 'I') {
    return new MillraceError(
      'APPEND_NOT_IN_TRANSACTION',
      'append was given a client that is not in a transaction, so the event could be there without the data or the ' +
        "data without the event. Before the first write: await client.query('begin'), and await append before " +
        "client.query('commit').",
    )
  }
  return status === 'E' ? failedTransaction() : undefined
}

/** What to say of a transaction in which a statement has failed. */
export function failedTransaction(cause?: unknown): MillraceError {
  return new MillraceError(
    'APPEND_NOT_IN_TRANSACTION',
    'append was given a client whose transaction has failed: an earlier statement was refused and nothing of the ' +
      "transaction will be kept. Handle that statement's error: await client.query('rollback') and begin again.",
    { cause },
  )
}

function poolGiven(): MillraceError {
  return new MillraceError(
    'APPEND_POOL_GIVEN',
    'append was given a pool, which runs each statement on any connection, outside of your transaction. Take a ' +
      "client and give append that one: const client = await pool.connect(); await client.query('begin'); … " +
      "await outbox.append(client, event); await client.query('commit').",
  )
}
