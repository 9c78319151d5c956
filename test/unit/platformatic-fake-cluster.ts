import * as module from '@platformatic/kafka'
import type { Writer } from '@platformatic/kafka'
import { ProtocolRefusal } from '../../src/brokers/kafka/platformatic/error-class.ts'

/** A record as it is stored. */
export interface Stored {
  readonly id: string
  readonly key: string | null
  readonly partition: number
  readonly payload: string
  readonly topic: string
}

/** A batch as it reaches the broker. */
export interface Batch {
  readonly partition: number
  readonly producerId: bigint
  readonly records: readonly Stored[]
  readonly sequence: number
  readonly topic: string
}

/** What the broker does with a request: refuses a batch by name, loses the request or its answer, or never answers. */
export interface Faults {
  /** Whether this batch is passed over: neither stored nor answered, though others of the request are. */
  omit?(batch: Batch): boolean
  /** The error of this batch; undefined stores it. */
  refuse?(batch: Batch): string | undefined
  /** The error that is told of this batch, which was stored all the same. */
  refuseStored?(batch: Batch): string | undefined
  /** What happens to the request as a whole. */
  request?(
    batches: readonly Batch[],
  ): 'hang' | 'lose answer' | 'lose request' | 'garble answer' | 'lock out' | undefined
}

interface Log {
  readonly producers: Map<bigint, { count: number; first: number; next: number }>
}

/**
 * A cluster of which the test decides what it answers. It keeps what Kafka keeps of an idempotent producer: a batch with
 * the next sequence number is stored, the last one again is not stored twice, and any other is out of order.
 */
export class FakeCluster {
  faults: Faults = {}
  /** Topics that are not there. */
  readonly missing = new Set<string>()
  partitions = 4
  producerIds = 0n
  readonly requests: (readonly Batch[])[] = []
  readonly stored: Stored[] = []
  unreachable = false
  readonly #logs = new Map<string, Log>()

  /** Stands in for a connector. */
  readonly connector = {
    open: () => Promise.resolve(this.#client()),
    release: (client: { kill(): void }) => client.kill(),
    releaseAll: () => {},
  } as never

  #client(): object {
    const client = {
      any: () => (this.unreachable ? Promise.reject(refused()) : Promise.resolve(this.#link(client))),
      broker: () => (this.unreachable ? Promise.reject(refused()) : Promise.resolve(this.#link(client))),
      kill: () => (client.killed = true),
      killed: false,
      known: (topic: string) => this.#info(topic),
      module,
      refusal: (code: number) => new ProtocolRefusal(module.protocolErrorsCodesById[code as 0] as string),
      topics: (names: Iterable<string>) => {
        if (this.unreachable) return Promise.reject(refused())
        return Promise.resolve(new Map(Array.from(names, (name) => [name, this.#info(name)])))
      },
    }
    return client
  }

  #info(topic: string): object {
    const partitions = Array.from({ length: this.partitions }, () => ({ leader: 1, leaderEpoch: 0 }))
    return this.missing.has(topic)
      ? { error: new ProtocolRefusal('UNKNOWN_TOPIC_OR_PARTITION'), fetchedAt: 0, id: topic, partitions: [] }
      : { error: undefined, fetchedAt: 0, id: topic, partitions }
  }

  #link(client: { readonly killed: boolean }): object {
    return {
      produce: (body: Writer) => this.#produce(body, client),
      request: (name: string) =>
        // It tells nobody what its topics take.
        name === 'initProducerId'
          ? Promise.resolve({ errorCode: 0, producerEpoch: 0, producerId: ++this.producerIds })
          : Promise.resolve({ results: [] }),
    }
  }

  async #produce(body: Writer, client: { readonly killed: boolean }): Promise<object> {
    if (client.killed) throw new Error('sent by a client that was closed')
    const batches = decode(body)
    this.requests.push(batches)
    // As over a network: never in the turn of the call.
    await Promise.resolve()
    const fault = this.faults.request?.(batches)
    if (fault === 'lose request') throw new module.NetworkError('Connection closed')
    const answered = batches.filter((batch) => this.faults.omit?.(batch) !== true)
    const answers = answered.map((batch) => {
      const errorCode = this.#append(batch)
      const told = errorCode === 0 ? this.faults.refuseStored?.(batch) : undefined
      return { batch, errorCode: told === undefined ? errorCode : codeOf(told) }
    })
    if (fault === 'lock out') throw new module.AuthenticationError('the password is another one now')
    if (fault === 'garble answer') throw new TypeError('the answer cannot be read')
    if (fault === 'lose answer') throw new module.NetworkError('Connection closed')
    if (fault === 'hang') return await new Promise<object>(() => {})
    return {
      responses: Array.from(
        Map.groupBy(answers, ({ batch }) => batch.topic),
        ([name, own]) => ({
          name,
          partitionResponses: own.map(({ batch, errorCode }) => ({
            errorCode,
            errorMessage: null,
            index: batch.partition,
          })),
        }),
      ),
    }
  }

  #append(batch: Batch): number {
    const refusal = this.faults.refuse?.(batch)
    if (refusal !== undefined) return codeOf(refusal)
    const name = `${batch.topic}/${batch.partition}`
    let log = this.#logs.get(name)
    if (log === undefined) this.#logs.set(name, (log = { producers: new Map() }))
    const count = batch.records.length
    const known = log.producers.get(batch.producerId)
    if (known !== undefined && known.first === batch.sequence && known.count === count) return 0
    if (batch.sequence !== (known?.next ?? 0)) return codeOf('OUT_OF_ORDER_SEQUENCE_NUMBER')
    log.producers.set(batch.producerId, { count, first: batch.sequence, next: batch.sequence + count })
    this.stored.push(...batch.records)
    return 0
  }
}

function decode(body: Writer): Batch[] {
  const reader = module.Reader.from(body.buffer)
  reader.readNullableString()
  reader.readInt16()
  reader.readInt32()
  const topics = reader.readArray((ofTopic) => ({
    topic: ofTopic.readString(),
    batches: ofTopic.readArray((one) => {
      const partition = one.readInt32()
      const length = one.readUnsignedVarInt() - 1
      const bytes = one.buffer.slice(one.position, one.position + length)
      one.skip(length)
      return { batch: module.readRecordsBatch(module.Reader.from(Buffer.from(bytes))), partition }
    }),
  }))
  return topics.flatMap(({ batches, topic }) =>
    batches.map(({ batch, partition }) => ({
      partition,
      producerId: batch.producerId,
      records: batch.records.map(({ headers, key, value }) => ({
        id: String(headers.find(([name]) => String(name) === 'millrace-id')?.[1]),
        key: key === null ? null : String(key),
        partition,
        payload: String(value),
        topic,
      })),
      sequence: batch.firstSequence,
      topic,
    })),
  )
}

function codeOf(name: string): number {
  return Number(Object.entries(module.protocolErrorsCodesById).find(([, id]) => id === name)?.[0])
}

function refused(): Error {
  return new module.NetworkError('x', { cause: Object.assign(new Error('x'), { code: 'ECONNREFUSED' }) })
}
