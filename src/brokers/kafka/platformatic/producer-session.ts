/**
 * One idempotent producer: a producer id, the next sequence number of every partition, and the connections it sends on.
 *
 * The sequence of a partition moves when a batch is stored, and only then. A batch without an answer is sent again as
 * the same bytes, which the broker drops if it has them; a batch that was refused leaves its numbers to the next one.
 * When it stays unknown whether a batch was stored, the producer must be discarded: its numbers are used up or not.
 *
 * At most one request per partition is in flight; the publisher sees to that.
 */
import type { Writer } from '@platformatic/kafka'
import { delay, systemClock, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import { REFUSED, UNKNOWN } from '../protocol-verdict.ts'
import type { Client } from './client.ts'
import type { Connector } from './connector.ts'
import { classify, verdictOf } from './error-class.ts'
import type { Verdict } from './error-class.ts'
import { encodeRecordBatch } from './record-batch.ts'
import type { RecordGroup } from './record-group.ts'

const RETRY_MS = 100
const SEQUENCE_MASK = 0x7fffffff

/** What became of a group; without a verdict it is stored. */
export interface GroupResult {
  readonly group: RecordGroup
  readonly verdict: Verdict | undefined
}

export class ProducerSession {
  readonly client: Client
  readonly #connector: Connector
  readonly #sequences = new Map<string, number>()
  readonly #timeoutMs: number
  #producerEpoch = -1
  #producerId = -1n

  private constructor(connector: Connector, client: Client, timeoutMs: number) {
    this.client = client
    this.#connector = connector
    this.#timeoutMs = timeoutMs
  }

  /** Connects and takes a producer id. `timeoutMs` is the publisher's; `withinMs` how long this may take. */
  static async open(connector: Connector, timeoutMs: number, withinMs: number): Promise<ProducerSession> {
    const client = await connector.open({ requestTimeoutMs: timeoutMs })
    const session = new ProducerSession(connector, client, timeoutMs)
    try {
      await session.renew(withinMs)
      return session
    } catch (error) {
      session.abandon()
      throw error
    }
  }

  /** Takes a new producer id; every sequence begins anew. Nothing may be in flight. */
  async renew(withinMs: number): Promise<void> {
    const deadline = systemClock.monotonic() + withinMs
    for (;;) {
      const left = deadline - systemClock.monotonic()
      try {
        return await withDeadline(systemClock, this.#takeProducerId(), Math.max(1, left), () => tooLate(withinMs))
      } catch (error) {
        // A coordinator that is loading, as it is after a broker's start.
        const passes = classify(error).class === 'retry' && !this.client.killed
        if (!passes || deadline - systemClock.monotonic() < (3 * withinMs) / 4) throw error
        await delay(systemClock, RETRY_MS)
      }
    }
  }

  /** Sends the groups to the broker that leads their partitions, as one request. Never rejects. */
  async send(node: number, groups: readonly RecordGroup[], withinMs: number): Promise<GroupResult[]> {
    const deadline = systemClock.monotonic() + withinMs
    let sent = false
    let over = false
    const request = async (): Promise<GroupResult[]> => {
      const link = await this.client.broker(node, 'produce')
      const body = this.#encode(groups)
      // A timer may fire before its time.
      if (over || this.client.killed || systemClock.monotonic() >= deadline) throw tooLate(withinMs)
      sent = true
      for (const group of groups) group.attempts++
      const { responses } = await link.produce(body)
      if (over) return []
      return groups.map((group) => {
        const topic = responses.find((one) => one.name === group.topic)
        const answer = topic?.partitionResponses.find((one) => one.index === group.partition)
        if (answer === undefined) return this.#result(group, { ...UNKNOWN, cause: new Error('no answer for it') })
        if (answer.errorCode === 0) return this.#result(group, undefined)
        const refusal = this.client.refusal(answer.errorCode, answer.errorMessage)
        if (refusal.apiId === 'DUPLICATE_SEQUENCE_NUMBER') {
          // It is told of a batch older than the broker remembers whole: the attempt whose answer was lost did arrive.
          // Where no attempt can have arrived, the numbers are those of something else.
          return this.#result(group, group.indefinite ? undefined : { ...REFUSED, renew: true, cause: refusal })
        }
        return this.#result(group, verdictOf(refusal))
      })
    }
    try {
      return await withDeadline(systemClock, request(), withinMs, () => tooLate(withinMs))
    } catch (error) {
      over = true
      const verdict = classify(error)
      const unsent = verdict.class === 'retry' ? { ...REFUSED, cause: verdict.cause } : verdict
      // Whatever kept the answer from us, also that it could not be read: the request may have arrived.
      const unanswered =
        verdict.class === 'fatal' ? { ...verdict, refused: false } : { ...UNKNOWN, cause: verdict.cause }
      return groups.map((group) => this.#result(group, sent ? unanswered : unsent))
    }
  }

  /** Ends it at once: nothing that it was sending can reach a broker from now on. */
  abandon(): void {
    this.#connector.release(this.client)
  }

  #result(group: RecordGroup, verdict: Verdict | undefined): GroupResult {
    if (verdict === undefined) {
      this.#sequences.set(group.name, (this.#sequenceOf(group) + group.records.length) & SEQUENCE_MASK)
      group.indefinite = false
    } else if (!verdict.refused) {
      group.indefinite = true
    }
    return { group, verdict }
  }

  #sequenceOf({ name }: RecordGroup): number {
    return this.#sequences.get(name) ?? 0
  }

  async #takeProducerId(): Promise<void> {
    const link = await this.client.any('control')
    const { errorCode, producerEpoch, producerId } = await link.request('initProducerId', null, 0, -1n, -1)
    if (errorCode !== 0) throw this.client.refusal(errorCode)
    this.#producerEpoch = producerEpoch
    this.#producerId = producerId
    this.#sequences.clear()
  }

  #encode(groups: readonly RecordGroup[]): Writer {
    const { Writer: Body, crc32c } = this.client.module
    const topics = [...Map.groupBy(groups, (group) => group.topic)]
    const timeMs = systemClock.now()
    return Body.create()
      .appendString(null)
      .appendInt16(-1)
      .appendInt32(this.#timeoutMs)
      .appendArray(topics, (topicWriter, [topic, ofTopic]) => {
        topicWriter.appendString(topic).appendArray(ofTopic, (writer, group) => {
          const head = {
            producerEpoch: this.#producerEpoch,
            producerId: this.#producerId,
            sequence: this.#sequenceOf(group),
            timeMs,
          }
          group.encoded ??= encodeRecordBatch(group.records, head, crc32c)
          writer
            .appendInt32(group.partition)
            .appendUnsignedVarInt(group.encoded.length + 1)
            .append(group.encoded)
        })
      })
      .appendTaggedFields()
  }
}

function tooLate(afterMs: number): MillraceError {
  return new MillraceError('BROKER_UNREACHABLE', `Kafka took more than ${Math.round(afterMs)} ms to answer.`)
}
