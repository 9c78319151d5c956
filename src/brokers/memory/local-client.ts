import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type {
  Broker,
  BrokerAdmin,
  Capabilities,
  Partition,
  Publisher,
  PublisherOptions,
  Subscription,
  SubscriptionOptions,
  Unresolved,
} from '../broker.ts'
import { answerWithin } from './answer-deadline.ts'
import { Member } from './member.ts'
import type { MemoryBroker } from './memory-broker.ts'

/** A client of a broker in this process. */
export class LocalClient implements Broker {
  readonly system = 'memory'
  readonly capabilities: Capabilities
  readonly admin: BrokerAdmin
  readonly #host: MemoryBroker

  constructor(host: MemoryBroker) {
    this.#host = host
    this.capabilities = {
      awaitedRevoke: true,
      dedupeWindowMs: 0,
      partitions: true,
      maxMessageBytes: host.maxMessageBytes,
    }
    this.admin = {
      createTopic: async (topic, options) => host.createTopic(topic, options?.partitions),
      deleteTopic: async (topic) => host.deleteTopic(topic),
    }
  }

  publisher(options: PublisherOptions = {}): Publisher {
    return new LocalPublisher(this.#host, options.timeoutMs ?? 10_000)
  }

  subscription(options: SubscriptionOptions): Subscription {
    return new LocalSubscription(this.#host, options)
  }

  close(): Promise<void> {
    return Promise.resolve()
  }
}

class LocalPublisher implements Publisher {
  readonly #host: MemoryBroker
  readonly #timeoutMs: number
  #state: 'new' | 'started' | 'closed' = 'new'
  #inFlight: Promise<unknown> = Promise.resolve()

  constructor(host: MemoryBroker, timeoutMs: number) {
    this.#host = host
    this.#timeoutMs = timeoutMs
  }

  async start(): Promise<void> {
    if (this.#state === 'closed') throw closedError()
    this.#state = 'started'
  }

  async publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]> {
    if (this.#state !== 'started') throw this.#state === 'new' ? notStartedError() : closedError()
    signal?.throwIfAborted()
    const answer = this.#host.publish(batch)
    if (!(answer instanceof Promise)) return answer
    const bounded = answerWithin(this.#host.clock, answer, batch, this.#timeoutMs, signal)
    this.#inFlight = bounded
    return bounded
  }

  async close(): Promise<void> {
    this.#state = 'closed'
    await this.#inFlight
  }
}

class LocalSubscription implements Subscription {
  readonly stopped: Promise<void>
  readonly #host: MemoryBroker
  readonly #group: string
  readonly #member: Member
  readonly #stop = Promise.withResolvers<void>()
  #state: 'new' | 'started' | 'stopped' = 'new'

  constructor(host: MemoryBroker, options: SubscriptionOptions) {
    this.#host = host
    this.#group = options.group
    this.#member = new Member(options, host.clock)
    this.stopped = this.#stop.promise
  }

  async start(): Promise<void> {
    if (this.#state === 'stopped') throw closedError()
    if (this.#state === 'started') return
    this.#host.join(this.#group, this.#member)
    this.#state = 'started'
  }

  pause(partitions: readonly Partition[]): void {
    this.#member.pause(partitions)
  }

  resume(partitions: readonly Partition[]): void {
    this.#member.resume(partitions)
  }

  async commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    this.#member.commit(positions)
  }

  async stop(): Promise<void> {
    if (this.#state === 'started') this.#host.leave(this.#group, this.#member)
    this.#state = 'stopped'
    this.#stop.resolve()
  }
}

/** A publisher or subscription was used before `start`. */
export function notStartedError(): MillraceError {
  return new MillraceError('LIFECYCLE_NOT_STARTED', 'call and await start() before publish()')
}

/** A publisher or subscription was used after `close` or `stop`. */
export function closedError(): MillraceError {
  return new MillraceError('LIFECYCLE_STOPPED', 'it is closed: make a new one')
}
