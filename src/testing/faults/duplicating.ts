import type { Broker, IncomingMessage, Partition, Subscription, SubscriptionOptions } from '../../brokers/broker.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import { systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { OptionCheck } from '../../core/options.ts'
import { DuplicatingPartition } from './duplicating-partition.ts'

/** How {@link duplicating} behaves. */
export interface DuplicatingOptions {
  /** How many messages of its partition come between the two deliveries, at least, while they flow. Default: 10. */
  readonly afterMessages?: number
  /** After how long without a message the second delivery comes all the same, milliseconds. Default: 50. */
  readonly afterMs?: number
  /** Time. Default: the machine's. */
  readonly clock?: Clock
  /** One message in this many is delivered twice. Default: 50. */
  readonly every?: number
}

/** A broker whose subscriptions deliver some messages twice. */
export interface DuplicatingBroker extends Broker {
  /** How many second deliveries were handed over so far. */
  readonly duplicates: number
}

/**
 * Wraps a broker so that its subscriptions deliver one message in `every` twice, the second time later, behind other
 * messages: what a consumer must survive on any broker, made frequent. Works over every adapter: positions are the
 * wrapper's own and are mapped back on commit, so the broker underneath sees ordinary commits. Only what was handed
 * over the first time counts for them; a second delivery may be lost with its partition, as it may on a real broker.
 */
export function duplicating(broker: Broker, options: DuplicatingOptions = {}): DuplicatingBroker {
  const check = new OptionCheck('duplicating', options, ['afterMessages', 'afterMs', 'clock', 'every'])
  check.integer('afterMessages', 1, 1_000_000)
  check.integer('afterMs', 1, 3_600_000)
  check.integer('every', 1, Number.MAX_SAFE_INTEGER)
  check.done()
  return new Duplicating(broker, options)
}

/** Counts of one wrapper, over all its subscriptions. */
interface Tally {
  duplicates: number
  messages: number
}

class Duplicating implements DuplicatingBroker {
  readonly system: string
  readonly capabilities: Broker['capabilities']
  readonly admin: Broker['admin']
  readonly #broker: Broker
  readonly #options: DuplicatingOptions
  readonly #tally: Tally = { duplicates: 0, messages: 0 }

  constructor(broker: Broker, options: DuplicatingOptions) {
    this.#broker = broker
    this.#options = options
    this.system = broker.system
    this.capabilities = broker.capabilities
    this.admin = broker.admin
  }

  get duplicates(): number {
    return this.#tally.duplicates
  }

  publisher(...options: Parameters<Broker['publisher']>): ReturnType<Broker['publisher']> {
    return this.#broker.publisher(...options)
  }

  subscription(options: SubscriptionOptions): Subscription {
    return new DuplicatingSubscription(this.#broker, options, this.#options, this.#tally)
  }

  close(): Promise<void> {
    return this.#broker.close()
  }
}

class DuplicatingSubscription implements Subscription {
  readonly #inner: Subscription
  readonly #options: SubscriptionOptions
  readonly #clock: Clock
  readonly #every: number
  readonly #afterMessages: number
  readonly #afterMs: number
  readonly #tally: Tally
  readonly #partitions = new Map<string, { readonly partition: Partition; readonly state: DuplicatingPartition }>()
  /** Rises over all assignments, so that a late commit of an earlier one stands for nothing. */
  #lastPosition = 0n
  #timer: Timer | undefined

  constructor(broker: Broker, options: SubscriptionOptions, how: DuplicatingOptions, tally: Tally) {
    this.#options = options
    this.#clock = how.clock ?? systemClock
    this.#every = how.every ?? 50
    this.#afterMessages = how.afterMessages ?? 10
    this.#afterMs = how.afterMs ?? 50
    this.#tally = tally
    this.#inner = broker.subscription({
      ...options,
      onMessages: (partition, messages) => this.#show(partition, messages),
      onAssigned: (partitions) => {
        for (const partition of partitions) {
          const state = new DuplicatingPartition(() => ++this.#lastPosition, this.#afterMessages)
          this.#partitions.set(nameOf(partition), { partition, state })
        }
        options.onAssigned(partitions)
      },
      onRevoking: async (partitions) => {
        // Nothing comes again from here on, but commits still go through.
        for (const partition of partitions) this.#partitions.get(nameOf(partition))?.state.flush()
        try {
          await options.onRevoking(partitions)
        } finally {
          this.#forget(partitions)
        }
      },
      onLost: (partitions) => {
        this.#forget(partitions)
        options.onLost(partitions)
      },
      onError: (error) => options.onError(error),
    })
  }

  get stopped(): Promise<void> {
    return this.#inner.stopped
  }

  start(): Promise<void> {
    return this.#inner.start()
  }

  pause(partitions: readonly Partition[]): void {
    this.#setPaused(partitions, true)
    this.#inner.pause(partitions)
  }

  resume(partitions: readonly Partition[]): void {
    this.#setPaused(partitions, false)
    this.#inner.resume(partitions)
    this.#flushLater()
  }

  async commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    const commits = positions.map(({ topic, partition, position }) => {
      const state = this.#partitions.get(nameOf({ topic, partition }))?.state
      if (state === undefined) {
        const text = `partition ${partition} of ${topic} is not owned by this member: commit nothing of it`
        throw new MillraceError('PARTITION_LOST', text, { details: { topic, partition, position: String(position) } })
      }
      return { topic, partition, position, state, real: state.realPosition(position) }
    })
    const due = commits.flatMap(({ topic, partition, real }) =>
      real === undefined ? [] : [{ topic, partition, position: real }],
    )
    if (due.length > 0) await this.#inner.commit(due)
    for (const { state, position } of commits) state.committed(position)
  }

  stop(): Promise<void> {
    this.#timer?.clear()
    this.#partitions.clear()
    return this.#inner.stop()
  }

  #show(partition: Partition, messages: readonly IncomingMessage[]): void {
    const entry = this.#partitions.get(nameOf(partition))
    if (entry === undefined) return this.#options.onMessages(partition, messages)
    const shown = entry.state.show(messages, () => ++this.#tally.messages % this.#every === 0)
    this.#tally.duplicates += shown.length - messages.length
    this.#options.onMessages(partition, shown)
    this.#flushLater()
  }

  /** Second deliveries do not wait for ever on a partition that has fallen quiet. */
  #flushLater(): void {
    if (this.#timer !== undefined) return
    if (![...this.#partitions.values()].some(({ state }) => state.waiting && !state.paused)) return
    this.#timer = this.#clock.setTimer(() => this.#flush(), this.#afterMs)
  }

  #flush(): void {
    this.#timer = undefined
    for (const { partition, state } of this.#partitions.values()) {
      if (!state.quiet() || state.paused || !state.waiting) continue
      const again = state.flush()
      this.#tally.duplicates += again.length
      try {
        this.#options.onMessages(partition, again)
      } catch (error) {
        this.#options.onError(error as Error)
      }
    }
    this.#flushLater()
  }

  #setPaused(partitions: readonly Partition[], paused: boolean): void {
    for (const partition of partitions) {
      const entry = this.#partitions.get(nameOf(partition))
      if (entry !== undefined) entry.state.paused = paused
    }
  }

  #forget(partitions: readonly Partition[]): void {
    for (const partition of partitions) this.#partitions.delete(nameOf(partition))
  }
}

function nameOf({ topic, partition }: Partition): string {
  return `${partition} ${topic}`
}
