/** The bytes that say how long a response is. */
const SIZE_BYTES = 4

/**
 * Holds back what a broker sends until a response is complete. kafkajs keeps the beginning of a response whose connection
 * was cut, and takes what the next connection brings for the rest of it: it then throws out of the socket, which ends the
 * process, or finds no answer any more.
 */
export class WholeResponses {
  readonly #give: (chunk: Buffer) => void
  /** Of a response that is not complete. */
  #held: Buffer[] = []
  #missing = 0
  #size = 0
  #sizeBytes = 0

  constructor(give: (chunk: Buffer) => void) {
    this.#give = give
  }

  /** Takes what was read, and hands over what it completes. Throws what the receiver throws. */
  push(chunk: Buffer): void {
    const whole = this.#wholeUpTo(chunk)
    if (whole > 0) {
      const held = this.#held
      this.#held = []
      for (const before of held) this.#give(before)
      this.#give(chunk.subarray(0, whole))
    }
    if (whole < chunk.length) this.#held.push(chunk.subarray(whole))
  }

  /** Where the last response ends that is complete with this chunk; 0 when none is. */
  #wholeUpTo(chunk: Buffer): number {
    let whole = 0
    for (let at = 0; at < chunk.length;) {
      if (this.#sizeBytes < SIZE_BYTES) {
        this.#size = (this.#size << 8) | (chunk[at++] as number)
        this.#sizeBytes++
        if (this.#sizeBytes < SIZE_BYTES) continue
        if (this.#size < 0) throw new RangeError('the broker says that its answer is less than nothing')
        this.#missing = this.#size
      } else {
        const taken = Math.min(this.#missing, chunk.length - at)
        this.#missing -= taken
        at += taken
      }
      if (this.#missing > 0) continue
      whole = at
      this.#size = 0
      this.#sizeBytes = 0
    }
    return whole
  }
}
