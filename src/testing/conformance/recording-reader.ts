/**
 * A member of a group that writes down all it is told and checks, at every callback, what must hold at all times:
 *
 * - messages come only for partitions that were assigned and not yet taken away;
 * - positions rise strictly within one assignment;
 * - nothing comes for a partition between `pause` and `resume`.
 *
 * A breach is kept in `violations`, which the stage asserts to be empty when the case ends.
 */
import type { Broker, IncomingMessage, Partition, Subscription, SubscriptionOptions } from '../../brokers/broker.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import { withDeadline } from '../../core/clock.ts'

/** How a {@link RecordingReader} behaves. */
export interface ReaderOptions extends Pick<SubscriptionOptions, 'group' | 'topics' | 'startFrom'> {
  /** Commit what was handed over, as soon as it was. Default: true. */
  readonly autoCommit?: boolean
  /** Called with each hand-over after it was recorded; may pause. */
  onMessages?(partition: Partition, messages: readonly IncomingMessage[], reader: RecordingReader): void
  /** Called inside `onAssigned`. */
  onAssigned?(partitions: readonly Partition[]): void
  /** Awaited inside `onRevoking`. */
  onRevoking?(partitions: readonly Partition[], reader: RecordingReader): Promise<void>
}

interface Waiter {
  readonly predicate: () => boolean
  readonly resolve: () => void
  readonly timer: Timer
}

/** The name of a partition in maps and messages. */
export function nameOf(partition: Partition): string {
  return `${partition.topic}/${partition.partition}`
}

export class RecordingReader {
  readonly received: IncomingMessage[] = []
  /** Partitions that are this member's now, by name. */
  readonly owned = new Map<string, Partition>()
  readonly assigned: Partition[] = []
  readonly revoked: Partition[] = []
  readonly lost: Partition[] = []
  readonly errors: Error[] = []
  readonly violations: string[] = []
  readonly subscription: Subscription
  readonly #clock: Clock
  readonly #deadlineMs: number
  readonly #options: ReaderOptions
  readonly #lastPosition = new Map<string, bigint>()
  readonly #paused = new Set<string>()
  readonly #toCommit = new Map<string, Partition & { readonly position: bigint }>()
  readonly #waiters = new Set<Waiter>()
  #committing: Promise<void> | undefined
  #stopping: Promise<void> | undefined

  constructor(broker: Broker, clock: Clock, deadlineMs: number, sessionTimeoutMs: number, options: ReaderOptions) {
    this.#clock = clock
    this.#deadlineMs = deadlineMs
    this.#options = options
    this.subscription = broker.subscription({
      group: options.group,
      topics: options.topics,
      startFrom: options.startFrom ?? 'earliest',
      sessionTimeoutMs,
      onMessages: (partition, messages) => this.#onMessages(partition, messages),
      onAssigned: (partitions) => this.#onAssigned(partitions),
      onRevoking: (partitions) => this.#onRevoking(partitions),
      onLost: (partitions) => {
        this.lost.push(...partitions)
        this.#disown(partitions)
      },
      onError: (error) => {
        this.errors.push(error)
      },
    })
    // A member that can no longer work shows in the message of the wait that fails.
    this.subscription.stopped.catch((error: unknown) => this.errors.push(error as Error))
  }

  start(): Promise<void> {
    return this.#within(this.subscription.start(), 'the member to join')
  }

  /** Commits what is due and leaves the group. */
  stop(): Promise<void> {
    this.#stopping ??= (async () => {
      await this.settle()
      await this.#within(this.subscription.stop(), 'the member to leave')
      for (const waiter of this.#waiters) waiter.timer.clear()
      this.#waiters.clear()
    })()
    return this.#stopping
  }

  pause(partitions: readonly Partition[]): void {
    this.subscription.pause(partitions)
    for (const partition of partitions) this.#paused.add(nameOf(partition))
  }

  resume(partitions: readonly Partition[]): void {
    for (const partition of partitions) this.#paused.delete(nameOf(partition))
    this.subscription.resume(partitions)
  }

  commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    return this.#within(this.subscription.commit(positions), 'a commit to be answered')
  }

  /** Resolves when all that was handed over is committed (where the reader commits by itself). */
  async settle(): Promise<void> {
    while (this.#committing !== undefined) await this.#within(this.#committing, 'commits to be answered')
  }

  /** Resolves as soon as the predicate holds after some callback; rejects at the deadline, saying what was seen. */
  until(what: string, predicate: () => boolean): Promise<void> {
    if (predicate()) return Promise.resolve()
    return new Promise((resolve, reject) => {
      const timer = this.#clock.setTimer(() => {
        this.#waiters.delete(waiter)
        reject(new Error(`waited ${this.#deadlineMs} ms for ${what}; ${this.#describe()}`))
      }, this.#deadlineMs)
      const waiter: Waiter = { predicate, resolve, timer }
      this.#waiters.add(waiter)
    })
  }

  /** Resolves when at least this many messages were handed over. */
  count(count: number): Promise<void> {
    return this.until(`${count} messages`, () => this.received.length >= count)
  }

  /** The payloads handed over for a key, as text, in order. */
  textsOf(key: string | null): string[] {
    return this.received.filter((m) => m.key === key).map((m) => String(m.payload))
  }

  #onMessages(partition: Partition, messages: readonly IncomingMessage[]): void {
    const name = nameOf(partition)
    if (!this.owned.has(name)) this.violations.push(`${messages.length} messages of ${name}, which is not assigned`)
    if (this.#paused.has(name)) this.violations.push(`${messages.length} messages of ${name}, which is paused`)
    let last = this.#lastPosition.get(name)
    for (const message of messages) {
      if (nameOf(message) !== name) this.violations.push(`a message of ${nameOf(message)} handed over as ${name}`)
      if (last !== undefined && message.position <= last) {
        this.violations.push(`${name}: position ${message.position} after ${last}`)
      }
      last = message.position
      this.received.push(message)
    }
    if (last !== undefined) {
      this.#lastPosition.set(name, last)
      if (this.#options.autoCommit !== false) {
        this.#toCommit.set(name, { topic: partition.topic, partition: partition.partition, position: last })
        this.#commitSoon()
      }
    }
    this.#options.onMessages?.(partition, messages, this)
    this.#tell()
  }

  #onAssigned(partitions: readonly Partition[]): void {
    for (const partition of partitions) {
      this.assigned.push(partition)
      this.owned.set(nameOf(partition), partition)
      this.#lastPosition.delete(nameOf(partition))
    }
    this.#options.onAssigned?.(partitions)
    this.#tell()
  }

  async #onRevoking(partitions: readonly Partition[]): Promise<void> {
    this.revoked.push(...partitions)
    this.#tell()
    await this.settle()
    await this.#options.onRevoking?.(partitions, this)
    await this.settle()
    this.#disown(partitions)
  }

  #disown(partitions: readonly Partition[]): void {
    for (const partition of partitions) {
      const name = nameOf(partition)
      this.owned.delete(name)
      this.#paused.delete(name)
      this.#toCommit.delete(name)
      this.#lastPosition.delete(name)
    }
    this.#tell()
  }

  #commitSoon(): void {
    if (this.#committing !== undefined) return
    this.#committing = this.#commitAll().finally(() => {
      this.#committing = undefined
      if (this.#toCommit.size > 0) this.#commitSoon()
    })
  }

  async #commitAll(): Promise<void> {
    // After the current hand-over, so that one commit covers it whole.
    await Promise.resolve()
    const positions = [...this.#toCommit.values()]
    this.#toCommit.clear()
    try {
      if (positions.length > 0) await this.subscription.commit(positions)
    } catch (error) {
      // A partition that went away meanwhile makes its commit reject, as it must.
      this.errors.push(error as Error)
    }
  }

  #tell(): void {
    for (const waiter of this.#waiters) {
      if (!waiter.predicate()) continue
      this.#waiters.delete(waiter)
      waiter.timer.clear()
      waiter.resolve()
    }
  }

  #within<T>(promise: Promise<T>, what: string): Promise<T> {
    return withDeadline(
      this.#clock,
      promise,
      this.#deadlineMs,
      () => new Error(`waited ${this.#deadlineMs} ms for ${what}; ${this.#describe()}`),
    )
  }

  #describe(): string {
    const errors = this.errors.map((error) => error.message).slice(-3)
    return (
      `received ${this.received.length}, owns [${[...this.owned.keys()].join(' ')}], ` +
      `revoked ${this.revoked.length}, lost ${this.lost.length}, errors [${errors.join(' | ')}]`
    )
  }
}

/** Resolves as soon as the predicate holds after some callback of any of the readers. */
export function untilAny(readers: readonly RecordingReader[], what: string, predicate: () => boolean): Promise<void> {
  return Promise.race(readers.map((reader) => reader.until(what, predicate)))
}
