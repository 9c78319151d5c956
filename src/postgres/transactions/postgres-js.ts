import { MillraceError } from '../../core/errors.ts'
import type { Sql } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'
import { endedTransaction } from './refusals.ts'

/** The `tx` that postgres.js gives: `sql.begin(async (tx) => …)`. */
export interface PostgresJsTransaction {
  /** Only a transaction has this one; the sql object has not. */
  savepoint: unknown
  typed(value: never, oid: number): unknown
  // The library's own type of a parameter, which must not be part of the public surface: postgres.js is optional.
  unsafe(query: string, parameters?: never): PromiseLike<readonly unknown[]>
}

/** postgres.js (`postgres` on npm). The sql object is refused: it is a pool. */
export const postgresJsTransaction: TransactionAdapter = {
  recognise(value) {
    if (isPostgresJs(value)) return fromPostgresJs(value)
    const given = value as { begin?: unknown; typed?: unknown; unsafe?: unknown }
    if (![given.begin, given.typed, given.unsafe].every((method) => typeof method === 'function')) return undefined
    return new MillraceError(
      'APPEND_POOL_GIVEN',
      'append was given the sql object of postgres.js, which runs each statement outside of your transaction. ' +
        'Give it the tx: await sql.begin(async (tx) => { …; await outbox.append(tx, event) }).',
    )
  },
}

/** Is it a transaction of postgres.js? */
export function isPostgresJs(value: unknown): value is PostgresJsTransaction {
  const given = value as { savepoint?: unknown; typed?: unknown; unsafe?: unknown } | undefined
  return [given?.savepoint, given?.typed, given?.unsafe].every((method) => typeof method === 'function')
}

const TEXT = 25
const BYTEA = 17

/** What Postgres says to SAVEPOINT outside of a transaction. */
const NO_TRANSACTION = '25P01'

/**
 * The statements of a transaction of postgres.js. Each is preceded by a savepoint, one round trip, because a tx that is
 * used after its end says nothing and writes outside of it.
 */
export function fromPostgresJs(tx: PostgresJsTransaction): Sql {
  return {
    async query(text, params = []) {
      const alive = [tx.unsafe('savepoint millrace'), tx.unsafe('release savepoint millrace')]
      for (const answer of await Promise.allSettled(alive)) {
        if (answer.status === 'fulfilled') continue
        throw (answer.reason as { code?: unknown }).code === NO_TRANSACTION
          ? endedTransaction('postgres.js')
          : answer.reason
      }
      // With the type of the place it would make JSON of a text that is JSON already.
      const typed = params.map((param) => {
        if (typeof param === 'string') return tx.typed(param as never, TEXT)
        return Buffer.isBuffer(param) ? tx.typed(param as never, BYTEA) : param
      })
      const rows = await tx.unsafe(text, typed as never)
      return { rows: [...rows], rowCount: rows.length }
    },
  }
}
