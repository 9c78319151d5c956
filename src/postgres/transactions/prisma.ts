import { MillraceError } from '../../core/errors.ts'
import type { Sql } from '../sql.ts'
import type { TransactionAdapter } from '../transaction.ts'
import { endedTransaction } from './refusals.ts'

/** The `tx` that Prisma gives: `prisma.$transaction(async (tx) => …)`. */
export interface PrismaTransaction {
  $queryRawUnsafe(query: string, ...values: never[]): PromiseLike<unknown>
  /** Only the client has this one; a transaction has not. */
  readonly $connect?: never
}

/** Prisma, in an interactive transaction. The client is refused: it is a pool. */
export const prismaTransaction: TransactionAdapter = {
  recognise(value) {
    const given = value as { $queryRawUnsafe?: unknown; $connect?: unknown }
    if (typeof given.$queryRawUnsafe !== 'function') return undefined
    if (typeof given.$connect !== 'function') return fromPrisma(given as PrismaTransaction)
    return new MillraceError(
      'APPEND_POOL_GIVEN',
      'append was given the client of Prisma, which runs each statement outside of your transaction. Give it the tx: ' +
        'await prisma.$transaction(async (tx) => { …; await outbox.append(tx, event) }).',
    )
  },
}

/** What Prisma says of a transaction that is closed. */
const CLOSED = 'P2028'

function fromPrisma(tx: PrismaTransaction): Sql {
  return {
    async query(text, params = []) {
      try {
        const rows = (await tx.$queryRawUnsafe(text, ...(params as never[]))) as unknown[]
        return { rows, rowCount: rows.length }
      } catch (error) {
        throw explained(error)
      }
    },
  }
}

/** Prisma keeps the server's code to itself. */
function explained(error: unknown): unknown {
  const { code, meta } = error as {
    readonly code?: string
    readonly meta?: { readonly driverAdapterError?: { readonly cause?: { readonly originalCode?: string } } }
  }
  if (code === CLOSED) return endedTransaction('Prisma', error)
  const original = meta?.driverAdapterError?.cause?.originalCode
  return original === undefined
    ? error
    : Object.assign(new Error((error as Error).message, { cause: error }), { code: original })
}
