import type { Delivery } from './delivery.ts'

/** What was delivered to this member and is neither acknowledged nor given up, by stream sequence. */
export class Outstanding {
  readonly #bySeq = new Map<number, Delivery>()
  /** Those that were handed over, by rising position; what is before the head was committed. */
  #handed: Delivery[] = []
  #head = 0

  /** How many there are, handed over or not. */
  get size(): number {
    return this.#bySeq.size
  }

  /** How many there are of the consumer's deliveries up to this one. */
  countUpTo(deliverySeq: number): number {
    let count = 0
    for (const delivery of this.#bySeq.values()) if (delivery.deliverySeq <= deliverySeq) count += 1
    return count
  }

  /**
   * Takes a delivery in. False when the message is here already: it was delivered again although this member has it, so
   * it must not be handed over twice; only its answer goes to the newer delivery.
   */
  add(delivery: Delivery): boolean {
    const known = this.#bySeq.get(delivery.streamSeq)
    if (known !== undefined) {
      known.ackSubject = delivery.ackSubject
      return false
    }
    this.#bySeq.set(delivery.streamSeq, delivery)
    return true
  }

  /** The delivery was handed over; its position is above all before it. */
  handOver(delivery: Delivery): void {
    this.#handed.push(delivery)
  }

  /** Takes out and returns what was handed over up to the position. */
  takeUpTo(position: bigint): Delivery[] {
    let end = this.#head
    while (end < this.#handed.length && (this.#handed[end] as Delivery).position <= position) end += 1
    const taken = this.#handed.slice(this.#head, end)
    for (const delivery of taken) this.#bySeq.delete(delivery.streamSeq)
    this.#head = end
    if (this.#head > 1024 && this.#head * 2 > this.#handed.length) {
      this.#handed = this.#handed.slice(this.#head)
      this.#head = 0
    }
    return taken
  }

  /** The subjects to answer at, in the order of the stream. */
  ackSubjects(): string[] {
    return [...this.#bySeq.values()].sort((a, b) => a.streamSeq - b.streamSeq).map((delivery) => delivery.ackSubject)
  }

  /** The subjects to answer at, in the order of arrival. */
  *subjects(): Iterable<string> {
    for (const delivery of this.#bySeq.values()) yield delivery.ackSubject
  }

  clear(): void {
    this.#bySeq.clear()
    this.#handed = []
    this.#head = 0
  }
}
