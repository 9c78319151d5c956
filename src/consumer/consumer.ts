import { inspect } from 'node:util'
import type { Broker, IncomingMessage, Partition, Subscription } from '../brokers/broker.ts'
import { withDeadline, type Clock } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import { STOP_TIMEOUT_MS, type Lifecycle, type StopOptions } from '../core/lifecycle.ts'
import type { Logger } from '../core/logger.ts'
import type { Signals } from '../core/signals.ts'
import { IntakeLimit } from '../flow/index.ts'
import type { Inbox } from '../inbox/index.ts'
import type { PgClient, PgPool } from '../postgres/sql.ts'
import { outliveLostClients } from '../postgres/take-client.ts'
import { CommitSchedule } from './commit-schedule.ts'
import type { Handler } from './consumer-options.ts'
import { Dispatcher } from './dispatcher.ts'
import { EffectTransaction } from './effect-transaction.ts'
import { MessageView, type HandledMessage } from './handled-message.ts'
import { Delivery, PartitionState } from './partition-state.ts'

/**
 * How many messages of one partition may lie above the first that is not done before the partition is paused. They cost
 * nine bytes each and are delivered again after a crash.
 */
const MAX_UNCOMMITTED = 100_000

/** How long the last commit and leaving the group may take each, beyond the drain. */
const LEAVE_TIMEOUT_MS = 5000

/** How long aborted handlers get to notice before the consumer stops without them. */
const ABORT_GRACE_MS = 500

/** What a consumer has done and holds, since it was made. */
export interface ConsumerStats {
  /** Partitions that are ours now. */
  readonly assignedPartitions: number
  /** Messages that the broker knows to be done. */
  readonly committed: number
  /** Messages that became dead letters. */
  readonly deadLettered: number
  /** Messages that the inbox knew, and that were dropped. */
  readonly duplicates: number
  /** Messages whose effect was committed. */
  readonly handled: number
  /** Messages in memory: waiting and running. */
  readonly inFlight: number
  readonly inFlightBytes: number
  readonly pausedPartitions: number
  /** Messages that the broker handed over. */
  readonly received: number
  /** Times that a message was put back to run again, after a failure or a conflict of its own. */
  readonly retried: number
}

/** A running consumer. */
export interface Consumer extends Lifecycle<ConsumerStats> {}

/** What a `pg.Pool` has beyond the port. */
interface PoolEvents {
  on?(event: 'error', listener: (error: Error) => void): unknown
  removeListener?(event: 'error', listener: (error: Error) => void): unknown
}

/** The options with all defaults filled in. */
export interface ResolvedConsumerOptions {
  readonly broker: Broker
  readonly clock: Clock
  readonly commitEvery: number
  readonly commitIntervalMs: number
  readonly concurrency: number
  readonly group: string
  readonly groupSize: number
  readonly handle: Handler<PgClient>
  readonly inbox: Inbox
  readonly logger: Logger
  readonly maxInFlight: number
  readonly maxInFlightBytes: number
  readonly onError: ((error: Error, message?: HandledMessage) => void) | undefined
  readonly pool: PgPool
  readonly retry: { readonly attempts: number; readonly maxDelayMs: number; readonly minDelayMs: number }
  readonly revokeTimeoutMs: number
  readonly sessionTimeoutMs: number | undefined
  readonly signals: Signals
  readonly startFrom: 'earliest' | 'latest'
  readonly topics: readonly string[]
}

/**
 * A member of a consumer group: intake, back-pressure, assignment and life cycle. The rest is its parts' doing.
 *
 * What holds across a change of owner: a position is committed only when every message of the assignment up to it is
 * done, done means that its transaction committed, and nothing is committed for a partition after it was lost. An
 * effect that still commits on the old owner's side is in the inbox, so the new owner drops its copy.
 */
export class GroupConsumer implements Consumer {
  readonly stopped: Promise<void>
  readonly #commits: CommitSchedule
  #committed = 0
  readonly #dispatcher: Dispatcher
  #failure: Error | undefined
  readonly #limit: IntakeLimit
  readonly #options: ResolvedConsumerOptions
  readonly #paused = new Set<PartitionState>()
  readonly #partitions = new Map<string, PartitionState>()
  #received = 0
  #starting: Promise<void> | undefined
  /** An idle connection that breaks is told to the pool, and so to us. */
  readonly #onPoolError = (error: Error): void => this.#report(error)
  readonly #stoppedResolvers = Promise.withResolvers<void>()
  #stopping: Promise<void> | undefined
  #subscription: Subscription | undefined

  constructor(options: ResolvedConsumerOptions) {
    this.#options = options
    const { broker, clock, group, handle, inbox, logger, pool, signals } = options
    this.stopped = this.#stoppedResolvers.promise
    // Whoever awaits `stopped` hears of it; that nobody does is no reason to end the process.
    this.stopped.catch(() => {})
    this.#limit = new IntakeLimit({ maxBytes: options.maxInFlightBytes, maxCount: options.maxInFlight })
    this.#dispatcher = new Dispatcher({
      clock,
      concurrency: options.concurrency,
      effects: new EffectTransaction({ clock, group, handle, inbox, pool, signals, system: broker.system }),
      groupSize: options.groupSize,
      logger,
      onDone: (deliveries) => this.#done(deliveries),
      onError: (error, delivery) => this.#report(error, delivery),
      onFatal: (error) => this.#fail(error),
      retry: options.retry,
      signals,
    })
    this.#commits = new CommitSchedule({
      clock,
      commitEvery: options.commitEvery,
      commitIntervalMs: options.commitIntervalMs,
      onCommitted: (messages) => {
        this.#committed += messages
        signals.emit('consumer.broker-committed', messages)
      },
      onError: (error) => this.#report(error),
      subscription: () => this.#subscription as Subscription,
    })
  }

  start(): Promise<void> {
    if (this.#stopping !== undefined) {
      return Promise.reject(stoppedAlready())
    }
    return (this.#starting ??= this.#start())
  }

  stop(options: StopOptions = {}): Promise<void> {
    return (this.#stopping ??= this.#stop(options.timeoutMs ?? STOP_TIMEOUT_MS))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  stats(): ConsumerStats {
    const { deadLettered, duplicates, handled, retried } = this.#dispatcher
    return {
      assignedPartitions: this.#partitions.size,
      committed: this.#committed,
      deadLettered,
      duplicates,
      handled,
      inFlight: this.#limit.count,
      inFlightBytes: this.#limit.bytes,
      pausedPartitions: this.#paused.size,
      received: this.#received,
      retried,
    }
  }

  async #start(): Promise<void> {
    const { broker, group, inbox, pool, sessionTimeoutMs, startFrom, topics } = this.#options
    try {
      outliveLostClients(pool)
      ;(pool as PoolEvents).on?.('error', this.#onPoolError)
      await inbox.probe(pool)
      if (this.#stopping !== undefined) throw stoppedAlready()
      const subscription = broker.subscription({
        group,
        onAssigned: (partitions) => this.#assigned(partitions),
        onError: (error) => this.#report(error),
        onLost: (partitions) => this.#lost(partitions),
        onMessages: (partition, messages) => this.#take(partition, messages),
        onRevoking: (partitions) => this.#revoking(partitions),
        startFrom,
        topics,
        ...(sessionTimeoutMs === undefined ? {} : { sessionTimeoutMs }),
      })
      this.#subscription = subscription
      subscription.stopped.then(
        () => this.#ended(),
        (error: unknown) => this.#fail(error),
      )
      await subscription.start()
    } catch (error) {
      this.#fail(error)
      throw error
    }
  }

  #assigned(partitions: readonly Partition[]): void {
    if (this.#stopping !== undefined) return
    for (const id of partitions) {
      const name = nameOf(id)
      const previous = this.#partitions.get(name)
      if (previous !== undefined) this.#close(previous)
      this.#partitions.set(name, new PartitionState(id, this.#dispatcher.source(), this.#limit.open()))
    }
    this.#options.signals.emit('consumer.assigned', partitions)
  }

  #take(id: Partition, messages: readonly IncomingMessage[]): void {
    if (this.#stopping !== undefined) return
    const partition = this.#partitions.get(nameOf(id))
    // What is handed over while a partition is taken away is left to its next owner.
    if (partition?.phase !== 'open') return
    try {
      for (const message of messages) {
        const delivery = new Delivery(message, partition, partition.watermark.add(message.position))
        this.#limit.add(partition.account, message.sizeBytes)
        this.#dispatcher.offer(delivery)
      }
    } catch (error) {
      this.#fail(error)
      return
    }
    this.#received += messages.length
    if (this.#full(partition) && !this.#paused.has(partition)) {
      this.#paused.add(partition)
      this.#subscription?.pause([partition.id])
      this.#options.signals.emit('consumer.paused', partition.id)
    }
    this.#dispatcher.pump()
  }

  #done(deliveries: readonly Delivery[]): void {
    for (const { message, partition, slot } of deliveries) {
      this.#limit.remove(partition.account, message.sizeBytes)
      if (partition.phase === 'closed') continue
      const before = partition.watermark.settled
      if (partition.watermark.done(slot)) this.#commits.moved(partition, partition.watermark.settled - before)
    }
    this.#relieve()
    this.#options.signals.emit('consumer.done', deliveries.length)
  }

  #full({ account, watermark }: PartitionState): boolean {
    return this.#limit.full(account) || watermark.size >= MAX_UNCOMMITTED
  }

  /** Resumes the paused partitions that have room again. */
  #relieve(): void {
    if (this.#paused.size === 0 || this.#stopping !== undefined) return
    // Resuming may hand messages over at once, so decide first.
    const roomy = [...this.#paused].filter(
      ({ account, phase, watermark }) =>
        phase === 'open' && watermark.size <= MAX_UNCOMMITTED / 2 && this.#limit.roomy(account),
    )
    if (roomy.length === 0) return
    for (const partition of roomy) this.#paused.delete(partition)
    const ids = roomy.map((partition) => partition.id)
    this.#subscription?.resume(ids)
    this.#options.signals.emit('consumer.resumed', ids)
  }

  async #revoking(ids: readonly Partition[]): Promise<void> {
    const partitions = this.#ours(ids)
    for (const partition of partitions) {
      partition.phase = 'draining'
      this.#dispatcher.drop(partition)
      this.#limit.close(partition.account)
    }
    // When the consumer stops it has drained and committed already.
    if (this.#stopping === undefined) {
      const { clock, revokeTimeoutMs } = this.#options
      const idle = Promise.all(partitions.map((partition) => partition.idle()))
      if (!(await settledWithin(clock, idle, revokeTimeoutMs))) {
        this.#dispatcher.abort(partitions)
      }
      await settledWithin(clock, this.#commits.flush(partitions), LEAVE_TIMEOUT_MS)
    }
    for (const partition of partitions) this.#close(partition)
    this.#options.signals.emit('consumer.revoked', ids)
    this.#relieve()
  }

  #lost(ids: readonly Partition[]): void {
    const partitions = this.#ours(ids)
    for (const partition of partitions) this.#close(partition)
    this.#dispatcher.abort(partitions)
    this.#options.signals.emit('consumer.lost', ids)
    this.#relieve()
  }

  #ours(ids: readonly Partition[]): PartitionState[] {
    return ids.map((id) => this.#partitions.get(nameOf(id))).filter((partition) => partition !== undefined)
  }

  #close(partition: PartitionState): void {
    partition.phase = 'closed'
    this.#dispatcher.drop(partition)
    this.#limit.close(partition.account)
    this.#paused.delete(partition)
    const name = nameOf(partition.id)
    if (this.#partitions.get(name) === partition) this.#partitions.delete(name)
  }

  #ended(): void {
    if (this.#stopping !== undefined) return
    this.#fail(new MillraceError('CONNECTION_LOST', 'the subscription ended by itself; start a new consumer'))
  }

  /** The consumer cannot go on: it stops at once and `stopped` rejects. */
  #fail(cause: unknown): void {
    const error = asError(cause)
    if (this.#failure !== undefined || this.#stopping !== undefined) return
    this.#failure = error
    this.#options.logger.error({ err: error }, 'the consumer cannot go on')
    void this.stop({ timeoutMs: 0 })
  }

  async #stop(timeoutMs: number): Promise<void> {
    const { clock } = this.#options
    this.#dispatcher.halt()
    this.#commits.stop()
    // Let `#stopping` be set before anything can call back.
    await Promise.resolve()
    const subscription = this.#subscription
    if (subscription !== undefined) {
      const open = [...this.#partitions.values()].map((partition) => partition.id)
      attempt(() => subscription.pause(open))
      if (!(await settledWithin(clock, this.#dispatcher.idle(), timeoutMs))) {
        const { inFlight } = this.stats()
        this.#dispatcher.abort()
        await settledWithin(clock, this.#dispatcher.idle(), ABORT_GRACE_MS)
        this.#report(
          new MillraceError(
            'SHUTDOWN_TIMEOUT',
            `handlers were still running after ${timeoutMs} ms and were rolled back; their messages will be delivered ` +
              'again. Watch the signal in long handlers, or stop with a longer timeoutMs',
            { details: { inFlight } },
          ),
        )
      }
      if (this.#failure === undefined) await settledWithin(clock, this.#commits.flush(), LEAVE_TIMEOUT_MS)
      for (const partition of this.#partitions.values()) this.#close(partition)
      if (this.#starting !== undefined) await settledWithin(clock, this.#starting, LEAVE_TIMEOUT_MS)
      await settledWithin(clock, subscription.stop(), LEAVE_TIMEOUT_MS)
    }
    ;(this.#options.pool as PoolEvents).removeListener?.('error', this.#onPoolError)
    if (this.#failure === undefined) this.#stoppedResolvers.resolve()
    else this.#stoppedResolvers.reject(this.#failure)
  }

  #report(cause: unknown, delivery?: Delivery): void {
    const error = asError(cause)
    const { logger, onError } = this.#options
    const message = delivery?.message
    logger.warn({ err: error, id: message?.id, topic: message?.topic }, message ? 'a handler failed' : error.message)
    if (onError === undefined) return
    attempt(() => (message === undefined ? onError(error) : onError(error, new MessageView(message))))
  }
}

function stoppedAlready(): MillraceError {
  return new MillraceError('LIFECYCLE_STOPPED', 'this consumer was stopped; make another with createConsumer')
}

function nameOf({ partition, topic }: Partition): string {
  return `${partition} ${topic}`
}

function asError(cause: unknown): Error {
  return cause instanceof Error ? cause : new Error(inspect(cause), { cause })
}

/** Calls what must not break us. */
function attempt(call: () => void): void {
  try {
    call()
  } catch {
    // It is somebody else's fault and there is nobody left to tell.
  }
}

/** True when the promise settled, either way, in time. */
async function settledWithin(clock: Clock, promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  const settled = promise.then(
    () => true,
    () => true,
  )
  try {
    return await withDeadline(clock, settled, timeoutMs, () => new Error('too late'))
  } catch {
    return false
  }
}
