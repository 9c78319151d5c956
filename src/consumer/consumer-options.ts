import type { Broker } from '../brokers/broker.ts'
import type { Clock } from '../core/clock.ts'
import type { Logger } from '../core/logger.ts'
import type { Signals } from '../core/signals.ts'
import type { PgPool, SchemaNames, Sql } from '../postgres/sql.ts'
import type { HandledMessage } from './handled-message.ts'

/** What the pool gives out: `pg.PoolClient` for a `pg.Pool`. */
export type TransactionOf<Pool> = Pool extends {
  // A pg.Pool's connect has two shapes, and inference over overloads pairs them from the last.
  connect: { (): Promise<infer Client>; (callback: (...args: never[]) => void): void }
}
  ? Client
  : Pool extends { connect(): Promise<infer Client> }
    ? Client
    : Sql

/** What a handler works with besides the message. */
export interface HandlerContext<Tx = Sql> {
  /** Which try this is, from 1. It starts again at 1 when the consumer does. */
  readonly attempt: number
  /** Aborts when the result is not wanted any more: the consumer stops, or the partition has a new owner. */
  readonly signal: AbortSignal
  /**
   * The open transaction of the effect: the pool's client. Use it as it is, as `drizzle(tx)`, or in
   * `outbox.append(tx, …)`. Savepoints are yours; begin, commit, rollback and release are not, and throw. It serves
   * until the handler ends, so await every query.
   */
  readonly tx: Tx
}

/**
 * Applies one message. What it writes through `tx` takes effect exactly once, or not at all when it throws.
 *
 * It may run more than once for a message, with everything before rolled back: when a message of the same transaction
 * failed, on a serialisation failure or a deadlock, on a lost connection, on a redelivery. So do outside `tx` only what
 * may happen twice.
 */
export type Handler<Tx = Sql> = (message: HandledMessage, context: HandlerContext<Tx>) => Promise<void> | void

/** How often a message is tried whose handler throws. The waits are full jitter: uniform from 0 to a doubling cap. */
export interface RetryOptions {
  /**
   * How many times the handler may throw for a message before it becomes a dead letter. More rides out longer troubles;
   * the later messages of the key wait that long. Default: 10.
   */
  readonly attempts?: number
  /** The cap of the longest wait, milliseconds. Default: 30000. */
  readonly maxDelayMs?: number
  /** The cap of the first wait, milliseconds; it doubles with each failure. Default: 100. */
  readonly minDelayMs?: number
}

/** How a consumer is set up. */
export interface ConsumerOptions<Pool extends PgPool = PgPool> {
  /** Where the messages come from. The consumer does not close it. */
  readonly broker: Broker
  /** Where time and randomness come from. Change it in tests. Default: the machine's clock. */
  readonly clock?: Clock
  /**
   * How many messages may be done before positions are committed to the broker, ahead of `commitIntervalMs`. What is
   * not committed at a crash is delivered again and dropped by the inbox. Default: 1000.
   */
  readonly commitEvery?: number
  /** How long a position may wait before it is committed to the broker, milliseconds. Default: 1000. */
  readonly commitIntervalMs?: number
  /**
   * How many effect transactions run at a time, each on a connection of the pool. Raise it when handlers wait for
   * something other than Postgres; give the pool at least as many connections. Default: 4.
   */
  readonly concurrency?: number
  /**
   * The consumer group; also the name under which the inbox remembers. Services that must each see every message use
   * different groups. At most 200 bytes.
   */
  readonly group: string
  /**
   * How many messages one effect transaction takes at most. It takes fewer when fewer are waiting, and after failures.
   * A larger group is faster and holds its row locks longer; 1 gives each message a transaction of its own.
   * Default: 64.
   */
  readonly groupSize?: number
  /** Applies a message. */
  readonly handle: Handler<NoInfer<TransactionOf<Pool>>>
  /** The database that the effects and the inbox are in: a `pg.Pool`. The consumer does not close it. */
  readonly inbox: { readonly postgres: Pool }
  /**
   * How many messages may be in memory, over all partitions; beyond it partitions are paused. It may be exceeded by
   * what the broker hands over at once. Default: 2048.
   */
  readonly maxInFlight?: number
  /** The same in bytes. Default: 67108864 (64 MiB). */
  readonly maxInFlightBytes?: number
  /** Where the consumer says what it does. Ids and sizes only. Default: nowhere. */
  readonly logger?: Logger
  /**
   * Hears of every error that the consumer survives: with the message when its handler threw, without when Postgres or
   * the broker is unwell. What it does not survive rejects `stopped`. Default: the logger only.
   */
  readonly onError?: (error: Error, message?: HandledMessage) => void
  /** What happens when the handler throws. */
  readonly retry?: RetryOptions
  /**
   * How long messages in flight may take when a partition is taken away in good order, milliseconds; then they are
   * rolled back and left to the new owner. Keep it below the session timeout. Default: 5000.
   */
  readonly revokeTimeoutMs?: number
  /** The schemas, when they are not `outbox` and `inbox`. */
  readonly schemas?: Partial<SchemaNames>
  /** How long the broker waits for a member that says nothing, milliseconds. Default: the adapter's (30000). */
  readonly sessionTimeoutMs?: number
  /** Named points that a test can observe or hold. */
  readonly signals?: Signals
  /** Where a group without a position begins. Default: 'earliest'. */
  readonly startFrom?: 'earliest' | 'latest'
  /** What to consume. */
  readonly topics: readonly string[]
}
