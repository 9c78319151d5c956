import type { Clock } from '../../../core/clock.ts'
import type { Broker, BrokerAdmin, Capabilities, Publisher, PublisherOptions } from '../../broker.ts'
import type { Subscription, SubscriptionOptions } from '../../broker.ts'
import type { Address } from './address.ts'
import { Connection } from './connection.ts'
import { RemotePublisher } from './remote-publisher.ts'
import { RemoteSubscription } from './remote-subscription.ts'

/** How long an administrative request may take. */
const REQUEST_MS = 10_000

/** A client of a memory broker that another process serves. Each publisher and subscription has its own connection. */
export class RemoteClient implements Broker {
  readonly system = 'memory'
  readonly capabilities: Capabilities
  readonly admin: BrokerAdmin
  readonly #address: Address
  readonly #clock: Clock
  #connection: Promise<Connection> | undefined

  constructor(address: Address, clock: Clock, maxMessageBytes: number) {
    this.#address = address
    this.#clock = clock
    this.capabilities = { awaitedRevoke: true, dedupeWindowMs: 0, partitions: true, maxMessageBytes }
    this.admin = {
      createTopic: (topic, options) => this.#request({ method: 'createTopic', topic, partitions: options?.partitions }),
      deleteTopic: (topic) => this.#request({ method: 'deleteTopic', topic }),
    }
  }

  publisher(options: PublisherOptions = {}): Publisher {
    const limit = this.capabilities.maxMessageBytes as number
    return new RemotePublisher(this.#address, this.#clock, options.timeoutMs ?? 10_000, limit)
  }

  subscription(options: SubscriptionOptions): Subscription {
    return new RemoteSubscription(this.#address, this.#clock, options)
  }

  async close(): Promise<void> {
    const connection = this.#connection
    this.#connection = undefined
    const open = await connection?.catch(() => undefined)
    open?.end()
  }

  async #request(control: object): Promise<void> {
    this.#connection ??= Connection.open(this.#address, this.#clock, REQUEST_MS, {
      onLost: () => (this.#connection = undefined),
    })
    try {
      const connection = await this.#connection
      await connection.request(control, REQUEST_MS)
    } catch (error) {
      // A connection that could not be made, or is gone, is made anew by the next request.
      const broken = await this.#connection?.then(
        (connection) => !connection.open,
        () => true,
      )
      if (broken === true) this.#connection = undefined
      throw error
    }
  }
}
