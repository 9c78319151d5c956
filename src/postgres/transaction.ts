/**
 * The caller's transaction, whichever library it comes from.
 *
 * Each library is one file under `transactions/`: it says by shape whether a value is its transaction, or something of
 * its own that is not one. To add a library, write its file and put it into `ADAPTERS`, before `sql`, which takes
 * whatever can `query`.
 */
import { MillraceError } from '../core/errors.ts'
import type { Sql } from './sql.ts'
import { drizzleTransaction } from './transactions/drizzle.ts'
import type { DrizzleTransaction } from './transactions/drizzle.ts'
import { knexTransaction } from './transactions/knex.ts'
import type { KnexTransaction } from './transactions/knex.ts'
import { kyselyTransaction } from './transactions/kysely.ts'
import type { KyselyTransaction } from './transactions/kysely.ts'
import { pgTransaction } from './transactions/pg.ts'
import { postgresJsTransaction } from './transactions/postgres-js.ts'
import type { PostgresJsTransaction } from './transactions/postgres-js.ts'
import { prismaTransaction } from './transactions/prisma.ts'
import type { PrismaTransaction } from './transactions/prisma.ts'
import { sqlTransaction } from './transactions/sql.ts'
import { typeormTransaction } from './transactions/typeorm.ts'

/** Anything that runs statements inside one open transaction: a `pg` client after BEGIN, an adapter's result. */
export interface SqlTransaction extends Sql {
  /** A pool has this one; each of its statements may run on another connection, outside of every transaction. */
  readonly totalCount?: never
}

/** A transaction that `append` takes as it is. Those of `pg` and TypeORM are an {@link SqlTransaction}. */
export type Transaction =
  SqlTransaction | DrizzleTransaction | KnexTransaction | KyselyTransaction | PostgresJsTransaction | PrismaTransaction

/** One library's transactions, by their shape. */
export interface TransactionAdapter {
  /** The transaction's statements; why it is refused; or undefined for a value of another library. */
  recognise(value: object): Sql | MillraceError | undefined
}

// Those that have a `query` of their own come before pg, which would take it for its own.
const ADAPTERS: readonly TransactionAdapter[] = [
  drizzleTransaction,
  kyselyTransaction,
  knexTransaction,
  postgresJsTransaction,
  prismaTransaction,
  typeormTransaction,
  pgTransaction,
  sqlTransaction,
]

/**
 * The statements of the given transaction.
 *
 * @throws APPEND_POOL_GIVEN, APPEND_NOT_IN_TRANSACTION, APPEND_UNKNOWN_TRANSACTION with the fix in the message.
 */
export function openTransaction(given: unknown): Sql {
  if ((typeof given === 'object' && given !== null) || typeof given === 'function') {
    for (const adapter of ADAPTERS) {
      const recognised = adapter.recognise(given)
      if (recognised instanceof MillraceError) throw recognised
      if (recognised !== undefined) return recognised
    }
  }
  throw new MillraceError(
    'APPEND_UNKNOWN_TRANSACTION',
    `append was given ${describe(given)} instead of a transaction. Give it the transaction that writes the data: ` +
      'a pg client after BEGIN, the tx of drizzle, Knex, Kysely, postgres.js, Prisma or TypeORM, or an object ' +
      '{ query(text, params) } that runs inside it.',
  )
}

function describe(given: unknown): string {
  if (given === null || given === undefined) return String(given)
  if (typeof given !== 'object') return `a ${typeof given}`
  if (typeof (given as { then?: unknown }).then === 'function') return 'a promise (await it first)'
  const name: unknown = (given as { constructor?: { name?: unknown } }).constructor?.name
  return typeof name === 'string' && name !== '' && name !== 'Object' ? `an object of class ${name}` : 'a plain object'
}
