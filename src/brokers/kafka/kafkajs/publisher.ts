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
import { isMillraceError } from '../../../core/errors.ts'
import type { OutgoingMessage } from '../../../core/message.ts'
import type { Publisher, PublisherOptions, Unresolved } from '../../broker.ts'
import { planParts } from '../batch-plan.ts'
import { MissingTopics } from '../missing-topics.ts'
import { BATCH_OVERHEAD_BYTES, ProduceRecord } from '../produce-record.ts'
import { batchBytesAlone } from '../record-size.ts'
import { TopicLimits } from '../topic-limits.ts'
import { notStarted, publisherClosed, publisherNotStarted, publishError, tooLarge } from '../publish-error.ts'
import { BatchOutcome } from '../batch-outcome.ts'
import type { Connector } from './connections.ts'
import { classify, outcomeOf } from './error-class.ts'
import type { Verdict } from './error-class.ts'
import type { Settings } from './options.ts'
import { ProducerSession } from './producer-session.ts'
import { askTopicsOf } from './topic-configs.ts'

const TIMEOUT_MS = 10_000
const CLOSE_MS = 5000

/** The largest request. kafkajs copies a request several times over while it encodes it. */
const REQUEST_BYTES = 8 * 1024 * 1024

/** Finding out what failed is not begun with less time than this. */
const ISOLATION_MS = 100

export class KafkajsPublisher implements Publisher {
  readonly #connector: Connector
  readonly #discarding = new Set<Promise<void>>()
  readonly #limits: TopicLimits
  readonly #missing: MissingTopics
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
    this.#limits = new TopicLimits(askTopicsOf(connector), settings.batchCeilingBytes)
    this.#missing = new MissingTopics(settings.unknownTopicMs)
    this.#settings = settings
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS
  }

  async start(): Promise<void> {
    if (this.#closing !== undefined) throw publisherClosed()
    if (this.#started) return
    try {
      this.#session = await this.#open(this.#timeoutMs)
      this.#started = true
    } catch (error) {
      if (isMillraceError(error, 'PEER_MISSING')) throw error
      throw notStarted(classify(error), this.#settings)
    }
  }

  publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]> {
    if (this.#closing !== undefined) return Promise.reject(publisherClosed())
    if (!this.#started) return Promise.reject(publisherNotStarted())
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
    const deadline = systemClock.monotonic() + this.#timeoutMs
    const outcome = new BatchOutcome()
    const missing = await this.#limits.learn(this.#newTopics(batch), this.#left(deadline))
    const records: ProduceRecord[] = []
    // What may have to wait for a topic that is not there goes last, so that nobody else waits for it.
    const last: ProduceRecord[] = []
    const lastKeys = new Set<string>()
    for (let i = 0; i < batch.length; i++) {
      const message = batch[i] as OutgoingMessage
      const { key, topic } = message
      if (outcome.holds(i, key)) continue
      const record = new ProduceRecord(i, message, key === null ? this.#nextRunning() : 0)
      if (missing.size > 0 && missing.has(topic)) {
        // Sent once all the same, for the broker may be one that makes topics as they are asked for.
        if (this.#missing.knows(topic)) this.#resolve([record], classify(NO_SUCH_TOPIC), outcome)
        else {
          last.push(record)
          if (key !== null) lastKeys.add(key)
        }
      } else if (
        record.sizeBytes + BATCH_OVERHEAD_BYTES > this.#limits.of(topic) &&
        (await this.#limits.refuses(topic, batchBytesAlone(record), this.#left(deadline)))
      ) {
        outcome.add(i, key, 'failed', 'poison', tooLarge(record, this.#limits.of(topic) - BATCH_OVERHEAD_BYTES))
      } else if (key !== null && lastKeys.has(key)) last.push(record)
      else records.push(record)
    }
    for (const list of [records, last]) {
      const parts = planParts(list, {
        batchBytesOf: (topic) => this.#limits.of(topic),
        partitionsOf: (topic) => this.#partitionCounts.get(topic),
        requestBytes: REQUEST_BYTES,
      })
      for (const part of parts) {
        await this.#sendPart(outcome.sendable(part), outcome, deadline)
        this.#discardTainted()
      }
    }
    return outcome.unresolved()
  }

  /** The topics of a page of which the cluster has not told us. */
  #newTopics(batch: readonly OutgoingMessage[]): string[] {
    const fresh = new Set<string>()
    let previous: string | undefined
    for (const { topic } of batch) {
      if (topic === previous) continue
      previous = topic
      if (this.#limits.isNew(topic)) fresh.add(topic)
      else this.#limits.refresh(topic)
    }
    return [...fresh]
  }

  /** Sends a part as one batch and, if that fails, partition by partition. */
  async #sendPart(records: readonly ProduceRecord[], outcome: BatchOutcome, deadline: number): Promise<void> {
    if (records.length === 0) return
    let verdict: Verdict
    let left = records
    try {
      const session = await this.#current(deadline)
      const uncovered = await session.send(records, this.#left(deadline))
      if (uncovered.length === 0) return this.#missing.stored(records)
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
    const waves = wavesOf(left)
    // Cut otherwise than before, the batches must not have the same sequence numbers.
    if (verdict.renew || waves.length > 1) this.#discard()
    for (const wave of waves) {
      const apart = byPartition(outcome.sendable(wave))
      await Promise.all(apart.map((group) => this.#sendGroup(group, outcome, deadline, alone ? verdict : undefined)))
      this.#discardTainted()
    }
  }

  /**
   * Sends the records of one partition (or of one topic nobody knows yet); halves them where that finds who is to blame.
   * Resolves with a verdict that is not about what is in them, after which nothing more may be sent to the partition: the
   * producer would give it the sequence numbers of what failed, and the broker, if it has that, would drop it as known.
   */
  async #sendGroup(
    records: readonly ProduceRecord[],
    outcome: BatchOutcome,
    deadline: number,
    known?: Verdict,
  ): Promise<Verdict | undefined> {
    let verdict = known
    if (verdict === undefined) {
      try {
        const session = await this.#current(deadline)
        const uncovered = await session.send(records, this.#left(deadline))
        if (uncovered.length === 0) {
          this.#missing.stored(records)
          return undefined
        }
        session.tainted = true
        verdict = classify(undefined)
      } catch (error) {
        verdict = classify(error)
      }
    }
    if (!verdict.splits || records.length === 1) {
      this.#resolve(records, verdict, outcome)
      return verdict.splits ? undefined : verdict
    }
    this.#learnBatchBytes(records, verdict)
    const middle = records.length >> 1
    const failure = await this.#sendGroup(records.slice(0, middle), outcome, deadline)
    const rest = outcome.sendable(records.slice(middle))
    if (rest.length === 0) return failure
    if (failure === undefined) return this.#sendGroup(rest, outcome, deadline)
    this.#resolve(rest, failure, outcome)
    return failure
  }

  #resolve(records: readonly ProduceRecord[], verdict: Verdict, outcome: BatchOutcome): void {
    for (const record of records) {
      if (verdict.unknownTopic) this.#limits.forget(record.message.topic)
      const errorClass = this.#missing.classOf(record.message.topic, verdict)
      const result = outcomeOf({ ...verdict, class: errorClass }, record.attempts)
      outcome.add(record.index, record.message.key, result, errorClass, publishError(record, errorClass, verdict))
    }
  }

  /** The topic takes smaller batches than we were told: cut the next pages accordingly. */
  #learnBatchBytes(records: readonly ProduceRecord[], verdict: Verdict): void {
    const topic = records[0]?.message.topic
    const { type } = verdict.cause as { readonly type?: string }
    if (topic === undefined || (type !== 'MESSAGE_TOO_LARGE' && type !== 'RECORD_LIST_TOO_LARGE')) return
    this.#limits.refused(
      topic,
      records.reduce((sum, record) => sum + record.sizeBytes, BATCH_OVERHEAD_BYTES),
    )
  }

  async #current(deadline: number): Promise<ProducerSession> {
    if (this.#session !== undefined) return this.#session
    this.#opening ??= this.#open(this.#left(deadline)).finally(() => (this.#opening = undefined))
    return (this.#session = await this.#opening)
  }

  #open(withinMs: number): Promise<ProducerSession> {
    return ProducerSession.open(this.#connector, this.#partitionCounts, this.#timeoutMs, withinMs)
  }

  /** A producer that met a failure sends nothing more; whatever it was sending has been answered or given up. */
  #discardTainted(): void {
    if (this.#session?.tainted === true) this.#discard()
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

/**
 * The records in steps, so that those of a key that is used in several topics are never under way in two topics at once:
 * what is sent apart may be stored apart.
 */
function wavesOf(records: readonly ProduceRecord[]): ProduceRecord[][] {
  const waves: ProduceRecord[][] = []
  const last = new Map<string, { readonly topic: string; readonly wave: number }>()
  for (const record of records) {
    const { key, topic } = record.message
    const previous = key === null ? undefined : last.get(key)
    const wave = previous === undefined ? 0 : previous.wave + (previous.topic === topic ? 0 : 1)
    if (key !== null) last.set(key, { topic, wave })
    ;(waves[wave] ??= []).push(record)
  }
  return waves
}

const NO_SUCH_TOPIC = Object.assign(new Error('the cluster does not know the topic'), {
  type: 'UNKNOWN_TOPIC_OR_PARTITION',
})

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
