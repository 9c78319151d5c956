const INITIAL_CAPACITY = 64

/**
 * How far a partition is done without a hole: the position up to which everything that was handed over is done.
 *
 * Positions rise strictly and may have gaps (compaction, transaction markers, delivery sequences): only positions that
 * were added count. Each gets a slot, counted from 0; slots are dense, so what is done above the first hole is one byte
 * in a ring. Adding and finishing are O(1) amortised, memory is 9 bytes for each slot between the hole and the newest.
 */
export class Watermark {
  #positions = new BigInt64Array(INITIAL_CAPACITY)
  #done = new Uint8Array(INITIAL_CAPACITY)
  #mask = INITIAL_CAPACITY - 1
  /** The first slot that is not done. */
  #head = 0
  /** The next slot to give. */
  #tail = 0
  /** The position of the newest slot below the head. */
  #reached: bigint | undefined
  #newest: bigint | undefined

  /** Takes in a position, higher than all before; returns its slot. */
  add(position: bigint): number {
    if (this.#newest !== undefined && position <= this.#newest) {
      throw new RangeError(`positions must rise within an assignment: ${position} came after ${this.#newest}`)
    }
    if (this.#tail - this.#head > this.#mask) this.#grow()
    const slot = this.#tail++
    this.#positions[slot & this.#mask] = position
    this.#done[slot & this.#mask] = 0
    this.#newest = position
    return slot
  }

  /** Marks a slot as done, once; returns true when the watermark moved. */
  done(slot: number): boolean {
    if (slot < this.#head || slot >= this.#tail) return false
    this.#done[slot & this.#mask] = 1
    if (slot !== this.#head) return false
    do this.#head++
    while (this.#head < this.#tail && this.#done[this.#head & this.#mask] === 1)
    this.#reached = this.#positions[(this.#head - 1) & this.#mask]
    return true
  }

  /** Everything up to here is done; undefined when nothing is. */
  get position(): bigint | undefined {
    return this.#reached
  }

  /** How many slots lie at or above the first hole, done or not. */
  get size(): number {
    return this.#tail - this.#head
  }

  /** How many slots lie below it. */
  get settled(): number {
    return this.#head
  }

  #grow(): void {
    const capacity = (this.#mask + 1) * 2
    const positions = new BigInt64Array(capacity)
    const done = new Uint8Array(capacity)
    for (let slot = this.#head; slot < this.#tail; slot++) {
      positions[slot & (capacity - 1)] = this.#positions[slot & this.#mask] as bigint
      done[slot & (capacity - 1)] = this.#done[slot & this.#mask] as number
    }
    this.#positions = positions
    this.#done = done
    this.#mask = capacity - 1
  }
}
