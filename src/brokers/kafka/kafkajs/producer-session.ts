/**
 * One idempotent producer, from its producer id to its end. After an error that leaves something unknown it is thrown
 * away with its sockets and a new one is made: kafkajs takes back the sequence numbers of a failed request, so the next
 * batch of the same length could be taken for the one that failed, and be dropped, if that one had been stored after all.
 */
import type { Message, Producer, RecordMetadata, TopicMessages } from 'kafkajs'
import { systemClock, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import { suppressTracing } from '../../../tracing/suppress.ts'
import type { ProduceRecord } from '../produce-record.ts'
import type { Connections, Connector } from './connections.ts'

const FIRST_RETRY_MS = 100
const MAX_RETRY_MS = 250
const MAX_RETRIES = 20

/** What the partitioner is told by kafkajs; `message` is the very object that was given to `sendBatch`. */
interface PartitionerArgs {
  readonly message: Message
  readonly partitionMetadata: readonly { readonly leader: number; readonly partitionId: number }[]
  readonly topic: string
}

export class ProducerSession {
  /** Whether anything failed on it, so that it must not be used for another publish. */
  tainted = false
  readonly #connections: Connections
  readonly #connector: Connector
  readonly #partitionCounts: Map<string, number>
  readonly #producer: Producer
  readonly #timeoutMs: number
  readonly #sending = new Set<Promise<unknown>>()

  private constructor(connector: Connector, connections: Connections, counts: Map<string, number>, timeoutMs: number) {
    this.#connector = connector
    this.#connections = connections
    this.#partitionCounts = counts
    this.#timeoutMs = timeoutMs
    this.#producer = connections.kafka.producer({
      // The broker's own setting decides, as with every other producer.
      allowAutoTopicCreation: true,
      // Given so that kafkajs neither warns nor looks into the environment.
      createPartitioner: () => (args) => this.#partitionOf(args as PartitionerArgs),
      idempotent: true,
      // One request at a time keeps the order of a partition whatever fails.
      maxInFlightRequests: 1,
      retry: retryWithin(timeoutMs),
    })
  }

  /**
   * Connects and takes a producer id. `timeoutMs` is the publisher's; `withinMs` how long this may take. Learns the
   * number of partitions of every topic that is sent to, in `counts`.
   */
  static async open(
    connector: Connector,
    counts: Map<string, number>,
    timeoutMs: number,
    withinMs: number,
  ): Promise<ProducerSession> {
    const connections = await connector.open({ requestTimeoutMs: timeoutMs, retry: retryWithin(timeoutMs) })
    const session = new ProducerSession(connector, connections, counts, timeoutMs)
    try {
      await withDeadline(systemClock, session.#producer.connect(), withinMs, () => timedOut('to connect', withinMs))
      return session
    } catch (error) {
      session.abandon()
      throw error
    }
  }

  /**
   * Sends the records as one batch. Resolves with those that no answer covers (none, as it should be); rejects with
   * kafkajs' error or, when the time is up, with a BROKER_UNREACHABLE of ours, after which the session is dead.
   */
  async send(records: readonly ProduceRecord[], withinMs: number): Promise<ProduceRecord[]> {
    // An instrumentation of kafkajs would write its own `traceparent` over the one that the event carries.
    const sending = suppressTracing(() =>
      this.#producer.sendBatch({ acks: -1, timeout: this.#timeoutMs, topicMessages: byTopic(records) }),
    )
    const settled: Promise<unknown> = sending.catch(() => {}).finally(() => this.#sending.delete(settled))
    this.#sending.add(settled)
    try {
      return uncovered(
        records,
        await withDeadline(systemClock, sending, withinMs, () => timedOut('to answer', withinMs)),
      )
    } catch (error) {
      this.tainted = true
      if (error instanceof MillraceError) this.abandon()
      throw error
    }
  }

  /** Disconnects in good order; what was sent must have been answered. */
  async close(withinMs: number): Promise<void> {
    try {
      await withDeadline(systemClock, this.#producer.disconnect(), withinMs, () => timedOut('to disconnect', withinMs))
    } catch {
      // Its sockets end all the same.
    } finally {
      this.abandon()
    }
  }

  /** Ends it at once: nothing that it was sending can reach the broker from now on. */
  abandon(): void {
    this.tainted = true
    this.#connector.release(this.#connections)
  }

  /** Resolves when kafkajs has given up what it was sending when the session was abandoned. */
  async settled(): Promise<void> {
    await Promise.all(this.#sending)
  }

  #partitionOf({ message, partitionMetadata, topic }: PartitionerArgs): number {
    // The last door before the wire: a retry that outlived its session ends here.
    if (this.#connections.killed) throw Object.assign(new Error('the producer was discarded'), { retriable: false })
    const record = message as unknown as ProduceRecord
    record.attempts++
    if (record.partition !== undefined) return record.partition
    const count = partitionMetadata.length
    this.#partitionCounts.set(topic, count)
    record.partition = record.hash % count
    if (record.key === null && partitionMetadata.some((one) => one.leader < 0)) {
      // Without a key any partition will do: take one that has a leader.
      const led = partitionMetadata.filter((one) => one.leader >= 0)
      record.partition = led[record.hash % led.length]?.partitionId ?? record.partition
    }
    return record.partition
  }
}

/** The topics in the order in which they first appear, each with its records in order. */
function byTopic(records: readonly ProduceRecord[]): TopicMessages[] {
  const topics = new Map<string, ProduceRecord[]>()
  for (const record of records) {
    const { topic } = record.message
    const list = topics.get(topic)
    if (list === undefined) topics.set(topic, [record])
    else list.push(record)
  }
  return Array.from(topics, ([topic, messages]) => ({ topic, messages: messages as unknown as Message[] }))
}

/**
 * The records that no answer covers. kafkajs resolves although it left some out: when the leader of a partition moves,
 * between a failed attempt and the next, to a broker that has answered for its own partitions already, the records of
 * the moved partition are not sent again.
 */
function uncovered(records: readonly ProduceRecord[], answers: readonly RecordMetadata[]): ProduceRecord[] {
  const covered = new Map<string, Set<number>>()
  for (const { partition, topicName } of answers) {
    const partitions = covered.get(topicName)
    if (partitions === undefined) covered.set(topicName, new Set([partition]))
    else partitions.add(partition)
  }
  return records.filter((one) => covered.get(one.message.topic)?.has(one.partition ?? -1) !== true)
}

/**
 * kafkajs' own retries: enough to ride out a change of leader with the same sequence numbers, which costs no duplicate,
 * and no more than about a quarter of the time a publish has, for the rest is needed to find out what failed. They come
 * four times a second, for each asks who leads now: with longer waits most of the time after a node's death is ours.
 */
export function retryWithin(timeoutMs: number): {
  factor: number
  initialRetryTime: number
  maxRetryTime: number
  multiplier: number
  retries: number
} {
  let retries = 1
  for (let wait = FIRST_RETRY_MS, total = wait; retries < MAX_RETRIES && total < timeoutMs / 4; retries++) {
    wait = Math.min(MAX_RETRY_MS, wait * 2)
    total += wait
  }
  return {
    factor: 0.2,
    initialRetryTime: FIRST_RETRY_MS,
    maxRetryTime: MAX_RETRY_MS,
    multiplier: 2,
    retries,
  }
}

function timedOut(what: string, afterMs: number): MillraceError {
  return new MillraceError('BROKER_UNREACHABLE', `Kafka took more than ${Math.round(afterMs)} ms ${what}`)
}
