import type { Clock } from '../core/clock.ts'
import { OptionCheck } from '../core/options.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import type { SchemaNames, Sql } from '../postgres/sql.ts'
import { openTransaction } from '../postgres/transaction.ts'
import type { Transaction } from '../postgres/transaction.ts'
import { AppendStatement } from './append-statement.ts'
import type { AnyEvents, EventCatalog, EventOf, InputsOf, OutboxEvent } from './event.ts'
import { eventRows } from './event-rows.ts'
import type { EventRow } from './event-rows.ts'
import { WalOnlyStatement } from './wal-only-statement.ts'

/** How an outbox is set up. */
export interface OutboxOptions<Catalog extends EventCatalog = EventCatalog> {
  /** Where the time in new ids comes from. Change it in tests. Default: the machine's clock. */
  readonly clock?: Clock
  /**
   * The event types with the schemas of their payloads (any Standard Schema: zod, valibot, arktype, …). With it `append`
   * takes only these types, checks each payload and stores what the schema makes of it. Costs one validation an event.
   * Default: any type, any payload.
   */
  readonly events?: Catalog
  /**
   * The most bytes an event may have: payload, key, topic, type and headers. Raise it together with the broker's own
   * limit (Kafka: 1 MB unless configured); large events cost memory at every hop. Default: 1000000.
   */
  readonly maxEventBytes?: number
  /** The schemas, when they are not `outbox` and `inbox`. */
  readonly schemas?: Partial<SchemaNames>
  /**
   * The name of the relay's replication slot, when the relay was given one (`slot`). Only `appendWalOnly` looks for it.
   * Default: any slot on the database whose name begins with `millrace_`.
   */
  readonly slot?: string
}

/** What an `append` did. */
export interface AppendResult {
  /** The ids of the events, in the order they were given. */
  readonly ids: readonly string[]
}

/** Writes events into the outbox. It holds no connection; make one and keep it. */
export interface Outbox<Events extends object = AnyEvents> {
  /**
   * Appends events to the caller's transaction, after the statement that writes (and so locks) the data they are about.
   * They are published if and only if that transaction commits. Nothing is written when any of them is invalid.
   *
   * @example
   * await db.transaction(async (tx) => {
   *   await tx.insert(orders).values(order)
   *   await outbox.append(tx, { topic: 'orders', key: order.id, type: 'order.placed', payload: order })
   * })
   * @throws APPEND_INVALID_EVENT, APPEND_NOT_IN_TRANSACTION, APPEND_POOL_GIVEN, APPEND_UNKNOWN_TRANSACTION; what the
   * database says passes through.
   */
  append(tx: Transaction, events: EventOf<Events> | readonly EventOf<Events>[]): Promise<AppendResult>
  /**
   * As `append`, but the events live in the write-ahead log alone: no row, no index, no vacuum, about half the cost of an
   * insert. They reach only a relay that streams (`capture` replication), in the order of the commits. The price: what
   * the relay has not published yet is gone with its replication slot (dropped, invalidated, or lost in a failover that
   * does not keep slots), parking and replay have no record to go back to, and "no committed event is lost" does not
   * hold for them. Use it for events that may be lost in such an accident.
   *
   * @throws as `append`; WAL_ONLY_UNREAD when the database has nobody to read them, looked for before the first use.
   */
  appendWalOnly(tx: Transaction, events: EventOf<Events> | readonly EventOf<Events>[]): Promise<AppendResult>
}

/**
 * Makes an outbox. It connects to nothing.
 *
 * @example
 * const outbox = createOutbox()
 * @example
 * const outbox = createOutbox({ events: { 'order.placed': z.object({ id: z.string() }) } })
 * @example
 * const outbox = createOutbox<{ 'order.placed': Order }>() // types only, nothing checked at run time
 */
export function createOutbox<Catalog extends EventCatalog>(
  options: OutboxOptions<Catalog> & { readonly events: Catalog },
): Outbox<InputsOf<Catalog>>
export function createOutbox<Events extends object = AnyEvents>(options?: Omit<OutboxOptions, 'events'>): Outbox<Events>
export function createOutbox(options: OutboxOptions = {}): unknown {
  const check = new OptionCheck('createOutbox', options, ['clock', 'events', 'maxEventBytes', 'schemas', 'slot'])
  check.integer('maxEventBytes', 1, 100_000_000)
  check.satisfies(
    'events',
    isCatalog,
    'an object of event types, each with a Standard Schema (zod, valibot, arktype, …)',
  )
  check.done()
  const schemas = resolveSchemas(options.schemas)
  const intoTable = new AppendStatement(schemas)
  const intoWal = new WalOnlyStatement(schemas.outbox, options.slot)
  const rowOptions = {
    clock: options.clock,
    events: options.events,
    maxEventBytes: options.maxEventBytes ?? 1_000_000,
  }
  return {
    append: (tx, events) => write(intoTable, tx, events),
    appendWalOnly: (tx, events) => write(intoWal, tx, events),
  } satisfies Outbox

  // Everything up to the statement happens in the caller's turn, unless a schema is asynchronous: an append that somebody
  // forgets to await still stands before the commit that follows it.
  function write(
    statement: EventStatement,
    tx: Transaction,
    events: OutboxEvent | readonly OutboxEvent[],
  ): Promise<AppendResult> {
    try {
      openTransaction(tx)
      const rows = eventRows(isList(events) ? events : [events], rowOptions)
      return rows instanceof Promise ? rows.then((checked) => run(statement, tx, checked)) : run(statement, tx, rows)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  async function run(statement: EventStatement, tx: Transaction, rows: readonly EventRow[]): Promise<AppendResult> {
    await statement.run(() => openTransaction(tx), rows)
    return { ids: rows.map((row) => row.id) }
  }
}

/** How rows are written. */
interface EventStatement {
  run(transaction: () => Sql, rows: readonly EventRow[]): Promise<void>
}

function isList(events: OutboxEvent | readonly OutboxEvent[]): events is readonly OutboxEvent[] {
  return Array.isArray(events)
}

function isCatalog(events: unknown): boolean {
  if (typeof events !== 'object' || events === null) return false
  return Object.values(
    events as Record<string, { readonly '~standard'?: { readonly validate?: unknown } } | undefined>,
  ).every((schema) => typeof schema?.['~standard']?.validate === 'function')
}
