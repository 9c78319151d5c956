import type { Subscription } from '../brokers/broker.ts'
import { withDeadline, type Clock, type Timer } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import type { PartitionState } from './partition-state.ts'

/** How long a broker may take to answer a commit. Later ones cover it. */
const ANSWER_TIMEOUT_MS = 10_000

/** What a {@link CommitSchedule} works with. */
export interface CommitContext {
  readonly clock: Clock
  readonly commitEvery: number
  readonly commitIntervalMs: number
  readonly onCommitted: (messages: number) => void
  readonly onError: (error: unknown) => void
  readonly subscription: () => Subscription
}

/**
 * Commits how far partitions are done to the broker: lazily, by time or by count, one commit at a time, for all
 * partitions that moved. A commit that fails is made up for by the next; at worst the inbox drops what comes again.
 */
export class CommitSchedule {
  readonly #context: CommitContext
  readonly #moved = new Set<PartitionState>()
  #count = 0
  #running: Promise<void> | undefined
  #stopped = false
  #timer: Timer | undefined

  constructor(context: CommitContext) {
    this.#context = context
  }

  /** Messages of the partition are done, and its watermark moved. */
  moved(partition: PartitionState, messages: number): void {
    this.#moved.add(partition)
    this.#count += messages
    if (!this.#stopped && this.#count >= this.#context.commitEvery && this.#running === undefined) void this.flush()
    else this.#arm()
  }

  /** Commits what moved, of these partitions or of all. It never rejects; resolves when the broker has answered. */
  async flush(only?: readonly PartitionState[]): Promise<void> {
    while (this.#running !== undefined) await this.#running
    const partitions = [...(only ?? this.#moved)].filter((partition) => this.#moved.delete(partition))
    if (this.#moved.size === 0) this.#disarm()
    const due = partitions.filter((partition) => partition.phase !== 'closed')
    if (due.length === 0) return
    this.#running = this.#commit(due)
    try {
      await this.#running
    } finally {
      this.#running = undefined
    }
    // As many were done while the commit was under way.
    if (!this.#stopped && this.#count >= this.#context.commitEvery) void this.flush()
  }

  /** Sets no timer from now on; `flush` still works. */
  stop(): void {
    this.#stopped = true
    this.#disarm()
  }

  async #commit(partitions: readonly PartitionState[]): Promise<void> {
    this.#count = 0
    const { clock, onCommitted, onError, subscription } = this.#context
    const marks = partitions.map((partition) => ({
      count: partition.watermark.settled,
      partition,
      position: partition.watermark.position as bigint,
    }))
    try {
      const positions = marks.map(({ partition, position }) => ({ ...partition.id, position }))
      await withDeadline(
        clock,
        subscription().commit(positions),
        ANSWER_TIMEOUT_MS,
        () =>
          new MillraceError('BROKER_UNREACHABLE', `the broker did not answer a commit within ${ANSWER_TIMEOUT_MS} ms`),
      )
    } catch (error) {
      for (const { partition } of marks) if (partition.phase !== 'closed') this.#moved.add(partition)
      onError(error)
      this.#arm()
      return
    }
    let messages = 0
    for (const { count, partition } of marks) {
      messages += count - partition.committedCount
      partition.committedCount = count
    }
    onCommitted(messages)
  }

  #arm(): void {
    if (this.#stopped || this.#timer !== undefined) return
    this.#timer = this.#context.clock.setTimer(() => {
      this.#timer = undefined
      void this.flush()
    }, this.#context.commitIntervalMs)
  }

  #disarm(): void {
    this.#timer?.clear()
    this.#timer = undefined
  }
}
