/**
 * One client of the cluster: its connections, and what it knows of brokers, topics and leaders.
 *
 * A broker works off the requests of one connection one after the other, and answers a `JoinGroup` or a long poll late.
 * So connections are by broker and lane: what must not wait for one another uses different lanes.
 */
import { isIP } from 'node:net'
import type { ConnectionOptions, SASLOptions } from '@platformatic/kafka'
import { systemClock } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { KafkaSasl } from '../kafka-options.ts'
import type { Module } from './apis.ts'
import { classify, ProtocolRefusal } from './error-class.ts'
import { Link } from './link.ts'
import type { Address } from './link.ts'
import type { Settings } from './options.ts'

/** After this long a topic's metadata is asked for again, for partitions may have been added. */
const METADATA_AGE_MS = 60_000

/** What is known of a partition. */
export interface PartitionInfo {
  /** The broker that leads it; -1 when nobody does. */
  readonly leader: number
  readonly leaderEpoch: number
}

/** What is known of a topic. */
export interface TopicInfo {
  /** Why it cannot be used; undefined when it can. */
  readonly error: ProtocolRefusal | undefined
  readonly fetchedAt: number
  readonly id: string
  readonly partitions: readonly PartitionInfo[]
}

/** How a client behaves. */
export interface ClientOptions {
  /** How long a request may stay unanswered; by lane, where a lane needs longer. */
  readonly requestTimeoutMs: number
  readonly slowLanes?: Readonly<Record<string, number>>
}

export class Client {
  readonly module: Module
  readonly #bootstrap: readonly Address[]
  readonly #links = new Map<string, { readonly link: Link; readonly opening: Promise<Link> }>()
  readonly #options: ClientOptions
  readonly #settings: Settings
  readonly #topics = new Map<string, TopicInfo>()
  #brokers = new Map<number, Address>()
  #killed = false

  constructor(module: Module, settings: Settings, options: ClientOptions) {
    this.module = module
    this.#bootstrap = settings.brokers.map(addressOf)
    this.#options = options
    this.#settings = settings
  }

  /** True after `kill`. */
  get killed(): boolean {
    return this.#killed
  }

  /** A connection to any broker that answers. */
  async any(lane: string): Promise<Link> {
    const known = new Map([...this.#brokers.values(), ...this.#bootstrap].map((one) => [nameOf(one), one]))
    const addresses = [...known.values()]
    const first = Math.floor(systemClock.random() * addresses.length)
    let failure: unknown
    for (let i = 0; i < addresses.length; i++) {
      const address = addresses[(first + i) % addresses.length] as Address
      try {
        return await this.at(address, lane)
      } catch (error) {
        // One that may pass says more than one that stays: another broker may be well.
        if (failure === undefined || classify(failure).class === 'fatal') failure = error
      }
    }
    throw failure
  }

  /** A connection to this broker. */
  async broker(node: number, lane: string): Promise<Link> {
    const address = this.#brokers.get(node)
    if (address === undefined) throw new ProtocolRefusal('BROKER_NOT_AVAILABLE')
    return await this.at(address, lane)
  }

  /** A connection to a broker by its address; one that is there already is used again. */
  at(address: Address, lane: string): Promise<Link> {
    if (this.#killed) return Promise.reject(new MillraceError('LIFECYCLE_STOPPED', 'The client was closed.'))
    const name = `${lane} ${nameOf(address)}`
    const there = this.#links.get(name)
    if (there !== undefined) return there.opening
    const connection = new this.module.Connection(this.#settings.clientId, this.#connectionOptions(lane, address))
    const link = new Link(this.module, connection)
    const forget = (): void => {
      if (this.#links.get(name)?.link === link) this.#links.delete(name)
    }
    const opening = link.open(address).then(
      (open) => {
        if (!open.closed && !this.#killed) return open
        link.kill()
        throw new MillraceError('CONNECTION_LOST', 'The connection was closed as soon as it was made.')
      },
      (error: unknown) => {
        forget()
        link.kill()
        throw error
      },
    )
    this.#links.set(name, { link, opening })
    connection.on('close', forget)
    connection.on('error', forget)
    return opening
  }

  /** What is known of the topics, asked for where it is not known, is old, or is said to be `stale`. */
  async topics(names: Iterable<string>, stale = false): Promise<ReadonlyMap<string, TopicInfo>> {
    const now = systemClock.monotonic()
    const wanted = [...names]
    const due = wanted.filter((name) => {
      const known = this.#topics.get(name)
      return stale || known === undefined || known.error !== undefined || now - known.fetchedAt > METADATA_AGE_MS
    })
    if (due.length > 0) await this.#fetchTopics(due)
    return new Map(wanted.map((name) => [name, this.#topics.get(name) as TopicInfo]))
  }

  /** The topics as they are known now, without asking. */
  known(name: string): TopicInfo | undefined {
    return this.#topics.get(name)
  }

  /** Ends every connection at once: nothing more reaches a broker. */
  kill(): void {
    this.#killed = true
    const links = Array.from(this.#links.values(), ({ link }) => link)
    this.#links.clear()
    for (const link of links) link.kill()
  }

  async #fetchTopics(names: string[]): Promise<void> {
    const link = await this.any('control')
    // The broker's own setting decides whether a topic is made, as with every other client.
    const answer = await link.request('metadata', names, true, false)
    this.#brokers = new Map(answer.brokers.map(({ host, nodeId, port }) => [nodeId, { host, port }]))
    const fetchedAt = systemClock.monotonic()
    for (const topic of answer.topics) {
      const partitions: PartitionInfo[] = []
      for (const { leaderEpoch, leaderId, partitionIndex } of topic.partitions) {
        partitions[partitionIndex] = { leader: leaderId, leaderEpoch }
      }
      const error = topic.errorCode === 0 ? undefined : this.refusal(topic.errorCode)
      if (typeof topic.name === 'string')
        this.#topics.set(topic.name, { error, fetchedAt, id: topic.topicId, partitions })
    }
  }

  /** An error code by its name. */
  refusal(errorCode: number, text?: string | null): ProtocolRefusal {
    const names = this.module.protocolErrorsCodesById as unknown as Readonly<Record<string, string | undefined>>
    return new ProtocolRefusal(names[errorCode] ?? `ERROR_${errorCode}`, text)
  }

  #connectionOptions(lane: string, { host }: Address): ConnectionOptions {
    const { connectTimeoutMs, sasl, ssl } = this.#settings
    const tls = ssl === true ? {} : ssl === false ? undefined : ssl
    return {
      connectTimeout: connectTimeoutMs,
      requestTimeout: this.#options.slowLanes?.[lane] ?? this.#options.requestTimeoutMs,
      ...(tls === undefined ? {} : { tls, tlsServerName: tls.servername === undefined && isIP(host) === 0 }),
      ...(sasl === undefined ? {} : { sasl: saslOf(sasl) }),
    }
  }
}

function saslOf(sasl: KafkaSasl): SASLOptions {
  if (sasl.mechanism === 'oauthbearer') {
    const { oauthBearerProvider } = sasl
    return { mechanism: 'OAUTHBEARER', token: async () => (await oauthBearerProvider()).value }
  }
  const mechanism = { plain: 'PLAIN', 'scram-sha-256': 'SCRAM-SHA-256', 'scram-sha-512': 'SCRAM-SHA-512' } as const
  return { mechanism: mechanism[sasl.mechanism], password: sasl.password, username: sasl.username }
}

function addressOf(text: string): Address {
  const colon = text.lastIndexOf(':')
  return { host: text.slice(0, colon).replaceAll(/^\[|\]$/g, ''), port: Number(text.slice(colon + 1)) }
}

function nameOf({ host, port }: Address): string {
  return `${host}:${port}`
}
