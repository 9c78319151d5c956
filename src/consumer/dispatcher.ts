import PQueue from 'p-queue'
import type { Clock, Timer } from '../core/clock.ts'
import type { Logger } from '../core/logger.ts'
import type { Signals } from '../core/signals.ts'
import { backoffMs, KeyLanes, type Lane, type LaneSource } from '../flow/index.ts'
import type { EffectResult, EffectTransaction } from './effect-transaction.ts'
import type { Delivery, PartitionState } from './partition-state.ts'
import { Group } from './group.ts'

/** The waits between tries of a transaction that met a conflict: short, since the other one is about to end. */
const CONFLICT_BACKOFF = { maxDelayMs: 1000, minDelayMs: 10 }

/** The waits while Postgres cannot be used. */
const OUTAGE_BACKOFF = { maxDelayMs: 5000, minDelayMs: 100 }

/** What a {@link Dispatcher} works with. */
export interface DispatchContext {
  readonly clock: Clock
  readonly concurrency: number
  readonly effects: EffectTransaction
  readonly groupSize: number
  readonly logger: Logger
  readonly retry: { readonly attempts: number; readonly maxDelayMs: number; readonly minDelayMs: number }
  readonly signals: Signals
  /** These are done, in effect or as dead letters. */
  readonly onDone: (deliveries: readonly Delivery[]) => void
  readonly onError: (error: unknown, delivery?: Delivery) => void
  /** A fault of our own: nothing can go on. */
  readonly onFatal: (error: unknown) => void
}

/**
 * Hands ready messages to a few workers, in groups, and decides what becomes of a group that did not commit.
 *
 * - A handler threw, or a conflict: the group is taken apart. Each of its messages runs again in a transaction of its
 *   own, in lane order, so a bad one shows itself and the others proceed.
 * - A message that throws alone waits in its lane with backoff, holding its lane but no worker; after the last attempt
 *   it becomes a dead letter and its lane moves on.
 * - A conflict alone waits shortly and never counts. A lost connection never counts either: everything goes back to its
 *   lane, and all workers wait until Postgres is likely to be back.
 *
 * The group's size follows the load: what is ready is shared among the free workers, so a single message runs at once
 * by itself. It also follows the failures: half after each group that failed, one more after each that did not.
 */
export class Dispatcher {
  deadLettered = 0
  duplicates = 0
  handled = 0
  retried = 0
  readonly #context: DispatchContext
  readonly #groups = new Set<Group>()
  #groupLimit: number
  #halted = false
  readonly #lanes = new KeyLanes<Delivery>()
  #outages = 0
  readonly #queue: PQueue
  #retryDueMs = Infinity
  #retryTimer: Timer | undefined
  #suspension: Timer | undefined

  constructor(context: DispatchContext) {
    this.#context = context
    this.#groupLimit = context.groupSize
    this.#queue = new PQueue({ concurrency: context.concurrency })
    this.#queue.addEventListener('next', () => this.pump())
  }

  /** A place for the lanes of a partition. */
  source(): LaneSource<Delivery> {
    return this.#lanes.source()
  }

  /** Takes in a message; `pump` hands it out. */
  offer(delivery: Delivery): void {
    this.#lanes.offer(delivery.partition.source, delivery.message.key, delivery)
  }

  /** Gives ready messages to free workers. */
  pump(): void {
    const { concurrency } = this.#context
    while (!this.#halted && this.#suspension === undefined && this.#lanes.ready > 0) {
      const free = concurrency - this.#queue.pending - this.#queue.size
      if (free <= 0) return
      const share = Math.ceil(this.#lanes.ready / free)
      const group = new Group(this.#lanes.take(Math.min(share, this.#groupLimit)))
      this.#groups.add(group)
      void this.#queue.add(() => this.#run(group))
    }
  }

  /** Forgets what is queued of a partition; what runs goes on. */
  drop(partition: PartitionState): void {
    this.#lanes.drop(partition.source)
  }

  /** Rolls back the groups that hold messages of these partitions, or all. */
  abort(partitions?: readonly PartitionState[]): void {
    for (const group of this.#groups) {
      if (partitions === undefined || partitions.some((partition) => group.partitions.has(partition))) group.abort()
    }
  }

  /** Hands nothing out any more. */
  halt(): void {
    this.#halted = true
    this.#retryTimer?.clear()
    this.#suspension?.clear()
  }

  /** Resolves when no group runs. */
  async idle(): Promise<void> {
    await this.#queue.onIdle()
  }

  async #run(group: Group): Promise<void> {
    try {
      const only = group.deliveries.length === 1 ? group.deliveries[0] : undefined
      // The attempts are used up, and only the dead letter could not be written yet.
      if (only !== undefined && only.failures >= this.#context.retry.attempts) await this.#bury(group, only)
      else await this.#settle(group, only, await this.#context.effects.apply(group.deliveries, group.signal))
    } catch (error) {
      this.#context.onFatal(error)
    } finally {
      this.#groups.delete(group)
      group.end()
      this.#armRetry()
    }
  }

  async #settle(group: Group, only: Delivery | undefined, result: EffectResult): Promise<void> {
    switch (result.kind) {
      case 'committed':
        this.handled += group.deliveries.length - result.duplicates
        this.duplicates += result.duplicates
        if (!group.alone) this.#groupLimit = Math.min(this.#context.groupSize, this.#groupLimit + 1)
        return this.#finish(group)
      case 'failed':
        if (only === undefined) return this.#takeApart(group, result.error)
        return await this.#failed(group, only, result.error)
      case 'conflict':
        if (only === undefined) return this.#takeApart(group, result.error)
        return this.#conflicted(group, only)
      case 'unwell':
        this.#suspend(result.error)
        return this.#giveBack(group)
      case 'abandoned':
        return this.#giveBack(group)
    }
  }

  #finish(group: Group): void {
    this.#outages = 0
    this.#context.onDone(group.deliveries)
    for (const lane of group.lanes) this.#lanes.settle(lane, lane.taken)
  }

  #giveBack(group: Group): void {
    for (const lane of group.lanes) this.#lanes.settle(lane, 0)
  }

  #takeApart(group: Group, error: unknown): void {
    this.#groupLimit = Math.max(1, this.#groupLimit >> 1)
    const { logger, signals } = this.#context
    logger.debug({ err: error, messages: group.deliveries.length }, 'a group failed; its messages run singly')
    signals.emit('consumer.taken-apart', group.deliveries.length)
    for (const lane of group.lanes) this.#lanes.settle(lane, 0, Math.max(lane.alone, lane.taken))
  }

  async #failed(group: Group, delivery: Delivery, error: unknown): Promise<void> {
    const { clock, onError, retry, signals } = this.#context
    delivery.failures++
    delivery.conflicts = 0
    delivery.lastError = error
    if (delivery.failures === 1) delivery.firstFailedAtMs = clock.now()
    signals.emit('consumer.failed', { attempt: delivery.failures, id: delivery.message.id })
    onError(error, delivery)
    if (delivery.failures >= retry.attempts) return await this.#bury(group, delivery)
    this.#hold(group, backoffMs(delivery.failures, retry, clock))
  }

  #conflicted(group: Group, delivery: Delivery): void {
    delivery.conflicts++
    this.#context.signals.emit('consumer.conflict', delivery.message.id)
    this.#hold(group, backoffMs(delivery.conflicts, CONFLICT_BACKOFF, this.#context.clock))
  }

  /** The only message of the group waits in its lane, and runs alone when it is due. */
  #hold(group: Group, delayMs: number): void {
    const lane = group.lanes[0] as Lane<Delivery>
    this.retried++
    this.#lanes.hold(lane, 0, this.#context.clock.monotonic() + delayMs, Math.max(1, lane.alone))
  }

  async #bury(group: Group, delivery: Delivery): Promise<void> {
    const result = await this.#context.effects.deadLetter(delivery, group.signal)
    if (result.kind !== 'committed') return await this.#settle(group, undefined, result)
    if (result.duplicates > 0) this.duplicates++
    else this.deadLettered++
    const { id, topic } = delivery.message
    this.#context.logger.error(
      { attempts: delivery.failures, err: delivery.lastError, id, topic },
      'a message became a dead letter',
    )
    this.#finish(group)
    this.#context.signals.emit('consumer.dead', id)
  }

  #suspend(error: unknown): void {
    if (this.#suspension !== undefined || this.#halted) return
    const { clock, logger, onError, signals } = this.#context
    const delayMs = backoffMs(++this.#outages, OUTAGE_BACKOFF, clock)
    this.#suspension = clock.setTimer(() => {
      this.#suspension = undefined
      this.pump()
    }, delayMs)
    logger.warn({ delayMs, err: error, outages: this.#outages }, 'Postgres cannot be used; all messages wait')
    signals.emit('consumer.suspended', error)
    onError(error)
  }

  /** One timer for all lanes that wait. */
  #armRetry(): void {
    const dueMs = this.#lanes.nextDueMs
    if (this.#halted || dueMs === undefined || (this.#retryTimer !== undefined && this.#retryDueMs <= dueMs)) return
    const { clock } = this.#context
    this.#retryTimer?.clear()
    this.#retryDueMs = dueMs
    this.#retryTimer = clock.setTimer(
      () => {
        this.#retryTimer = undefined
        this.#lanes.wake(clock.monotonic())
        this.#armRetry()
        this.pump()
      },
      Math.max(0, dueMs - clock.monotonic()),
    )
  }
}
