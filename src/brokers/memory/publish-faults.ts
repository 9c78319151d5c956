import type { ErrorClass } from '../broker.ts'

/** What shall happen to a publish, for tests. */
export interface PublishFault {
  /** Take this long before anything is stored, milliseconds. Default: 0. */
  readonly delayMs?: number
  /** Store the batch but answer that its outcome is unknown. Default: false. */
  readonly loseAnswer?: boolean
  /** Store nothing and answer with this class. Default: the batch is stored. */
  readonly refuse?: ErrorClass
}

/** Faults that wait for the publishes they befall, in order. One publish meets at most one. */
export class PublishFaults {
  readonly #queue: PublishFault[] = []

  /** The next publish, or the next `times` of them, from whichever client, meets this fault. */
  next(fault: PublishFault, times = 1): void {
    for (let i = 0; i < times; i++) this.#queue.push(fault)
  }

  /** Takes back what has not happened yet. */
  clear(): void {
    this.#queue.length = 0
  }

  /** How many have not happened yet. */
  get pending(): number {
    return this.#queue.length
  }

  /** @internal */
  take(): PublishFault | undefined {
    return this.#queue.shift()
  }
}
