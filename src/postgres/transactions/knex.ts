import { MillraceError } from '../../core/errors.ts'
import type { Sql, SqlResult } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'
import { cutAtPlaceholders } from './placeholders.ts'
import { endedTransaction } from './refusals.ts'

/** The `trx` of Knex: that of `knex.transaction(async (trx) => …)`, or what `await knex.transaction()` gives. */
export interface KnexTransaction {
  /** Only a transaction has this one; the knex object has not. */
  isCompleted(): boolean
  // Knex' own type of a binding, which must not be part of the public surface: Knex is optional.
  raw(sql: string, bindings: never): PromiseLike<unknown>
}

/** Knex on `pg`. The knex object is refused: it is a pool. */
export const knexTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as { isCompleted?: unknown; queryBuilder?: unknown; raw?: unknown }
    if (typeof given.raw !== 'function' || typeof given.queryBuilder !== 'function') return undefined
    if (typeof given.isCompleted === 'function') {
      const trx = given as KnexTransaction
      return trx.isCompleted() ? endedTransaction('Knex') : fromKnex(trx)
    }
    return new MillraceError(
      'APPEND_POOL_GIVEN',
      'append was given the knex object, which runs each statement outside of your transaction. ' +
        'Give it the trx: await knex.transaction(async (trx) => { …; await outbox.append(trx, event) }).',
    )
  },
}

function fromKnex(trx: KnexTransaction): Sql {
  return {
    async query(text, params = []) {
      // Knex has ? for a parameter, and \? for a question mark.
      const { order, texts } = cutAtPlaceholders(text)
      const sql = texts.map((part) => part.replaceAll('?', '\\?')).join('?')
      return (await trx.raw(sql, order.map((index) => params[index]) as never)) as SqlResult
    },
  }
}
