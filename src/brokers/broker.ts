/**
 * The broker port: all that the relay and the consumer know of a broker. An adapter is one folder, one optional peer
 * dependency, one subpath export, and one run of the conformance suite (`millrace/testing`).
 *
 * Differences between brokers are data (`Capabilities`), never special cases in the relay or the consumer.
 */
import type { Message, OutgoingMessage } from '../core/message.ts'

/** What a broker can do, as data. */
export interface Capabilities {
  /** `onRevoking` is awaited before another member may own the partition. */
  readonly awaitedRevoke: boolean
  /** For how long the broker itself drops a second message with a known id; 0 when it does not. */
  readonly dedupeWindowMs: number
  /** A topic is split into partitions that several members of a group share. */
  readonly partitions: boolean
  /** The largest message the broker takes, in bytes, if the adapter knows it before sending. */
  readonly maxMessageBytes: number | undefined
}

/** A connection to a broker. Making one connects to nothing; the first use does. */
export interface Broker {
  /** `messaging.system` of OpenTelemetry: `kafka`, `nats`, `memory`. */
  readonly system: string
  readonly capabilities: Capabilities
  /** Makes a publisher. One relay uses one, one page at a time. */
  publisher(options?: PublisherOptions): Publisher
  /** Makes a member of a consumer group. It does nothing before `start`. */
  subscription(options: SubscriptionOptions): Subscription
  /** Makes and deletes topics, for tests, demos and first steps. */
  readonly admin: BrokerAdmin
  /** Closes every connection; publishers and subscriptions must be closed before. */
  close(): Promise<void>
}

/** Makes and deletes topics. */
export interface BrokerAdmin {
  /** Makes the topic unless it is there. Partitions are ignored by a broker that has none. */
  createTopic(topic: string, options?: { readonly partitions?: number }): Promise<void>
  /** Deletes the topic with what it holds; no error when it is not there. */
  deleteTopic(topic: string): Promise<void>
}

/**
 * Messages are sent again after so long that the broker no longer knows whether it has them: the first attempt whose
 * outcome was unknown lies longer ago than the broker keeps ids. They may be stored twice, behind later messages of
 * their key. The inbox still makes one effect of them.
 */
export interface LateRetry {
  /** How many messages of the topic. */
  readonly count: number
  /** Their ids, a hundred at most. */
  readonly ids: readonly string[]
  /** How long ago the oldest was sent first, milliseconds. */
  readonly oldestMs: number
  readonly topic: string
  /** For how long the broker keeps ids, milliseconds. */
  readonly windowMs: number
}

/** How a publisher behaves. */
export interface PublisherOptions {
  /**
   * Told once of each message that is about to be sent again past the broker's duplicate window. A publisher knows only
   * its own attempts, not those of a process before it. Default: nobody is told.
   */
  readonly onLateRetry?: (late: LateRetry) => void
  /**
   * How long one publish may stay unanswered before its outcome counts as unknown, milliseconds. Default: 10000.
   */
  readonly timeoutMs?: number
}

/**
 * What became of one message of a batch that was not stored.
 *
 * - `failed`: the broker does not have it.
 * - `unknown`: it was sent and no answer came; it may or may not be there. Sending it again is harmless: the id is the same.
 * - `unsent`: it was held back, because an earlier message of its key was not stored.
 */
export type Outcome = 'failed' | 'unknown' | 'unsent'

/**
 * What to do about it.
 *
 * - `retry`: the broker is unwell; hold, back off, send again.
 * - `throttle`: it asks for less; as retry, with the delay it names.
 * - `poison`: this message can never be sent (too large, no such topic, schema rejected).
 * - `fatal`: nothing can be sent until somebody changes something (authorisation, configuration).
 */
export type ErrorClass = 'retry' | 'throttle' | 'poison' | 'fatal'

/** One message that was not stored. */
export interface Unresolved {
  /** Its index in the batch that was given to `publish`. */
  readonly index: number
  readonly outcome: Outcome
  readonly class: ErrorClass
  /** Why, with ids and sizes only. `unsent` messages carry the error of the message that held them. */
  readonly error: Error
  /** How long the broker asks to be left alone, milliseconds, when it says so: `throttle` alone. */
  readonly retryAfterMs?: number
}

/** Sends batches. Not re-entrant: one `publish` at a time. */
export interface Publisher {
  /** Connects; rejects when the broker cannot be reached. */
  start(): Promise<void>
  /**
   * Sends a batch in order and resolves when every message's outcome is known: with an empty array when all are stored
   * durably (as durably as the broker acknowledges), else with those that are not, by rising index.
   *
   * A key has at most one unresolved publish: when a message is not stored, no later message of its key in the batch is.
   * What the broker itself keeps together counts as one publish: a batch that it stores as a whole, a chain of which it
   * stores each message only behind the one before. Of such a one every message may be unknown, and more than the first
   * be there, in order.
   *
   * It never rejects for what the broker says or fails to say; it rejects when the signal aborts before anything was
   * sent, or when the publisher was not started.
   */
  publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]>
  /** Waits for what is in flight, then disconnects. Idempotent. */
  close(): Promise<void>
}

/** A slice of a topic that one member of a group reads in order. A broker without partitions has partition 0. */
export interface Partition {
  readonly topic: string
  readonly partition: number
}

/** A message as a member of a group receives it. */
export interface IncomingMessage extends Message, Partition {
  /**
   * The adapter's position of this delivery: rises strictly within one assignment of the partition, in the order of
   * delivery. On Kafka the offset; on JetStream the consumer's delivery sequence.
   */
  readonly position: bigint
  /** Size on the wire as far as the adapter knows it: key, headers and payload, bytes. */
  readonly sizeBytes: number
  /** True when the broker says it delivered this message before. */
  readonly redelivered: boolean
}

/** What a subscription needs, and whom it tells. All callbacks are synchronous but `onRevoking`. */
export interface SubscriptionOptions {
  /** The consumer group (Kafka), the durable consumer (JetStream). */
  readonly group: string
  readonly topics: readonly string[]
  /** Where a group that has no position yet begins. Default: 'earliest'. */
  readonly startFrom?: 'earliest' | 'latest'
  /** How long the broker waits for a member that says nothing before it gives its partitions away, milliseconds. Default: 30000. */
  readonly sessionTimeoutMs?: number
  /**
   * Messages of one partition, in order. The adapter never waits for a handler: it hands over and fetches on, until
   * the partition is paused. After `onRevoking` or `onLost` returned, nothing more of that partition is handed over.
   */
  onMessages(partition: Partition, messages: readonly IncomingMessage[]): void
  /** These partitions are ours from now on; messages follow. */
  onAssigned(partitions: readonly Partition[]): void
  /**
   * These partitions are being taken away in good order: stop, settle, commit. Awaited where
   * `capabilities.awaitedRevoke`; elsewhere the partition may have a new owner already.
   */
  onRevoking(partitions: readonly Partition[]): Promise<void>
  /** These partitions are gone already: commit nothing. */
  onLost(partitions: readonly Partition[]): void
  /** A background error that the adapter survives. What it does not survive rejects `stopped`. */
  onError(error: Error): void
}

/** A member of a consumer group. */
export interface Subscription {
  /** Joins; resolves when the member is known to the broker (its first assignment may come later). */
  start(): Promise<void>
  /** Hands over nothing more of these partitions until `resume`. What was handed over stays handed over. */
  pause(partitions: readonly Partition[]): void
  /** Goes on exactly after the last message handed over: nothing lost, nothing repeated. */
  resume(partitions: readonly Partition[]): void
  /**
   * Everything of the partition up to and including `position` is done. Resolves when the broker has it; rejects when
   * the member no longer owns the partition.
   */
  commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void>
  /** Leaves the group. Commit before; what was not committed is delivered again to whoever owns the partition next. */
  stop(): Promise<void>
  /** Resolves after `stop`; rejects when the member can no longer work. */
  readonly stopped: Promise<void>
}
