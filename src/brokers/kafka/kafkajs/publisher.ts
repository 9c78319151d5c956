/**
 * Sends pages through an idempotent producer: one `sendBatch` per publish, or a few one after the other where the page
 * is too large for one record batch per partition (`planParts`).
 *
 * kafkajs answers for a whole `sendBatch` with one error, the first it met, whatever became of the other partitions. So
 * after a failure the part is sent again partition by partition, to learn which of them are unwell: one sick partition
 * (or one missing topic, or one record the broker will not have) then keeps nobody else waiting. A partition whose batch
 * is refused for what is in it is halved until the message to blame stands alone.
 *
 * Re-sending uses the same producer, with the same sequence numbers, where the broker refused; the broker then drops
 * what it has. After anything indefinite it uses a new one, and what had been stored is stored twice, whole and in
 * order: the message id makes that harmless. A producer that met any failure is never used for another publish.
 */
import { systemClock } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { OutgoingMessage } from '../../../core/message.ts'
import type { ErrorClass, Publisher, PublisherOptions, Unresolved } from '../../broker.ts'
import { planParts } from '../batch-plan.ts'
import { BATCH_OVERHEAD_BYTES, ProduceRecord } from '../produce-record.ts'
import { BatchOutcome } from './batch-outcome.ts'
import type { Connector } from './connections.ts'
import { classify, innermost, outcomeOf } from './error-class.ts'
import type { Verdict } from './error-class.ts'
import type { Settings } from './options.ts'
import { ProducerSession } from './producer-session.ts'

const TIMEOUT_MS = 10_000
const CLOSE_MS = 5000

/** The largest request. kafkajs copies a request several times over while it encodes it. */
const REQUEST_BYTES = 8 * 1024 * 1024

/** Finding out what failed is not begun with less time than this. */
const ISOLATION_MS = 100

export class KafkajsPublisher implements Publisher {
  readonly #batchBytes = new Map<string, number>()
  readonly #connector: Connector
  readonly #discarding = new Set<Promise<void>>()
  readonly #missingSince = new Map<string, number>()
  readonly #partitionCounts = new Map<string, number>()
  readonly #settings: Settings
  readonly #timeoutMs: number
  #closing: Promise<void> | undefined
  #opening: Promise<ProducerSession> | undefined
  #publishing: Promise<unknown> = Promise.resolve()
  #running = 0
  #session: ProducerSession | undefined
  #started = false

  constructor(connector: Connector, settings: Settings, options: PublisherOptions = {}) {
    this.#connector = connector
    this.#settings = settings
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS
  }

  async start(): Promise<void> {
    if (this.#closing !== undefined) throw stopped()
    if (this.#started) return
    try {
      this.#session = await this.#open(this.#timeoutMs)
      this.#started = true
    } catch (error) {
      throw unreachable(error, this.#settings)
    }
  }

  publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]> {
    if (this.#closing !== undefined) return Promise.reject(stopped())
    if (!this.#started) {
      return Promise.reject(
        new MillraceError('LIFECYCLE_NOT_STARTED', 'Call start() of the publisher before publish().'),
      )
    }
    if (signal?.aborted === true) return Promise.reject(signal.reason as Error)
    const publishing = this.#publish(batch)
    this.#publishing = publishing
    return publishing
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#publishing.catch(() => {})
    await this.#session?.close(CLOSE_MS)
    this.#session = undefined
    await Promise.all(this.#discarding)
  }

  async #publish(batch: readonly OutgoingMessage[]): Promise<Unresolved[]> {
    const outcome = new BatchOutcome()
    const records: ProduceRecord[] = []
    const largest = this.#settings.maxMessageBytes - BATCH_OVERHEAD_BYTES
    for (let i = 0; i < batch.length; i++) {
      const message = batch[i] as OutgoingMessage
      if (outcome.holds(i, message.key)) continue
      const record = new ProduceRecord(i, message, message.key === null ? this.#nextRunning() : 0)
      if (record.sizeBytes > largest) outcome.add(i, message.key, 'failed', 'poison', tooLarge(record, largest))
      else records.push(record)
    }
    const parts = planParts(records, {
      batchBytesOf: (topic) => this.#batchBytes.get(topic) ?? this.#settings.maxMessageBytes,
      partitionsOf: (topic) => this.#partitionCounts.get(topic),
      requestBytes: REQUEST_BYTES,
    })
    const deadline = systemClock.monotonic() + this.#timeoutMs
    for (const part of parts) await this.#sendPart(outcome.sendable(part), outcome, deadline)
    if (this.#session?.tainted === true) this.#discard()
    return outcome.unresolved()
  }

  /** Sends a part as one batch and, if that fails, partition by partition. */
  async #sendPart(records: readonly ProduceRecord[], outcome: BatchOutcome, deadline: number): Promise<void> {
    if (records.length === 0) return
    let verdict: Verdict
    let left = records
    try {
      const session = await this.#current(deadline)
      const uncovered = await session.send(records, this.#left(deadline))
      if (uncovered.length === 0) return this.#stored(records)
      // Their leader moved while kafkajs was retrying, and it left them out: see ProducerSession.
      session.tainted = true
      left = uncovered
      verdict = classify(undefined)
    } catch (error) {
      verdict = classify(error)
    }
    const groups = byPartition(left)
    const alone = groups.length === 1 && left === records
    const late = deadline - systemClock.monotonic() < ISOLATION_MS
    // Without a session nobody answers, or nobody is let in: no partition can do better than the others.
    if (late || (alone && !verdict.splits) || this.#session === undefined) {
      this.#resolve(left, verdict, outcome)
      return
    }
    if (verdict.renew) this.#discard()
    await Promise.all(groups.map((group) => this.#sendGroup(group, outcome, deadline, alone ? verdict : undefined)))
  }

  /** Sends the records of one partition (or of one topic nobody knows yet); halves them where that finds who is to blame. */
  async #sendGroup(
    records: readonly ProduceRecord[],
    outcome: BatchOutcome,
    deadline: number,
    known?: Verdict,
  ): Promise<void> {
    let verdict = known
    if (verdict === undefined) {
      try {
        const session = await this.#current(deadline)
        const uncovered = await session.send(records, this.#left(deadline))
        if (uncovered.length === 0) return this.#stored(records)
        verdict = classify(undefined)
      } catch (error) {
        verdict = classify(error)
      }
    }
    if (!verdict.splits || records.length === 1) {
      this.#resolve(records, verdict, outcome)
      return
    }
    this.#learnBatchBytes(records, verdict)
    const middle = records.length >> 1
    await this.#sendGroup(records.slice(0, middle), outcome, deadline)
    const rest = outcome.sendable(records.slice(middle))
    if (rest.length > 0) await this.#sendGroup(rest, outcome, deadline)
  }

  #resolve(records: readonly ProduceRecord[], verdict: Verdict, outcome: BatchOutcome): void {
    for (const record of records) {
      const errorClass = this.#classOf(record.message.topic, verdict)
      const result = outcomeOf({ ...verdict, class: errorClass }, record.attempts)
      outcome.add(record.index, record.message.key, result, errorClass, errorFor(record, errorClass, verdict))
    }
  }

  /** The error's class; a topic that has been missing for long is poison. */
  #classOf(topic: string, verdict: Verdict): ErrorClass {
    if (!verdict.unknownTopic) return verdict.class
    const now = systemClock.monotonic()
    const since = this.#missingSince.get(topic)
    if (since === undefined) this.#missingSince.set(topic, now)
    return now - (since ?? now) >= this.#settings.unknownTopicMs ? 'poison' : 'retry'
  }

  #stored(records: readonly ProduceRecord[]): void {
    if (this.#missingSince.size === 0) return
    for (const record of records) this.#missingSince.delete(record.message.topic)
  }

  /** The topic takes smaller batches than we were told: cut the next pages accordingly. */
  #learnBatchBytes(records: readonly ProduceRecord[], verdict: Verdict): void {
    const topic = records[0]?.message.topic
    if (topic === undefined || (verdict.cause as { type?: unknown }).type !== 'MESSAGE_TOO_LARGE') return
    const bytes = records.reduce((sum, record) => sum + record.sizeBytes, BATCH_OVERHEAD_BYTES)
    this.#batchBytes.set(topic, Math.min(this.#batchBytes.get(topic) ?? Infinity, bytes >> 1))
  }

  async #current(deadline: number): Promise<ProducerSession> {
    if (this.#session !== undefined) return this.#session
    this.#opening ??= this.#open(this.#left(deadline)).finally(() => (this.#opening = undefined))
    return (this.#session = await this.#opening)
  }

  #open(withinMs: number): Promise<ProducerSession> {
    return ProducerSession.open(this.#connector, this.#partitionCounts, this.#timeoutMs, withinMs)
  }

  /** Throws the producer away. Its sockets are closed before this returns, so nothing of it is in flight afterwards. */
  #discard(): void {
    const session = this.#session
    if (session === undefined) return
    this.#session = undefined
    session.abandon()
    const settled = session.settled().finally(() => this.#discarding.delete(settled))
    this.#discarding.add(settled)
  }

  #left(deadline: number): number {
    return Math.max(1, deadline - systemClock.monotonic())
  }

  #nextRunning(): number {
    return (this.#running = (this.#running + 1) & 0x7fffffff)
  }
}

/** The records by partition; those that never got one, by topic. */
function byPartition(records: readonly ProduceRecord[]): ProduceRecord[][] {
  const groups = new Map<string, ProduceRecord[]>()
  for (const record of records) {
    const name = `${record.partition ?? '?'} ${record.message.topic}`
    const group = groups.get(name)
    if (group === undefined) groups.set(name, [record])
    else group.push(record)
  }
  return [...groups.values()]
}

function errorFor(record: ProduceRecord, errorClass: ErrorClass, verdict: Verdict): MillraceError {
  const { id, topic } = record.message
  const why = reasonOf(verdict)
  const details = { bytes: record.sizeBytes, id, partition: record.partition, topic }
  const options = { cause: verdict.cause, details }
  switch (errorClass) {
    case 'fatal':
      return new MillraceError('PUBLISH_FATAL', `Kafka lets nothing into topic ${topic}: ${why}`, options)
    case 'poison':
      return new MillraceError(
        'MESSAGE_REJECTED',
        `Kafka will never store message ${id} in topic ${topic}: ${why}`,
        options,
      )
    case 'retry':
    case 'throttle':
      return new MillraceError(
        'PUBLISH_REFUSED',
        `Kafka did not store message ${id} in topic ${topic}: ${why}`,
        options,
      )
  }
}

function reasonOf({ cause, unknownTopic }: Verdict): string {
  if (unknownTopic) return 'the topic does not exist; create it, or correct the name in the event'
  return cause instanceof Error ? cause.message : 'the brokers changed places before it was stored'
}

function tooLarge(record: ProduceRecord, largest: number): MillraceError {
  const { id, topic } = record.message
  return new MillraceError(
    'MESSAGE_REJECTED',
    `Message ${id} takes ${record.sizeBytes} bytes in topic ${topic}, above the limit of ${largest}: make it smaller, ` +
      `or raise the topic's max.message.bytes and the adapter's maxMessageBytes together.`,
    { details: { bytes: record.sizeBytes, id, topic } },
  )
}

function unreachable(error: unknown, settings: Settings): Error {
  const verdict = classify(error)
  if (error instanceof MillraceError && error.code === 'PEER_MISSING') return error
  const cause = innermost(error)
  const why = cause instanceof Error ? cause.message : String(cause)
  return verdict.class === 'fatal'
    ? new MillraceError('PUBLISH_FATAL', `Kafka at ${settings.brokers.join(', ')} refuses this client: ${why}`, {
        cause,
      })
    : new MillraceError('BROKER_UNREACHABLE', `No Kafka broker answers at ${settings.brokers.join(', ')}: ${why}`, {
        cause,
      })
}

function stopped(): MillraceError {
  return new MillraceError('LIFECYCLE_STOPPED', 'The publisher is closed; make a new one.')
}
