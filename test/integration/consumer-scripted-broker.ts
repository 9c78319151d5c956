import type { Broker, IncomingMessage, Partition, Subscription, SubscriptionOptions } from '../../src/brokers/broker.ts'
import { newId } from '../../src/core/ids.ts'

/** A message to deliver; what is left out is made up. */
export type Draft = Partial<Omit<IncomingMessage, 'payload' | 'position'>> & { readonly payload?: string | null }

/**
 * A broker whose every move a test makes: it delivers, redelivers, pauses and takes partitions away at the test's word,
 * and remembers what the consumer asked of it. One member at a time.
 */
export class ScriptedBroker implements Broker {
  readonly system = 'scripted'
  readonly capabilities = { awaitedRevoke: true, dedupeWindowMs: 0, maxMessageBytes: undefined, partitions: true }
  /** The newest committed position of each partition of the topic. */
  readonly committed = new Map<number, bigint>()
  commits = 0
  readonly paused = new Set<number>()
  readonly pauses: number[] = []
  /** What the next commit does before it counts. */
  onCommit: (() => void | Promise<void>) | undefined
  left = false
  readonly topic = 'topic'
  #handlers: SubscriptionOptions | undefined
  readonly #positions = new Map<number, bigint>()
  readonly #stopped = Promise.withResolvers<void>()
  readonly #waiting = new Map<number, IncomingMessage[]>()

  get admin(): never {
    throw new Error('there is nothing to administer')
  }

  publisher(): never {
    throw new Error('this broker only delivers')
  }

  close(): Promise<void> {
    return Promise.resolve()
  }

  subscription(options: SubscriptionOptions): Subscription {
    this.#handlers = options
    return {
      commit: async (positions) => {
        await this.onCommit?.()
        this.commits++
        for (const { partition, position } of positions) this.committed.set(partition, position)
      },
      pause: (partitions) => {
        for (const { partition } of partitions) {
          this.paused.add(partition)
          this.pauses.push(partition)
        }
      },
      resume: (partitions) => {
        for (const { partition } of partitions) {
          this.paused.delete(partition)
          this.#flow(partition)
        }
      },
      start: () => Promise.resolve(),
      stop: () => {
        this.left = true
        this.#stopped.resolve()
        return Promise.resolve()
      },
      stopped: this.#stopped.promise,
    }
  }

  /** Gives the partitions to the member. */
  assign(...partitions: number[]): void {
    this.paused.clear()
    this.#waiting.clear()
    this.#told.onAssigned(partitions.map((partition) => this.#id(partition)))
  }

  /** Takes the partitions away in good order. */
  revoke(...partitions: number[]): Promise<void> {
    return this.#told.onRevoking(partitions.map((partition) => this.#id(partition)))
  }

  /** Takes the partitions away without asking. */
  lose(...partitions: number[]): void {
    this.#told.onLost(partitions.map((partition) => this.#id(partition)))
  }

  /** The subscription cannot go on. */
  die(error: Error): void {
    this.#stopped.reject(error)
  }

  /** Delivers messages of a partition, ten at a time, as long as it is not paused; returns them. */
  deliver(partition: number, drafts: readonly Draft[]): IncomingMessage[] {
    const messages = drafts.map((draft) => this.#message(partition, draft))
    const waiting = this.#waiting.get(partition) ?? []
    this.#waiting.set(partition, waiting)
    waiting.push(...messages)
    this.#flow(partition)
    return messages
  }

  get #told(): SubscriptionOptions {
    if (this.#handlers === undefined) throw new Error('start the consumer first')
    return this.#handlers
  }

  #id(partition: number): Partition {
    return { partition, topic: this.topic }
  }

  #flow(partition: number): void {
    const waiting = this.#waiting.get(partition) ?? []
    while (waiting.length > 0 && !this.paused.has(partition)) {
      this.#told.onMessages(this.#id(partition), waiting.splice(0, 10))
    }
  }

  #message(partition: number, { payload, ...draft }: Draft): IncomingMessage {
    // Positions have gaps, as on a compacted topic.
    const position = (this.#positions.get(partition) ?? 0n) + 1n + BigInt(Math.floor(Math.random() * 3))
    this.#positions.set(partition, position)
    const bytes = payload === null ? null : Buffer.from(payload ?? '{}')
    return {
      headers: {},
      id: newId(),
      key: null,
      redelivered: false,
      sizeBytes: bytes?.length ?? 0,
      timeMs: 0,
      type: 'made.up',
      ...draft,
      partition,
      payload: bytes,
      position,
      topic: this.topic,
    }
  }
}
