import { MillraceError } from '../../core/errors.ts'
import type { Sql, SqlResult } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'
import { notInTransaction } from './pg.ts'
import { cutAtPlaceholders } from './placeholders.ts'
import { fromPostgresJs, isPostgresJs } from './postgres-js.ts'

/** The `tx` that drizzle's `db.transaction(async (tx) => …)` gives. */
export interface DrizzleTransaction {
  // Drizzle's own SQL type, which must not be part of the public surface: drizzle is optional.
  execute(query: never): PromiseLike<unknown>
  /** Only a transaction has this one; the database object has not. */
  rollback(): never
}

/** `drizzle-orm` on node-postgres or postgres.js. The database object is refused: it is a pool. */
export const drizzleTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as { execute?: unknown; rollback?: unknown; select?: unknown; session?: unknown }
    if (typeof given.execute !== 'function' || typeof given.select !== 'function') return undefined
    if (typeof given.rollback === 'function') return refusal(given) ?? fromDrizzle(given as DrizzleTransaction)
    return new MillraceError(
      'APPEND_POOL_GIVEN',
      'append was given the database object of drizzle, which runs each statement outside of your transaction. ' +
        'Give it the tx: await db.transaction(async (tx) => { …; await outbox.append(tx, event) }). ' +
        'Where the database object was made of a client in a transaction, give it that client.',
    )
  },
}

/**
 * The statements of a drizzle transaction. `append` does this by itself; use it where you want to say so.
 *
 * @example
 * await db.transaction(async (tx) => {
 *   await outbox.append(fromDrizzle(tx), event)
 * })
 */
export function fromDrizzle(tx: DrizzleTransaction): Sql {
  const client = clientOf(tx)
  if (isPostgresJs(client)) return fromPostgresJs(client)
  return {
    async query(text, params = []) {
      const { sql } = await import('drizzle-orm')
      const { order, texts } = cutAtPlaceholders(text)
      const strings = Object.assign([...texts], { raw: texts })
      // Bound one by one by sql.param, or drizzle would spread arrays and encode what is bytes.
      const bound = order.map((index) => sql.param(params[index]))
      let result: unknown
      try {
        result = await tx.execute(sql(strings, ...bound) as never)
      } catch (error) {
        // Drizzle's own error prints every parameter, and a payload does not belong in a log.
        if (error instanceof Error && 'query' in error && 'params' in error && error.cause instanceof Error)
          throw error.cause
        throw error
      }
      return Array.isArray(result) ? { rows: result, rowCount: result.length } : (result as SqlResult)
    },
  }
}

/** A tx that is used after its end writes outside of it; on node-postgres its client tells. */
function refusal(given: object): MillraceError | undefined {
  const client = clientOf(given) as { getTransactionStatus?(): string | null } | undefined
  return typeof client?.getTransactionStatus === 'function' ? notInTransaction(client) : undefined
}

/** What the driver below runs its statements on. */
function clientOf(tx: object): unknown {
  return (tx as { session?: { client?: unknown } }).session?.client
}
