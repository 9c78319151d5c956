import type { IncomingMessage, Partition } from '../brokers/broker.ts'
import { Watermark, type IntakeAccount, type LaneSource, type Linked } from '../flow/index.ts'
import type { InboxKey } from '../inbox/index.ts'

/** A message on its way through the consumer, from hand-over until it is done. */
export class Delivery implements Linked<Delivery> {
  next: Delivery | undefined
  readonly message: IncomingMessage
  readonly partition: PartitionState
  /** Its slot in the partition's watermark. */
  readonly slot: number
  /** Its row in the inbox, once it was asked for. */
  inboxKey: InboxKey | undefined
  /** How often its handler threw while it ran alone. */
  failures = 0
  firstFailedAtMs = 0
  lastError: unknown
  /** How often it ran alone into a serialisation failure or a deadlock, in a row. */
  conflicts = 0

  constructor(message: IncomingMessage, partition: PartitionState, slot: number) {
    this.message = message
    this.partition = partition
    this.slot = slot
  }
}

/**
 * One assignment of a partition: made when it is assigned, closed when it is taken away. The object is the epoch: what
 * still runs for an older assignment holds the older object, and finds it closed.
 *
 *   open      messages come in and are handed out
 *   draining  being taken away in good order: nothing comes in, nothing is handed out, what runs may finish
 *   closed    gone: nothing is committed any more
 */
export class PartitionState {
  readonly account: IntakeAccount
  readonly id: Partition
  readonly source: LaneSource<Delivery>
  readonly watermark = new Watermark()
  /** How many messages of this assignment the broker's position covers. */
  committedCount = 0
  phase: 'open' | 'draining' | 'closed' = 'open'
  /** How many running groups hold messages of this partition. */
  #running = 0
  #whenIdle: (() => void)[] = []

  constructor(id: Partition, source: LaneSource<Delivery>, account: IntakeAccount) {
    this.id = { partition: id.partition, topic: id.topic }
    this.source = source
    this.account = account
  }

  /** A group with messages of this partition begins. */
  enter(): void {
    this.#running++
  }

  /** It has ended. */
  leave(): void {
    if (--this.#running > 0) return
    for (const resolve of this.#whenIdle.splice(0)) resolve()
  }

  /** Resolves when no group holds messages of this partition. */
  idle(): Promise<void> {
    if (this.#running === 0) return Promise.resolve()
    return new Promise((resolve) => this.#whenIdle.push(resolve))
  }
}
