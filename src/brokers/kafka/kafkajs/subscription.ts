/**
 * A member of a consumer group on kafkajs.
 *
 * - kafkajs fetches again only when all batches of a fetch are worked off, so a slow handler stops everybody. Here a
 *   batch is handed over synchronously and counts as read at once; heartbeats, which kafkajs sends from its fetch loop,
 *   then go on however long handlers take. The loop turns at least every `FETCH_WAIT_MS`, also when all is paused.
 * - A batch that was fetched before a pause is not handed over and not counted as read: it is fetched again on resume.
 * - A rebalance is seen when it is over (`awaitedRevoke` is false): what went is lost, what stayed goes on where it was.
 *   kafkajs would go on from the last commit, so each partition that stayed is sought to where its hand-over ended.
 * - A new member id means that the group had given us up: then all was lost, also what we were given back.
 * - Offsets that go back in a partition that is ours (a topic made anew, a log truncated) are told as lost and assigned
 *   again, for a position rises strictly within one assignment.
 * - kafkajs resolves commits that it never sent when it is stopping. Only a commit that it reports by event counts.
 * - kafkajs' own restart after a crash is off: a crash that can pass makes a new member here, with backoff.
 *
 * Life: new → starting → running ⇄ reopening → stopped, or failed (`stopped` rejects).
 */
import type { Consumer, ConsumerRunConfig, EachBatchPayload } from 'kafkajs'
import { delay, systemClock, withDeadline } from '../../../core/clock.ts'
import { isMillraceError, MillraceError } from '../../../core/errors.ts'
import type { Partition, Subscription, SubscriptionOptions } from '../../broker.ts'
import type { Connections, Connector } from './connections.ts'
import { classify, innermost } from './error-class.ts'
import { incomingMessage } from './incoming.ts'
import { CommitQueue } from '../commit-queue.ts'
import type { CommitOffset } from '../commit-queue.ts'
import { memberError, notCommitted, subscriptionStopped, unreachable } from '../group-error.ts'
import { OwnedPartitions } from '../owned-partitions.ts'
import type { OwnedPartition } from '../owned-partitions.ts'

/** How long a fetch waits for messages, and so how long a resume may take to show and a heartbeat may be late. */
const FETCH_WAIT_MS = 100
const JOIN_MS = 10_000
const REQUEST_TIMEOUT_MS = 10_000
const SESSION_TIMEOUT_MS = 30_000
const STOP_MS = 5000
const REOPEN_FIRST_MS = 250
const REOPEN_MAX_MS = 10_000

/** Rides out the restart of a broker without losing the membership: about 20 s. */
const RETRY = { factor: 0.2, initialRetryTime: 100, maxRetryTime: 1000, multiplier: 2, retries: 22 } as const

export class KafkajsSubscription implements Subscription {
  readonly stopped: Promise<void>
  readonly #commits: CommitQueue
  readonly #connector: Connector
  readonly #options: SubscriptionOptions
  readonly #owned = new OwnedPartitions()
  readonly #stopping = new AbortController()
  #confirmed = false
  #connections: Connections | undefined
  #consumer: Consumer | undefined
  #memberId: string | undefined
  #reopening: Promise<void> | undefined
  #rejectStopped!: (error: Error) => void
  #resolveStopped!: () => void
  #starting: Promise<void> | undefined
  #stop: Promise<void> | undefined
  /** What ended the present consumer, once it has crashed. */
  #crash: { readonly error: Error } | undefined

  constructor(connector: Connector, options: SubscriptionOptions) {
    this.#connector = connector
    this.#commits = new CommitQueue(this.#owned, (offsets) => this.#commitNow(offsets))
    this.#options = options
    this.stopped = new Promise((resolve, reject) => {
      this.#resolveStopped = resolve
      this.#rejectStopped = reject
    })
    // Whoever does not ask is not to be struck by an unhandled rejection.
    this.stopped.catch(() => {})
  }

  start(): Promise<void> {
    if (this.#stopping.signal.aborted) return Promise.reject(subscriptionStopped())
    this.#starting ??= this.#join()
    return this.#starting
  }

  pause(partitions: readonly Partition[]): void {
    for (const owned of this.#ours(partitions)) {
      owned.paused = true
      this.#consumer?.pause([{ topic: owned.topic, partitions: [owned.partition] }])
    }
  }

  resume(partitions: readonly Partition[]): void {
    for (const owned of this.#ours(partitions)) {
      owned.paused = false
      this.#consumer?.resume([{ topic: owned.topic, partitions: [owned.partition] }])
    }
  }

  commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    return this.#commits.commit(positions)
  }

  stop(): Promise<void> {
    this.#stop ??= this.#leave()
    return this.#stop
  }

  /** kafkajs gives up at once when the coordinator is loading, as it is after a broker's start: ask again for a while. */
  async #join(): Promise<void> {
    const deadline = systemClock.monotonic() + JOIN_MS
    for (;;) {
      try {
        return await this.#open()
      } catch (error) {
        await this.#close()
        const verdict = classify(error)
        const passes = verdict.class === 'retry' && !verdict.unknownTopic && verdict.cause instanceof Error
        const { signal } = this.#stopping
        if (!passes || isMillraceError(verdict.cause) || signal.aborted || systemClock.monotonic() > deadline) {
          throw this.#startError(error)
        }
        await delay(systemClock, REOPEN_FIRST_MS, signal)
      }
    }
  }

  async #open(): Promise<void> {
    const { group, sessionTimeoutMs = SESSION_TIMEOUT_MS, startFrom, topics } = this.#options
    const connections = await this.#connector.open({ requestTimeoutMs: REQUEST_TIMEOUT_MS, retry: RETRY })
    if (this.#stopping.signal.aborted) {
      this.#connector.release(connections)
      throw subscriptionStopped()
    }
    const consumer = connections.kafka.consumer({
      allowAutoTopicCreation: false,
      groupId: group,
      heartbeatInterval: Math.max(1, Math.min(3000, Math.floor(sessionTimeoutMs / 6))),
      maxWaitTimeInMs: FETCH_WAIT_MS,
      // A member answers a rebalance within a turn of the loop, so nobody needs to wait longer for one than for a death.
      rebalanceTimeout: sessionTimeoutMs,
      retry: { ...RETRY, restartOnFailure: () => Promise.resolve(false) },
      sessionTimeout: sessionTimeoutMs,
    })
    this.#connections = connections
    this.#consumer = consumer
    this.#crash = undefined
    consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => this.#joined(payload.memberId, payload.memberAssignment))
    consumer.on(consumer.events.COMMIT_OFFSETS, () => (this.#confirmed = true))
    consumer.on(consumer.events.CRASH, ({ payload }) => this.#crashed(consumer, payload.error))
    await withDeadline(systemClock, consumer.connect(), REQUEST_TIMEOUT_MS, () => unreachable())
    await consumer.subscribe({ fromBeginning: startFrom !== 'latest', topics: [...topics] })
    // An instrumentation wraps `run` to make a span per message that lasts as long as the whole batch, and a context that
    // hides the one the message carries. What it wrapped is what is called; the consumer makes its own spans.
    const wrapped = consumer.run.bind(consumer)
    const original = (consumer.run as { readonly __original?: Consumer['run'] }).__original
    const config: ConsumerRunConfig = {
      autoCommit: false,
      eachBatch: (payload) => this.#eachBatch(payload),
      eachBatchAutoResolve: false,
      partitionsConsumedConcurrently: 16,
    }
    await (original === undefined ? wrapped(config) : original.call(consumer, config))
    const crash = this.#crash as { readonly error: Error } | undefined
    if (crash !== undefined) throw crash.error
  }

  #joined(memberId: string, assignment: Readonly<Record<string, number[]>>): void {
    if (this.#stopping.signal.aborted) return
    if (memberId !== this.#memberId) this.#loseAll()
    this.#memberId = memberId
    const { gained, kept, lost } = this.#owned.assign(assignment)
    for (const one of kept) {
      if (one.next === undefined) continue
      this.#consumer?.seek({ topic: one.topic, partition: one.partition, offset: String(one.next) })
    }
    // kafkajs remembers a pause over assignments.
    for (const one of gained) this.#consumer?.resume([{ topic: one.topic, partitions: [one.partition] }])
    if (lost.length > 0) this.#tell(() => this.#options.onLost(lost.map(plain)))
    if (gained.length > 0) this.#tell(() => this.#options.onAssigned(gained.map(plain)))
  }

  #loseAll(): void {
    const { lost } = this.#owned.assign({})
    if (lost.length > 0) this.#tell(() => this.#options.onLost(lost.map(plain)))
  }

  #eachBatch(payload: EachBatchPayload): Promise<void> {
    const { batch } = payload
    const { messages, partition, topic } = batch
    let owned = this.#owned.get({ topic, partition })
    const [first, last] = [messages[0], messages.at(-1)]
    // Not resolved, so fetched again by whom it concerns.
    if (owned === undefined || owned.paused || first === undefined || last === undefined) return DONE
    if (payload.isStale() || this.#stopping.signal.aborted) return DONE
    if (owned.next !== undefined && BigInt(first.offset) < owned.next) {
      const again = [{ topic, partition }]
      owned = this.#owned.renew(owned)
      this.#tell(() => this.#options.onLost(again))
      this.#tell(() => this.#options.onAssigned(again))
      if (owned.paused) return DONE
    }
    const incoming = messages.map((message) => incomingMessage(topic, partition, message))
    owned.next = BigInt(last.offset) + 1n
    payload.resolveOffset(last.offset)
    this.#tell(() => this.#options.onMessages({ topic, partition }, incoming))
    return DONE
  }

  async #commitNow(offsets: readonly CommitOffset[]): Promise<void> {
    const consumer = this.#consumer
    if (consumer === undefined || this.#stop !== undefined) throw subscriptionStopped()
    this.#confirmed = false
    try {
      const texts = offsets.map((one) => ({ ...one, offset: String(one.offset) }))
      await withDeadline(systemClock, consumer.commitOffsets(texts), REQUEST_TIMEOUT_MS, () => notCommitted())
    } catch (error) {
      throw error instanceof MillraceError ? error : notCommitted(innermost(error))
    }
    if (!this.#confirmed) throw notCommitted()
  }

  /** kafkajs has stopped the consumer and left the group before it says so. */
  #crashed(consumer: Consumer, error: Error): void {
    if (consumer !== this.#consumer) return
    this.#crash = { error }
    this.#memberId = undefined
    this.#loseAll()
    if (this.#stopping.signal.aborted || this.#starting === undefined || this.#reopening !== undefined) return
    this.#reopening = this.#starting.then(
      () => this.#reopen(error),
      () => {},
    )
  }

  async #reopen(crash: Error): Promise<void> {
    let error: unknown = crash
    const { signal } = this.#stopping
    for (let waitMs = REOPEN_FIRST_MS; ; waitMs = Math.min(REOPEN_MAX_MS, waitMs * 2)) {
      await this.#close()
      if (signal.aborted) return
      if (classify(error).class === 'fatal') {
        this.#fail(this.#startError(error))
        return
      }
      this.#tell(() => this.#options.onError(this.#startError(error)))
      await delay(systemClock, waitMs * (0.5 + systemClock.random() / 2), signal)
      if (signal.aborted) return
      try {
        await this.#open()
        const again = this.#crash as { readonly error: Error } | undefined
        if (again !== undefined) throw again.error
        this.#reopening = undefined
        return
      } catch (next) {
        error = next
      }
    }
  }

  async #leave(): Promise<void> {
    // Commits that were asked for before are still answered.
    await withDeadline(systemClock, this.#commits.settled(), STOP_MS, subscriptionStopped).catch(() => {})
    this.#stopping.abort()
    const opening = Promise.allSettled([this.#starting, this.#reopening])
    // What is not ready by then loses its connections.
    await withDeadline(systemClock, opening, STOP_MS, subscriptionStopped).catch(() => {})
    await this.#close()
    this.#owned.assign({})
    this.#resolveStopped()
  }

  /** Leaves the group, if the broker lets it within its time, and ends every connection. */
  async #close(): Promise<void> {
    const [connections, consumer] = [this.#connections, this.#consumer]
    this.#connections = undefined
    this.#consumer = undefined
    this.#memberId = undefined
    try {
      if (consumer !== undefined) await withDeadline(systemClock, consumer.disconnect(), STOP_MS, subscriptionStopped)
    } catch {
      // The broker finds out by the session's timeout.
    } finally {
      if (connections !== undefined) this.#connector.release(connections)
    }
  }

  /** The member can no longer work. */
  #fail(error: Error): void {
    this.#stopping.abort()
    this.#loseAll()
    this.#rejectStopped(error)
    this.#stop ??= this.#close()
  }

  /** kafkajs swallows what a listener throws; a callback that throws has lost its place, and so has the member. */
  #tell(callback: () => void): void {
    try {
      callback()
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)))
    }
  }

  #ours(partitions: readonly Partition[]): OwnedPartition[] {
    return partitions.flatMap((one) => this.#owned.get(one) ?? [])
  }

  #startError(error: unknown): Error {
    return memberError(classify(error), this.#options)
  }
}

const DONE = Promise.resolve()

function plain({ topic, partition }: Partition): Partition {
  return { topic, partition }
}
