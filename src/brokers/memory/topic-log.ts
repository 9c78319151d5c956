import type { OutgoingMessage } from '../../core/message.ts'
import type { IncomingMessage } from '../broker.ts'
import { partitionOfKey } from './partition-of-key.ts'

/** The messages of one partition that are still kept, by offset. */
export class PartitionLog {
  readonly topic: string
  readonly partition: number
  #entries: IncomingMessage[] = []
  #start = 0

  constructor(topic: string, partition: number) {
    this.topic = topic
    this.partition = partition
  }

  /** The offset of the oldest message that is kept. */
  get start(): number {
    return this.#start
  }

  /** The offset of the next message. */
  get end(): number {
    return this.#start + this.#entries.length
  }

  append(message: OutgoingMessage, sizeBytes: number): void {
    this.#entries.push({
      id: message.id,
      topic: this.topic,
      key: message.key,
      type: message.type,
      // Copies, so that nobody can change what is stored and no larger buffer is held by a slice of it.
      payload: Buffer.from(message.payload),
      headers: Object.assign(Object.create(null), message.headers) as IncomingMessage['headers'],
      timeMs: message.timeMs,
      partition: this.partition,
      position: BigInt(this.end),
      sizeBytes,
      redelivered: false,
    })
  }

  /** Messages from this offset on, bounded by count and bytes; at least one if there is any. */
  read(from: number, maxMessages: number, maxBytes: number): IncomingMessage[] {
    const first = Math.max(0, from - this.#start)
    let last = first
    let bytes = 0
    while (last < this.#entries.length && last - first < maxMessages) {
      bytes += (this.#entries[last] as IncomingMessage).sizeBytes
      if (bytes > maxBytes && last > first) break
      last++
    }
    return this.#entries.slice(first, last)
  }

  /** Drops what lies below the offset and returns it. */
  dropBelow(offset: number): IncomingMessage[] {
    const dropped = this.#entries.splice(0, Math.max(0, Math.min(offset, this.end) - this.#start))
    this.#start += dropped.length
    return dropped
  }
}

/** A topic: its partitions, and how much it holds. */
export class TopicLog {
  readonly name: string
  readonly partitions: readonly PartitionLog[]
  #messages = 0
  #bytes = 0
  #turn = 0

  constructor(name: string, partitions: number) {
    this.name = name
    this.partitions = Array.from({ length: partitions }, (_, i) => new PartitionLog(name, i))
  }

  get messages(): number {
    return this.#messages
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Stores the message on its key's partition, or on the next in turn when it has no key. */
  append(message: OutgoingMessage, sizeBytes: number): void {
    const count = this.partitions.length
    const partition = message.key === null ? this.#turn++ % count : partitionOfKey(message.key, count)
    ;(this.partitions[partition] as PartitionLog).append(message, sizeBytes)
    this.#messages++
    this.#bytes += sizeBytes
  }

  /** Drops what lies below `floorOf` each partition. */
  drop(floorOf: (partition: number) => number): void {
    for (const log of this.partitions) {
      for (const message of log.dropBelow(floorOf(log.partition))) {
        this.#messages--
        this.#bytes -= message.sizeBytes
      }
    }
  }
}
