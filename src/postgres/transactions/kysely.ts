import { MillraceError } from '../../core/errors.ts'
import type { Sql, SqlResult } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'
import { endedTransaction } from './refusals.ts'

/** The `trx` that Kysely's `db.transaction().execute(async (trx) => …)` gives, or that of a controlled transaction. */
export interface KyselyTransaction {
  /** Of the database object it may be false. */
  readonly isTransaction: true
  // Kysely's own type of a compiled query, which must not be part of the public surface: Kysely is optional.
  executeQuery(query: never): PromiseLike<{ readonly rows: unknown[] }>
}

/** Kysely, on whatever dialect for PostgreSQL. The database object is refused: it is a pool. */
export const kyselyTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as { executeQuery?: unknown; isTransaction?: unknown; selectFrom?: unknown }
    if (typeof given.executeQuery !== 'function' || typeof given.selectFrom !== 'function') return undefined
    if (given.isTransaction === true) return fromKysely(given as KyselyTransaction)
    return new MillraceError(
      'APPEND_POOL_GIVEN',
      'append was given the database object of Kysely, which runs each statement outside of your transaction. ' +
        'Give it the trx: await db.transaction().execute(async (trx) => { …; await outbox.append(trx, event) }).',
    )
  },
}

/** What Kysely says of a transaction that has ended. */
const ENDED = /^Transaction is already (committed|rolled back)/

function fromKysely(trx: KyselyTransaction): Sql {
  return {
    async query(text, params = []) {
      // What CompiledQuery.raw makes. Plugins know a query by the object of its id.
      const query = {
        parameters: params,
        query: { kind: 'RawNode', parameters: [], sqlFragments: [text] },
        queryId: { queryId: 'millrace' },
        sql: text,
      }
      try {
        return (await trx.executeQuery(query as never)) as SqlResult
      } catch (error) {
        throw error instanceof Error && ENDED.test(error.message) ? endedTransaction('Kysely', error) : error
      }
    },
  }
}
