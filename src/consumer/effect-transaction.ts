import { type Clock, withDeadline } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import type { Signals } from '../core/signals.ts'
import { inboxKey, type Inbox, type InboxKey } from '../inbox/index.ts'
import type { PgClient, PgPool } from '../postgres/sql.ts'
import { takeClient } from '../postgres/take-client.ts'
import { withProcessSpan } from '../tracing/index.ts'
import type { Handler } from './consumer-options.ts'
import { MessageView } from './handled-message.ts'
import type { Delivery } from './partition-state.ts'
import { isConflict, isOverstay } from './sql-state.ts'
import { TransactionGuard } from './transaction-guard.ts'

/**
 * How a transaction ended.
 *
 * - `committed`: the effects of all but the duplicates are durable.
 * - `failed`: a handler threw, or what it wrote could not be committed. Rolled back.
 * - `conflict`: a serialisation failure or a deadlock. Rolled back; nobody's fault.
 * - `unwell`: Postgres could not be reached, or not be used, or went away. Rolled back, or, when it went away during
 *   COMMIT, perhaps not: the inbox knows, and is asked by trying again.
 * - `abandoned`: the signal aborted before COMMIT was sent. Rolled back. From then on the outcome is the server's, and is
 *   waited for: closing the connection would not call a COMMIT back, only hide what became of it.
 */
export type EffectResult =
  | { readonly kind: 'committed'; readonly duplicates: number }
  | { readonly kind: 'failed' | 'conflict' | 'unwell'; readonly error: unknown }
  | { readonly kind: 'abandoned' }

/** What an {@link EffectTransaction} works with. */
export interface EffectContext {
  readonly clock: Clock
  readonly group: string
  readonly handle: Handler<PgClient>
  readonly inbox: Inbox
  readonly pool: PgPool
  readonly signals: Signals
  /** The broker's name in traces. */
  readonly system: string
}

/** How long Postgres may take to open a transaction, to commit or to roll back before the connection counts as lost. */
const ANSWER_TIMEOUT_MS = 15_000

/** How long a claim may take: it waits for whoever is applying the same message at this moment. */
const CLAIM_TIMEOUT_MS = 300_000

type Stage = 'opening' | 'handling' | 'committing'

/** Runs messages in transactions of their own: one for a group, one for a dead letter. It never rejects. */
export class EffectTransaction {
  readonly #context: EffectContext

  constructor(context: EffectContext) {
    this.#context = context
  }

  /** Claims the messages in the inbox, runs the handler for those that are new, one after the other, and commits. */
  apply(deliveries: readonly Delivery[], signal: AbortSignal): Promise<EffectResult> {
    return this.#run(signal, async (client, connection, enter) => {
      const claiming = this.#context.inbox.claim(client, deliveries.map(keyOf))
      const fresh = await connection.answers(claiming, CLAIM_TIMEOUT_MS)
      enter('handling')
      let duplicates = 0
      for (const delivery of deliveries) {
        // A message that stands twice in the group is new the first time only.
        if (!fresh.delete(keyOf(delivery).id)) duplicates++
        else if (signal.aborted) return 0
        else await this.#handle(delivery, client, signal)
      }
      return duplicates
    })
  }

  /** Sets a message aside for good; it is a duplicate if it was handled or set aside before. */
  deadLetter(delivery: Delivery, signal: AbortSignal): Promise<EffectResult> {
    return this.#run(signal, async (client, connection) => {
      const storing = this.#context.inbox.deadLetter(client, {
        attempts: delivery.failures,
        error: delivery.lastError,
        firstFailedAtMs: delivery.firstFailedAtMs,
        key: keyOf(delivery),
        message: delivery.message,
      })
      return (await connection.answers(storing, CLAIM_TIMEOUT_MS)) ? 0 : 1
    })
  }

  async #handle(delivery: Delivery, client: PgClient, signal: AbortSignal): Promise<void> {
    const { group, handle, system } = this.#context
    const { message } = delivery
    const guard = new TransactionGuard(client)
    const context = { attempt: delivery.failures + 1, signal, tx: guard.client }
    try {
      await withProcessSpan(message, { group, partition: message.partition, position: message.position, system }, () =>
        handle(new MessageView(message), context),
      )
    } finally {
      guard.close()
    }
  }

  /** A client that comes too late goes back at once. */
  async #connect(): Promise<PgClient> {
    const { clock, pool } = this.#context
    const connecting = takeClient(pool)
    try {
      return await withDeadline(clock, connecting, ANSWER_TIMEOUT_MS, silent)
    } catch (error) {
      connecting.then((late) => late.release()).catch(() => {})
      throw error
    }
  }

  async #run(
    signal: AbortSignal,
    body: (client: PgClient, connection: Connection, enter: (stage: Stage) => void) => Promise<number>,
  ): Promise<EffectResult> {
    let client: PgClient
    try {
      client = await this.#connect()
    } catch (error) {
      return { kind: 'unwell', error }
    }
    if (signal.aborted) {
      client.release()
      return { kind: 'abandoned' }
    }
    const connection = new Connection(client, signal, this.#context.clock)
    let stage: Stage = 'opening'
    try {
      await connection.answers(client.query(this.#context.inbox.beginText))
      const duplicates = await body(client, connection, (next) => (stage = next))
      await this.#context.signals.reach('consumer.commit')
      if (signal.aborted) return { kind: 'abandoned' }
      stage = 'committing'
      connection.commitSent()
      const answer = (await connection.answers(client.query('commit'))) as { readonly command?: unknown }
      // To COMMIT in a failed transaction the server answers ROLLBACK, and no error.
      if (answer.command === 'ROLLBACK') throw rolledBack()
      await this.#context.signals.reach('consumer.committed')
      return { kind: 'committed', duplicates }
    } catch (error) {
      await connection.rollBack()
      if (signal.aborted && stage !== 'committing') return { kind: 'abandoned' }
      return classify(error, connection.lost, stage)
    } finally {
      connection.giveBack()
    }
  }
}

function silent(): MillraceError {
  return new MillraceError('CONNECTION_LOST', 'Postgres does not answer')
}

function classify(error: unknown, lost: Error | undefined, stage: Stage): EffectResult {
  if (isConflict(error)) return { kind: 'conflict', error }
  // Before the first handler runs nothing is a message's fault.
  if (stage === 'opening') return { kind: 'unwell', error }
  if (lost === undefined) return { kind: 'failed', error }
  return stage === 'handling' && isOverstay(lost)
    ? { kind: 'failed', error: lost }
    : {
        kind: 'unwell',
        error: new MillraceError('CONNECTION_LOST', 'the connection to Postgres was lost', { cause: lost }),
      }
}

function keyOf(delivery: Delivery): InboxKey {
  return (delivery.inboxKey ??= inboxKey(delivery.message.id))
}

function rolledBack(): MillraceError {
  return new MillraceError(
    'EFFECT_ROLLED_BACK',
    'a statement of the handler failed and its error was swallowed, so Postgres rolled the transaction back; let the ' +
      'error out of the handler, or put the statement between SAVEPOINT and ROLLBACK TO SAVEPOINT',
  )
}

/** A client out of the pool for one transaction: notices when it is lost; closes it when the signal aborts before COMMIT. */
class Connection {
  /** What broke the connection. */
  lost: Error | undefined
  readonly #client: PgClient
  readonly #clock: Clock
  readonly #signal: AbortSignal
  #held = true
  readonly #onLost = (error?: Error): void => {
    this.lost ??= error ?? new Error('Postgres closed the connection')
  }
  /** Closing it makes the server roll back whatever the handler is doing, and nothing of it can commit any more. */
  readonly #onAbort = (): void => this.#release(true)

  constructor(client: PgClient, signal: AbortSignal, clock: Clock) {
    this.#client = client
    this.#clock = clock
    this.#signal = signal
    client.on('error', this.#onLost)
    client.on('end', this.#onLost)
    signal.addEventListener('abort', this.#onAbort, { once: true })
  }

  /** The answer of Postgres; without one in time the connection counts as lost, and is closed. */
  answers<T>(answer: Promise<T>, timeoutMs: number = ANSWER_TIMEOUT_MS): Promise<T> {
    return withDeadline(this.#clock, answer, timeoutMs, () => (this.lost ??= silent()))
  }

  /** An abort comes too late from now on. */
  commitSent(): void {
    this.#signal.removeEventListener('abort', this.#onAbort)
  }

  async rollBack(): Promise<void> {
    if (!this.#held || this.lost !== undefined) return
    try {
      await this.answers(this.#client.query('rollback'))
    } catch (error) {
      this.lost ??= error instanceof Error ? error : new Error(String(error))
    }
  }

  giveBack(): void {
    this.#signal.removeEventListener('abort', this.#onAbort)
    this.#client.removeListener('end', this.#onLost)
    this.#release(this.lost !== undefined)
    this.#client.removeListener('error', this.#onLost)
  }

  #release(destroy: boolean): void {
    if (!this.#held) return
    this.#held = false
    this.#client.release(destroy)
  }
}
