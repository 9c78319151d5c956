import { MillraceError } from '../core/errors.ts'
import type { PgClient } from '../postgres/sql.ts'

/** Statements that would end or replace the effect transaction; `rollback to savepoint` is not among them. */
const BOUNDARY =
  /^(?:\s|--[^\n]*\n|\/\*.*?\*\/)*(?:begin|start\s+transaction|commit|end|abort|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b/is

/** Methods of a client that belong to whoever took it from the pool. */
const NOT_YOURS = new Set<PropertyKey>(['connect', 'end', 'release'])

/**
 * The client as a handler sees it: the pool's own object in all but what would break the transaction it shares with
 * the inbox and its neighbours. Each run of a handler gets its own, which is closed when the handler ends: a query
 * that nobody awaited must not land in the transaction of the next message.
 */
export class TransactionGuard implements ProxyHandler<PgClient> {
  /** What to give to the handler. */
  readonly client: PgClient
  #open = true

  constructor(client: PgClient) {
    this.client = new Proxy(client, this)
  }

  /** Refuses every query from now on. */
  close(): void {
    this.#open = false
  }

  get(target: PgClient, property: PropertyKey, receiver: unknown): unknown {
    if (property === 'query') return (...args: unknown[]) => this.#query(target, args)
    if (NOT_YOURS.has(property)) return () => misused(`${String(property)}() was called on tx`)
    return Reflect.get(target, property, receiver)
  }

  #query(target: PgClient, args: unknown[]): unknown {
    const problem = !this.#open
      ? 'tx was used after the handler had ended (await every query inside the handler)'
      : BOUNDARY.test(textOf(args[0]))
        ? `tx was given \`${textOf(args[0]).trim().slice(0, 20)}\``
        : undefined
    // pg's query has more shapes (configurations, callbacks, submittables) than the port; they pass through as they are.
    const query = Reflect.get(target, 'query') as (...args: unknown[]) => unknown
    return problem === undefined ? Reflect.apply(query, target, args) : Promise.reject(misuse(problem))
  }
}

function textOf(query: unknown): string {
  if (typeof query === 'string') return query
  const { text } = (query ?? {}) as { text?: unknown }
  return typeof text === 'string' ? text : ''
}

function misused(what: string): never {
  throw misuse(what)
}

function misuse(what: string): MillraceError {
  return new MillraceError(
    'EFFECT_TRANSACTION_MISUSED',
    `${what}; the effect transaction is begun and ended by the consumer: it commits when the handler returns and rolls ` +
      'back when it throws. Use `drizzle(tx)` instead of `drizzle(tx).transaction(…)`, and a savepoint for a part that may fail.',
  )
}
