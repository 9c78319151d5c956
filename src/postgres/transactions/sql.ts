import type { Sql } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'

// What hands out transactions is not one: a connection of another library that happens to have `query` too.
const NOT_ON_A_TRANSACTION = ['begin', 'beginTransaction', 'connect', 'initialize', 'transaction', 'tx'] as const

/** Anything with `query(text, params)`, such as the `tx` of a handler or the result of `fromDrizzle`. */
export const sqlTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as Sql & Partial<Record<(typeof NOT_ON_A_TRANSACTION)[number], unknown>>
    if (typeof given.query !== 'function') return undefined
    return NOT_ON_A_TRANSACTION.some((name) => typeof given[name] === 'function') ? undefined : given
  },
}
