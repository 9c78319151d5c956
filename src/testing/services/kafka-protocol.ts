import { converse } from './conversation.ts'

const METADATA = 3
const CORRELATION = 0x6d696c6c

/** Where a broker listens. */
export interface KafkaPeer {
  readonly host?: string
  readonly port: number
}

/** Who serves a partition. */
export interface PartitionState {
  /** The ids of the replicas that have all of it. */
  readonly inSync: readonly number[]
  /** The id of the leader; -1 when there is none. */
  readonly leader: number
}

/**
 * Asks a broker for the cluster's metadata, version 1, without topics, and resolves with the ids of the live brokers;
 * undefined while nobody answers. A port answers some tens of milliseconds before the broker has joined its cluster.
 */
export async function brokersOf(target: KafkaPeer): Promise<number[] | undefined> {
  return converse(target, metadataRequest([]), (heard) => {
    const answer = readerOf(heard)
    return answer === undefined ? undefined : brokerIds(answer)
  })
}

/** As {@link brokersOf}, with the number of live brokers as text; undefined while there is none. */
export async function askKafka(target: KafkaPeer): Promise<string | undefined> {
  const brokers = await brokersOf(target)
  return brokers === undefined || brokers.length === 0 ? undefined : `${brokers.length} broker(s)`
}

/** What a broker knows of a partition; undefined while it knows of none. */
export async function partitionState(
  target: KafkaPeer,
  topic: string,
  partition: number,
): Promise<PartitionState | undefined> {
  const found = await converse(target, metadataRequest([topic]), (heard) => {
    const answer = readerOf(heard)
    return answer === undefined ? undefined : { states: partitionStates(answer) }
  })
  return found?.states.get(partition)
}

function metadataRequest(topics: readonly string[]): Buffer {
  const client = 'millrace'
  const names = topics.map((topic) => Buffer.concat([int16(Buffer.byteLength(topic)), Buffer.from(topic)]))
  const body = Buffer.concat([
    int16(METADATA),
    int16(1),
    int32(CORRELATION),
    int16(client.length),
    Buffer.from(client),
    int32(topics.length),
    ...names,
  ])
  return Buffer.concat([int32(body.length), body])
}

/** Walks an answer by its fields. */
class AnswerReader {
  readonly #answer: Buffer
  #at = 8

  constructor(answer: Buffer) {
    this.#answer = answer
  }

  int8(): number {
    return this.#answer.readInt8(this.#skip(1))
  }

  int16(): number {
    return this.#answer.readInt16BE(this.#skip(2))
  }

  int32(): number {
    return this.#answer.readInt32BE(this.#skip(4))
  }

  text(): void {
    const bytes = this.int16()
    if (bytes > 0) this.#skip(bytes)
  }

  list<T>(read: () => T): T[] {
    return Array.from({ length: this.int32() }, read)
  }

  #skip(bytes: number): number {
    this.#at += bytes
    return this.#at - bytes
  }
}

/** A reader when the whole answer is there. */
function readerOf(heard: Buffer): AnswerReader | undefined {
  if (heard.length < 12 || heard.length < 4 + heard.readInt32BE(0)) return undefined
  return heard.readInt32BE(4) === CORRELATION ? new AnswerReader(heard) : undefined
}

function brokerIds(answer: AnswerReader): number[] {
  return answer.list(() => {
    const id = answer.int32()
    answer.text()
    answer.int32()
    answer.text()
    return id
  })
}

function partitionStates(answer: AnswerReader): Map<number, PartitionState> {
  const states = new Map<number, PartitionState>()
  brokerIds(answer)
  answer.int32()
  answer.list(() => {
    answer.int16()
    answer.text()
    answer.int8()
    answer.list(() => {
      answer.int16()
      const partition = answer.int32()
      const leader = answer.int32()
      answer.list(() => answer.int32())
      states.set(partition, { inSync: answer.list(() => answer.int32()), leader })
    })
  })
  return states
}

function int16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeInt16BE(value)
  return bytes
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}
