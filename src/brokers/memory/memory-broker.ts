import type { Clock } from '../../core/clock.ts'
import { delay, systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import { OptionCheck } from '../../core/options.ts'
import type { ErrorClass, Outcome, Unresolved } from '../broker.ts'
import { Group } from './group.ts'
import type { Member } from './member.ts'
import { PublishFaults } from './publish-faults.ts'
import type { PublishFault } from './publish-faults.ts'
import { TopicLog } from './topic-log.ts'

const MAX_PARTITIONS = 1024
const MAX_TOPICS = 10_000
const MAX_GROUPS = 10_000

/** How a {@link MemoryBroker} behaves. */
export interface MemoryBrokerOptions {
  /** Make a topic when the first message for it comes. Convenient in a first try; hides a misspelt topic. Default: false. */
  readonly autoCreateTopics?: boolean
  /** Time. Default: the machine's. */
  readonly clock?: Clock
  /** The largest message: key, headers and payload, bytes. A larger one is poison. Default: 1048576. */
  readonly maxMessageBytes?: number
  /**
   * How much a topic may hold, bytes. When it is full, what every group has committed is dropped; if that is not
   * enough, publishes are answered `retry` until a group has moved on. Raise it for a long backlog; it costs memory.
   * Default: 268435456.
   */
  readonly maxTopicBytes?: number
  /** How many messages a topic may hold; as `maxTopicBytes`. Default: 1000000. */
  readonly maxTopicMessages?: number
  /** Partitions of a topic that is made without saying how many. More let more members share it. Default: 4. */
  readonly partitions?: number
}

/** What a {@link MemoryBroker} holds. */
export interface MemoryBrokerStats {
  readonly groups: Readonly<
    Record<string, { readonly generation: number; readonly lag: number; readonly members: number }>
  >
  readonly topics: Readonly<
    Record<string, { readonly bytes: number; readonly messages: number; readonly partitions: number }>
  >
}

/**
 * A broker in this process. It keeps topics, partitions, groups and their committed positions for as long as it is
 * referenced; clients come and go (`memory({ host })`, or over a socket by `serveMemory`).
 *
 * Retention: a message stays until its topic is full *and* every group that reads the topic has committed it. So
 * nothing that somebody still needs is ever dropped, a group that comes late finds whatever is left, and memory is
 * bounded by `maxTopicBytes` and `maxTopicMessages` for each topic. A topic that nobody reads fills up and then holds
 * its publishers: delete it, or give it a reader.
 */
export class MemoryBroker {
  /** Makes publishes fail, for tests. */
  readonly faults = new PublishFaults()
  /** @internal */
  readonly clock: Clock
  readonly maxMessageBytes: number
  readonly #autoCreateTopics: boolean
  readonly #maxTopicBytes: number
  readonly #maxTopicMessages: number
  readonly #partitions: number
  readonly #topics = new Map<string, TopicLog>()
  readonly #groups = new Map<string, Group>()

  /** @internal Use {@link createMemoryBroker}. */
  constructor(options: MemoryBrokerOptions) {
    this.clock = options.clock ?? systemClock
    this.maxMessageBytes = options.maxMessageBytes ?? 1024 * 1024
    this.#autoCreateTopics = options.autoCreateTopics ?? false
    this.#maxTopicBytes = options.maxTopicBytes ?? 256 * 1024 * 1024
    this.#maxTopicMessages = options.maxTopicMessages ?? 1_000_000
    this.#partitions = options.partitions ?? 4
  }

  /** Makes the topic unless it is there; the number of its partitions never changes. */
  createTopic(name: string, partitions = this.#partitions): void {
    if (this.#topics.has(name)) return
    if (!isTopicName(name) || !Number.isInteger(partitions) || partitions < 1 || partitions > MAX_PARTITIONS) {
      throw new MillraceError(
        'CONFIG_INVALID',
        `a topic has a name of 1 to 249 characters and 1 to ${MAX_PARTITIONS} partitions`,
      )
    }
    if (this.#topics.size >= MAX_TOPICS) throw new MillraceError('CONFIG_INVALID', `at most ${MAX_TOPICS} topics`)
    this.#topics.set(name, new TopicLog(name, partitions))
    for (const group of this.#groups.values()) group.discover(name)
  }

  /** Deletes the topic with what it holds, and the groups' positions in it. */
  deleteTopic(name: string): void {
    if (this.#topics.delete(name)) for (const group of this.#groups.values()) group.forget(name)
  }

  /** Takes all partitions from the members of a group without asking, as if their sessions had expired. For tests. */
  expireMembers(group: string): void {
    this.#groups.get(group)?.expire()
  }

  stats(): MemoryBrokerStats {
    const groups = [...this.#groups].map(([name, group]) => {
      return [name, { generation: group.generation, lag: group.lag(), members: group.members.size }] as const
    })
    const topics = [...this.#topics].map(([name, { bytes, messages, partitions }]) => {
      return [name, { bytes, messages, partitions: partitions.length }] as const
    })
    return { groups: Object.fromEntries(groups), topics: Object.fromEntries(topics) }
  }

  /** @internal Answers at once, unless a fault asks for a delay. */
  publish(batch: readonly OutgoingMessage[]): readonly Unresolved[] | Promise<readonly Unresolved[]> {
    const fault = this.faults.take()
    if (fault === undefined) return this.#store(batch)
    return this.#meet(fault, batch)
  }

  /** @internal */
  join(name: string, member: Member): void {
    let group = this.#groups.get(name)
    if (group === undefined) {
      if (this.#groups.size >= MAX_GROUPS) throw new MillraceError('CONFIG_INVALID', `at most ${MAX_GROUPS} groups`)
      this.#groups.set(name, (group = new Group(this.#topics)))
    }
    group.join(member)
  }

  /** @internal */
  leave(name: string, member: Member): void {
    this.#groups.get(name)?.leave(member)
  }

  async #meet(fault: PublishFault, batch: readonly OutgoingMessage[]): Promise<readonly Unresolved[]> {
    if (fault.delayMs !== undefined) await delay(this.clock, fault.delayMs)
    if (fault.refuse !== undefined) {
      const error = new MillraceError('PUBLISH_REFUSED', `the memory broker was told to refuse this: ${fault.refuse}`)
      return everyOf(batch, 'failed', fault.refuse, error)
    }
    const unresolved = this.#store(batch)
    if (fault.loseAnswer !== true) return unresolved
    return everyOf(batch, 'unknown', 'retry', new MillraceError('CONNECTION_LOST', 'the answer was lost, as told'))
  }

  #store(batch: readonly OutgoingMessage[]): readonly Unresolved[] {
    const unresolved: Unresolved[] = []
    const held = new Map<string, Unresolved>()
    const touched = new Set<TopicLog>()
    for (let index = 0; index < batch.length; index++) {
      const message = batch[index] as OutgoingMessage
      const holder = message.key === null ? undefined : held.get(message.key)
      if (holder !== undefined) {
        unresolved.push({ index, outcome: 'unsent', class: holder.class, error: holder.error })
        continue
      }
      const stored = this.#storeOne(message)
      if (stored instanceof TopicLog) {
        touched.add(stored)
        continue
      }
      const entry: Unresolved = { index, outcome: 'failed', ...stored }
      unresolved.push(entry)
      if (message.key !== null) held.set(message.key, entry)
    }
    for (const topic of touched) for (const group of this.#groups.values()) group.wake(topic.name)
    return unresolved
  }

  #storeOne(message: OutgoingMessage): TopicLog | { readonly class: ErrorClass; readonly error: Error } {
    const sizeBytes = sizeOf(message)
    const details = { id: message.id, topic: message.topic, sizeBytes }
    if (sizeBytes > this.maxMessageBytes) {
      const text = `a message of ${sizeBytes} bytes is larger than the ${this.maxMessageBytes} the broker takes`
      return { class: 'poison', error: new MillraceError('MESSAGE_REJECTED', text, { details }) }
    }
    if (this.#autoCreateTopics && isTopicName(message.topic) && this.#topics.size < MAX_TOPICS) {
      this.createTopic(message.topic)
    }
    const topic = this.#topics.get(message.topic)
    if (topic === undefined) {
      const text = `there is no topic ${message.topic}: make it by broker.admin.createTopic, or set autoCreateTopics`
      return { class: 'poison', error: new MillraceError('MESSAGE_REJECTED', text, { details }) }
    }
    if (!this.#hasRoom(topic, sizeBytes)) {
      this.#dropConsumed(topic)
      if (!this.#hasRoom(topic, sizeBytes)) {
        const text =
          `topic ${topic.name} is full: ${topic.messages} messages, ${topic.bytes} bytes, not yet committed by every ` +
          'group. It takes more as soon as its readers have moved on; or raise maxTopicBytes and maxTopicMessages'
        return { class: 'retry', error: new MillraceError('PUBLISH_REFUSED', text, { details }) }
      }
    }
    topic.append(message, sizeBytes)
    return topic
  }

  #hasRoom(topic: TopicLog, sizeBytes: number): boolean {
    return topic.messages < this.#maxTopicMessages && topic.bytes + sizeBytes <= this.#maxTopicBytes
  }

  #dropConsumed(topic: TopicLog): void {
    topic.drop((partition) => {
      let floor: number | undefined
      for (const group of this.#groups.values()) {
        const committed = group.floorOf(topic.name, partition)
        if (committed !== undefined) floor = Math.min(floor ?? committed, committed)
      }
      return floor ?? 0
    })
  }
}

/** Makes a broker in this process. */
export function createMemoryBroker(options: MemoryBrokerOptions = {}): MemoryBroker {
  const known = ['autoCreateTopics', 'clock', 'maxMessageBytes', 'maxTopicBytes', 'maxTopicMessages', 'partitions']
  const check = new OptionCheck('createMemoryBroker', options, known)
  check.integer('maxMessageBytes', 1, 16 * 1024 * 1024)
  check.integer('maxTopicBytes', 1, Number.MAX_SAFE_INTEGER)
  check.integer('maxTopicMessages', 1, Number.MAX_SAFE_INTEGER)
  check.integer('partitions', 1, MAX_PARTITIONS)
  check.done()
  return new MemoryBroker(options)
}

/** Key, headers and payload, bytes. */
export function sizeOf(message: OutgoingMessage): number {
  let size = message.payload.length
  if (message.key !== null) size += Buffer.byteLength(message.key)
  for (const name in message.headers) {
    size += Buffer.byteLength(name) + Buffer.byteLength(message.headers[name] as string)
  }
  return size
}

/** The same outcome for every message of the batch. */
export function everyOf(
  batch: readonly OutgoingMessage[],
  outcome: Outcome,
  errorClass: ErrorClass,
  error: Error,
): Unresolved[] {
  return batch.map((_, index) => ({ index, outcome, class: errorClass, error }))
}

function isTopicName(name: string): boolean {
  return name !== '' && name.length <= 249
}
