/**
 * NATS JetStream, on the optional peers `@nats-io/transport-node` and `@nats-io/jetstream`, loaded at the first use.
 *
 * A topic is a subject, and one partition. Publishing goes through one reply subscription and a window over key lanes
 * (`publisher.ts`, `publish-run.ts`); a group is one durable pull consumer per topic, which one member at a time reads
 * (`subscription.ts`, `topic-reader.ts`). Streams belong to the user: `admin.createTopic` makes one per topic for tests
 * and first steps. Every publisher and every subscription has a connection of its own.
 */
import type { JetStreamManager } from '@nats-io/jetstream'
import type { Clock } from '../../core/clock.ts'
import { systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type {
  Broker,
  BrokerAdmin,
  Capabilities,
  Publisher,
  PublisherOptions,
  Subscription,
  SubscriptionOptions,
} from '../broker.ts'
import { NatsAdmin } from './admin.ts'
import { Link } from './link.ts'
import type { NatsOptions, ResolvedNatsOptions } from './nats-options.ts'
import { resolveNatsOptions } from './nats-options.ts'
import { loadPeers } from './peers.ts'
import { NatsPublisher } from './publisher.ts'
import { NatsSubscription } from './subscription.ts'

export type { NatsOptions, NatsStreamOptions, NatsTlsOptions } from './nats-options.ts'

/**
 * A NATS JetStream broker. Connects to nothing by itself.
 *
 * @example
 * const broker = nats({ servers: 'localhost:4222' })
 * const relay = createRelay({ broker, postgres: pool })
 */
export function nats(options: NatsOptions): Broker {
  return new NatsBroker(resolveNatsOptions(options), systemClock)
}

class NatsBroker implements Broker {
  readonly admin: BrokerAdmin
  readonly capabilities: Capabilities
  readonly system = 'nats'
  readonly #clock: Clock
  readonly #links = new Set<Link>()
  readonly #options: ResolvedNatsOptions
  #closed = false
  #maxMessageBytes: number | undefined
  #managing: Promise<JetStreamManager> | undefined

  constructor(options: ResolvedNatsOptions, clock: Clock) {
    this.#options = options
    this.#clock = clock
    this.admin = new NatsAdmin(() => this.#manager(), options)
    const known = (): number | undefined => this.#maxMessageBytes
    this.capabilities = {
      // The server serves the next member when the last one leaves or falls silent, and asks nobody.
      awaitedRevoke: false,
      dedupeWindowMs: options.stream.duplicateWindowMs,
      // The server's `max_payload`, headers included; undefined before the first connection.
      get maxMessageBytes() {
        return known()
      },
      partitions: false,
    }
  }

  publisher(options?: PublisherOptions): Publisher {
    return new NatsPublisher(this.#options, this.#clock, (link) => this.#onConnected(link), options)
  }

  subscription(options: SubscriptionOptions): Subscription {
    return new NatsSubscription(this.#options, this.#clock, (link) => this.#onConnected(link), options)
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#managing?.catch(() => {})
    await Promise.all([...this.#links].map((link) => link.close()))
    this.#links.clear()
  }

  #onConnected(link: Link): void {
    this.#links.add(link)
    void link.nc.closed().then(() => this.#links.delete(link))
    this.#maxMessageBytes = link.maxPayload
  }

  #manager(): Promise<JetStreamManager> {
    if (this.#closed) return Promise.reject(new MillraceError('LIFECYCLE_STOPPED', 'the NATS broker is closed'))
    this.#managing ??= this.#connectManager().catch((error: unknown) => {
      this.#managing = undefined
      throw error
    })
    return this.#managing
  }

  async #connectManager(): Promise<JetStreamManager> {
    const { jetstream } = await loadPeers()
    const nothing = (): void => {}
    const link = await Link.open(this.#options, this.#clock, {
      onClosed: () => {
        this.#managing = undefined
      },
      onDown: nothing,
      onError: nothing,
      onUp: nothing,
    })
    this.#onConnected(link)
    return await jetstream.jetstreamManager(link.nc)
  }
}
