/**
 * Sends pages through an idempotent producer: one produce request per broker and page, or a few one after the other
 * where the page is too large for one record batch per partition (`planParts`).
 *
 * A broker answers for every partition on its own, so a sick one (or one missing topic, or one record the broker will
 * not have) keeps nobody else waiting: the others are stored, and it is sent again alone. A partition whose batch is
 * refused for what is in it is halved until the message to blame stands alone.
 *
 * What has no answer is sent again with the same sequence numbers until the time is up; the broker drops what it has. If
 * it stays unknown, the producer is discarded with its connections when nothing else is in flight, and what had been
 * stored is stored twice, whole and in order: the message id makes that harmless.
 */
import { delay, systemClock } from '../../../core/clock.ts'
import { isMillraceError } from '../../../core/errors.ts'
import type { OutgoingMessage } from '../../../core/message.ts'
import type { Publisher, PublisherOptions, Unresolved } from '../../broker.ts'
import { BatchOutcome } from '../batch-outcome.ts'
import { planParts } from '../batch-plan.ts'
import { MissingTopics } from '../missing-topics.ts'
import { BATCH_OVERHEAD_BYTES, ProduceRecord } from '../produce-record.ts'
import { batchBytesAlone } from '../record-size.ts'
import { TopicLimits } from '../topic-limits.ts'
import { REFUSED, UNKNOWN } from '../protocol-verdict.ts'
import { notStarted, publisherClosed, publisherNotStarted, publishError, tooLarge } from '../publish-error.ts'
import type { Connector } from './connector.ts'
import { classify, ProtocolRefusal } from './error-class.ts'
import type { Verdict } from './error-class.ts'
import type { Settings } from './options.ts'
import { ProducerSession } from './producer-session.ts'
import type { GroupResult } from './producer-session.ts'
import { byTurns, RecordGroup } from './record-group.ts'
import { askTopicsOf } from './topic-configs.ts'

const TIMEOUT_MS = 10_000
const BACKOFF_FIRST_MS = 50
const BACKOFF_MAX_MS = 250

/** The largest request; `socket.request.max.bytes` of a broker is 100 MB. */
const REQUEST_BYTES = 16 * 1024 * 1024

/** How long a topic that was there is looked for when it is not, before its messages are told as not stored. */
const MISSING_MS = 600

const TOO_LARGE = new Set(['MESSAGE_TOO_LARGE', 'RECORD_LIST_TOO_LARGE'])

/** The groups of one partition, to be sent one after the other. */
type Lane = RecordGroup[]

interface Run {
  readonly deadline: number
  readonly outcome: BatchOutcome
  /** Refusals that may pass are not waited for any longer than until then. */
  readonly patienceEnd: number
  /** Nothing may be sent before the producer has a new id. */
  renew: boolean
  /** It stays unknown whether a batch was stored, so its sequence numbers are used up or not: nothing more is sent. */
  unknown: boolean
}

export class PlatformaticPublisher implements Publisher {
  readonly #connector: Connector
  readonly #limits: TopicLimits
  readonly #missing: MissingTopics
  readonly #settings: Settings
  readonly #timeoutMs: number
  #closing: Promise<void> | undefined
  #publishing: Promise<unknown> = Promise.resolve()
  #running = 0
  #session: ProducerSession | undefined
  #started = false

  constructor(connector: Connector, settings: Settings, options: PublisherOptions = {}) {
    this.#connector = connector
    this.#limits = new TopicLimits(
      askTopicsOf(() => this.#session?.client),
      settings.batchCeilingBytes,
    )
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
    this.#discard()
  }

  async #publish(batch: readonly OutgoingMessage[]): Promise<Unresolved[]> {
    const outcome = new BatchOutcome()
    if (batch.length === 0) return []
    const now = systemClock.monotonic()
    const run: Run = {
      deadline: now + this.#timeoutMs,
      outcome,
      patienceEnd: now + this.#timeoutMs / 2,
      renew: false,
      unknown: false,
    }
    const topics = new Set(batch.map((message) => message.topic))
    let failure: Verdict | undefined
    try {
      await this.#learnTopics(topics, run)
    } catch (error) {
      failure = classify(error)
      // Nothing was sent.
      if (failure.class === 'retry') failure = { ...REFUSED, cause: failure.cause }
    }
    const records: ProduceRecord[] = []
    for (let i = 0; i < batch.length; i++) {
      const message = batch[i] as OutgoingMessage
      const { key, topic } = message
      if (outcome.holds(i, key)) continue
      const record = new ProduceRecord(i, message, key === null ? this.#nextRunning() : 0)
      const bytes = record.sizeBytes + BATCH_OVERHEAD_BYTES
      // Most are far below the limit; how large it is to the byte is asked of the others only.
      if (
        bytes > this.#limits.of(topic) &&
        (await this.#limits.refuses(topic, batchBytesAlone(record), this.#left(run)))
      ) {
        outcome.add(i, key, 'failed', 'poison', tooLarge(record, this.#limits.of(topic) - BATCH_OVERHEAD_BYTES))
      } else if (failure !== undefined || this.#place(record, run)) records.push(record)
    }
    if (failure !== undefined) {
      this.#resolve(records, failure, false, outcome)
      return outcome.unresolved()
    }
    const parts = planParts(records, {
      batchBytesOf: (topic) => this.#limits.of(topic),
      partitionsOf: (topic) => this.#session?.client.known(topic)?.partitions.length,
      requestBytes: REQUEST_BYTES,
    })
    for (const part of parts.flatMap(byTurns)) await this.#sendPart(outcome.sendable(part), run)
    if (run.unknown || run.renew) this.#discard()
    return outcome.unresolved()
  }

  /** Asks for the topics, again for a moment where one is missing that was not missing before. */
  async #learnTopics(names: ReadonlySet<string>, run: Run): Promise<void> {
    const until = Math.min(systemClock.monotonic() + MISSING_MS, run.patienceEnd)
    for (let waitMs = BACKOFF_FIRST_MS; ; waitMs *= 2) {
      try {
        const session = (this.#session ??= await this.#open(this.#left(run)))
        const infos = await session.client.topics(names)
        const absent = [...infos].some(([name, info]) => isMissing(info.error) && !this.#missing.knows(name))
        if (!absent || systemClock.monotonic() + waitMs > until) break
      } catch (error) {
        // Its connections may be those of a broker that is gone; nothing is in flight.
        this.#discard()
        const passes = classify(error).class === 'retry'
        if (!passes || systemClock.monotonic() + waitMs > run.patienceEnd) throw error
      }
      await delay(systemClock, waitMs)
    }
    const fresh: string[] = []
    for (const name of names) {
      if (this.#session?.client.known(name)?.error !== undefined) this.#limits.forget(name)
      else if (this.#limits.isNew(name)) fresh.push(name)
      else this.#limits.refresh(name)
    }
    await this.#limits.learn(fresh, this.#left(run))
  }

  /** Gives the record its partition; one of a topic that cannot be used is told, and held with its key. */
  #place(record: ProduceRecord, run: Run): boolean {
    const info = this.#session?.client.known(record.message.topic)
    const count = info?.partitions.length ?? 0
    if (info === undefined || count === 0) {
      const verdict = classify(info?.error ?? new ProtocolRefusal('LEADER_NOT_AVAILABLE'))
      this.#resolve([record], verdict, false, run.outcome)
      return false
    }
    record.partition = record.hash % count
    if (record.key === null && (info.partitions[record.partition]?.leader ?? -1) < 0) {
      // Without a key any partition will do: take one that has a leader.
      const led = info.partitions.flatMap(({ leader }, partition) => (leader < 0 ? [] : [partition]))
      record.partition = led[record.hash % led.length] ?? record.partition
    }
    return true
  }

  /** Sends a part until every outcome is known or the time is up. */
  async #sendPart(records: readonly ProduceRecord[], run: Run): Promise<void> {
    const lanes = [...Map.groupBy(records, (record) => `${record.partition} ${record.message.topic}`).values()].map(
      (own): Lane => [new RecordGroup(own[0]?.message.topic ?? '', own[0]?.partition ?? 0, own)],
    )
    for (let waitMs = BACKOFF_FIRST_MS; ; waitMs = Math.min(BACKOFF_MAX_MS, waitMs * 2)) {
      let again = false
      for (const { group, verdict } of await this.#round(lanes, run)) {
        const lane = lanes.find((one) => one[0] === group) as Lane
        if (verdict === undefined) {
          this.#missing.stored(group.records)
          lane.shift()
        } else if (verdict.splits && group.records.length > 1) {
          // An earlier attempt without an answer was refused for the same reason, but may have used up its numbers.
          run.renew ||= group.indefinite
          this.#learnBatchBytes(group, verdict)
          lane.splice(0, 1, ...group.halves())
        } else if (this.#waits(group, verdict, run, waitMs)) {
          again = true
          run.renew ||= verdict.refused && verdict.renew && !verdict.unknownTopic
        } else {
          run.unknown ||= group.indefinite
          // Refused for ever, but perhaps stored by the attempt before: the next publish finds out.
          const poisoned = group.indefinite && verdict.class === 'poison'
          const last = poisoned ? { ...UNKNOWN, cause: verdict.cause } : verdict
          this.#resolve(group.records, last, group.indefinite, run.outcome)
          lane.shift()
        }
      }
      if (lanes.every((lane) => lane.length === 0)) return
      if (!again) continue
      await delay(systemClock, waitMs)
      await this.#refresh(lanes)
    }
  }

  /** Sends the first group of every lane, each to its leader, and waits for all of them. */
  async #round(lanes: readonly Lane[], run: Run): Promise<GroupResult[]> {
    const session = this.#session as ProducerSession
    const barred = await this.#barred(session, lanes, run)
    const byLeader = new Map<number, RecordGroup[]>()
    const results: GroupResult[] = []
    for (const lane of lanes) {
      const head = nextOf(lane, run.outcome)
      if (head === undefined) continue
      const leader = session.client.known(head.topic)?.partitions[head.partition]?.leader ?? -1
      const refusal = barred ?? (leader < 0 ? classify(new ProtocolRefusal('LEADER_NOT_AVAILABLE')) : undefined)
      if (refusal !== undefined) {
        results.push({ group: head, verdict: refusal })
        continue
      }
      const groups = byLeader.get(leader)
      if (groups === undefined) byLeader.set(leader, [head])
      else groups.push(head)
    }
    const left = this.#left(run)
    const sent = await Promise.all(Array.from(byLeader, ([node, groups]) => session.send(node, groups, left)))
    return [...results, ...sent.flat()]
  }

  /** Why nothing may be sent; undefined when it may. Takes a new producer id where that is due. */
  async #barred(session: ProducerSession, lanes: readonly Lane[], run: Run): Promise<Verdict | undefined> {
    const late = systemClock.monotonic() >= run.deadline
    if (run.unknown || late) return { ...REFUSED, cause: new Error('an earlier part has no answer, or the time is up') }
    if (!run.renew) return undefined
    try {
      await session.renew(this.#left(run))
      for (const group of lanes.flat()) group.encoded = undefined
      run.renew = false
      return undefined
    } catch (error) {
      return { ...REFUSED, cause: classify(error).cause }
    }
  }

  /** Whether it is worth sending again: what may pass for a while, what is unknown as long as there is time. */
  #waits(group: RecordGroup, verdict: Verdict, run: Run, waitMs: number): boolean {
    if (verdict.class !== 'retry') return false
    const end = group.indefinite ? run.deadline : run.patienceEnd
    return !run.unknown && systemClock.monotonic() + waitMs < end
  }

  /** Asks who leads the partitions now. */
  async #refresh(lanes: readonly Lane[]): Promise<void> {
    const names = new Set(lanes.flatMap((lane) => lane.map((group) => group.topic)))
    // Without an answer the next round finds out for itself.
    await this.#session?.client.topics(names, true).catch(() => {})
  }

  #resolve(records: readonly ProduceRecord[], verdict: Verdict, indefinite: boolean, outcome: BatchOutcome): void {
    for (const record of records) {
      const { key, topic } = record.message
      const errorClass = this.#missing.classOf(topic, verdict)
      const error = publishError(record, errorClass, verdict)
      outcome.add(record.index, key, indefinite ? 'unknown' : 'failed', errorClass, error)
    }
  }

  /** The topic takes smaller batches than we were told: cut the next pages accordingly. */
  #learnBatchBytes({ records, topic }: RecordGroup, { cause }: Verdict): void {
    if (!(cause instanceof ProtocolRefusal) || !TOO_LARGE.has(cause.apiId)) return
    this.#limits.refused(
      topic,
      records.reduce((sum, record) => sum + record.sizeBytes, BATCH_OVERHEAD_BYTES),
    )
  }

  #open(withinMs: number): Promise<ProducerSession> {
    return ProducerSession.open(this.#connector, this.#timeoutMs, withinMs)
  }

  /** Throws the producer away with its connections, so nothing of it is in flight afterwards. */
  #discard(): void {
    this.#session?.abandon()
    this.#session = undefined
  }

  #left(run: Run): number {
    return Math.max(1, run.deadline - systemClock.monotonic())
  }

  #nextRunning(): number {
    return (this.#running = (this.#running + 1) & 0x7fffffff)
  }
}

/** What is due of a lane: records whose key is held are taken out, if they were not sent yet. */
function nextOf(lane: Lane, outcome: BatchOutcome): RecordGroup | undefined {
  for (let head = lane[0]; head !== undefined; head = lane[0]) {
    if (head.attempts > 0) return head
    head.records = outcome.sendable(head.records)
    if (head.records.length > 0) return head
    lane.shift()
  }
  return undefined
}

function isMissing(error: ProtocolRefusal | undefined): boolean {
  return error !== undefined && classify(error).unknownTopic
}
