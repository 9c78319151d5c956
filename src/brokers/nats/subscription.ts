import type { Clock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { Partition, Subscription, SubscriptionOptions } from '../broker.ts'
import { ensureDurable } from './durable.ts'
import { Link } from './link.ts'
import { isSubject } from './names.ts'
import type { ResolvedNatsOptions } from './nats-options.ts'
import { loadPeers } from './peers.ts'
import { TopicReader, type TopicReaderOptions } from './topic-reader.ts'

const SESSION_TIMEOUT_MS = 30_000
/** Priority groups, without which two members would both be served and no order held. */
const MIN_SERVER = [2, 11] as const

/** A member of a group: one connection, and one reader per topic. */
export class NatsSubscription implements Subscription {
  readonly stopped: Promise<void>
  readonly #options: SubscriptionOptions
  readonly #natsOptions: ResolvedNatsOptions
  readonly #clock: Clock
  readonly #onConnected: (link: Link) => void
  readonly #readers = new Map<string, TopicReader>()
  #settleStopped: { reject(error: Error): void; resolve(): void } | undefined
  #starting: Promise<void> | undefined
  #stopping: Promise<void> | undefined
  #link: Link | undefined
  #failed = false
  /** What is called from sockets, timers and microtasks, where a throw would end the process, or the reading. */
  readonly #callbacks: TopicReaderOptions['callbacks'] = {
    onAssigned: (partitions) => this.#tell(() => this.#options.onAssigned(partitions)),
    onError: (error) => this.#tell(() => this.#options.onError(error)),
    onLost: (partitions) => this.#tell(() => this.#options.onLost(partitions)),
    onMessages: (partition, messages) => this.#tell(() => this.#options.onMessages(partition, messages)),
  }

  constructor(
    natsOptions: ResolvedNatsOptions,
    clock: Clock,
    onConnected: (link: Link) => void,
    options: SubscriptionOptions,
  ) {
    this.#natsOptions = natsOptions
    this.#clock = clock
    this.#onConnected = onConnected
    this.#options = options
    this.stopped = new Promise((resolve, reject) => {
      this.#settleStopped = { reject, resolve }
    })
    // Whoever waits for it hears of it; who does not must not be ended by it.
    this.stopped.catch(() => {})
  }

  start(): Promise<void> {
    if (this.#stopping !== undefined) {
      return Promise.reject(new MillraceError('LIFECYCLE_STOPPED', 'the subscription is stopped: make another one'))
    }
    this.#starting ??= this.#join().catch(async (error: unknown) => {
      this.#starting = undefined
      await this.#leave()
      throw error
    })
    return this.#starting
  }

  pause(partitions: readonly Partition[]): void {
    for (const { topic } of partitions) this.#readers.get(topic)?.pause()
  }

  resume(partitions: readonly Partition[]): void {
    for (const { topic } of partitions) this.#readers.get(topic)?.resume()
  }

  async commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    await Promise.all(
      positions.map(({ position, topic }) => {
        const reader = this.#readers.get(topic)
        if (reader === undefined) throw new MillraceError('PARTITION_LOST', `this member does not read ${topic}`)
        return reader.commit(position)
      }),
    )
  }

  stop(): Promise<void> {
    this.#stopping ??= (async () => {
      await this.#starting?.catch(() => {})
      await this.#leave()
      this.#settleStopped?.resolve()
    })()
    return this.#stopping
  }

  async #join(): Promise<void> {
    const { group, startFrom = 'earliest', sessionTimeoutMs = SESSION_TIMEOUT_MS, topics } = this.#options
    for (const topic of topics) {
      if (isSubject(topic)) continue
      throw new MillraceError('CONFIG_INVALID', `${JSON.stringify(topic)} is no subject without wildcards`)
    }
    const { jetstream, transport } = await loadPeers()
    const link = await Link.open(this.#natsOptions, this.#clock, {
      onClosed: (error) => this.#onClosed(error),
      onDown: () => {
        for (const reader of this.#readers.values()) reader.down()
      },
      onError: (error) => this.#callbacks.onError(error),
      onUp: () => {
        for (const reader of this.#readers.values()) reader.up()
      },
    })
    this.#link = link
    this.#onConnected(link)
    requireServer(link.nc.info?.version)
    const manager = await jetstream.jetstreamManager(link.nc)
    for (const topic of new Set(topics)) {
      const restore = () => ensureDurable(manager, { group, sessionTimeoutMs, startFrom, topic })
      const durable = await restore()
      const reader = new TopicReader({
        callbacks: this.#callbacks,
        clock: this.#clock,
        durable,
        inbox: transport.createInbox(),
        manager,
        nc: link.nc,
        restore,
        sessionTimeoutMs,
        topic,
      })
      this.#readers.set(topic, reader)
    }
    await Promise.all([...this.#readers.values()].map((reader) => reader.start()))
  }

  async #leave(): Promise<void> {
    await Promise.all([...this.#readers.values()].map((reader) => reader.stop()))
    this.#readers.clear()
    await this.#link?.close()
    this.#link = undefined
  }

  /** A callback that throws has lost its place, and so has the member: no other is called. */
  #tell(callback: () => void): void {
    if (this.#failed) return
    try {
      callback()
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)))
    }
  }

  /** The member can no longer work: it rejects `stopped`, then leaves. */
  #fail(error: Error): void {
    this.#failed = true
    this.#settleStopped?.reject(error)
    // It may stand in the middle of its start, or of its end.
    this.stop().catch(() => {})
  }

  #onClosed(cause: Error | undefined): void {
    for (const reader of this.#readers.values()) reader.down()
    this.#settleStopped?.reject(
      new MillraceError('CONNECTION_LOST', 'the connection to NATS ended for good: check the credentials', { cause }),
    )
  }
}

function requireServer(version: string | undefined): void {
  const [major = 0, minor = 0] = (version ?? '').split('.').map(Number)
  if (major > MIN_SERVER[0] || (major === MIN_SERVER[0] && minor >= MIN_SERVER[1])) return
  throw new MillraceError(
    'SERVER_TOO_OLD',
    `consuming in order needs a NATS server of version ${MIN_SERVER.join('.')} or newer, this is ${version}`,
  )
}
