import type { IncomingMessage } from '../../brokers/broker.ts'

/** A message that is to come again, once its partition has delivered so many. */
interface Echo {
  readonly message: IncomingMessage
  readonly dueAt: number
}

/**
 * One assignment of one partition as the wrapper shows it: positions of its own, which number every delivery, first or
 * second, and stand for the position of the last first delivery up to there.
 */
export class DuplicatingPartition {
  paused = false
  readonly #nextPosition: () => bigint
  readonly #afterMessages: number
  readonly #echoes: Echo[] = []
  /** First deliveries that were not committed yet: shown position and the broker's. */
  readonly #shown: { readonly shown: bigint; readonly real: bigint }[] = []
  #delivered = 0
  #deliveredBefore = 0

  constructor(nextPosition: () => bigint, afterMessages: number) {
    this.#nextPosition = nextPosition
    this.#afterMessages = afterMessages
  }

  /** Whether a second delivery is still to come. */
  get waiting(): boolean {
    return this.#echoes.length > 0
  }

  /** What to hand over for these messages: each of them, and second deliveries that are due. */
  show(messages: readonly IncomingMessage[], echoes: (message: IncomingMessage) => boolean): IncomingMessage[] {
    const shown: IncomingMessage[] = []
    for (const message of messages) {
      const position = this.#nextPosition()
      this.#shown.push({ shown: position, real: message.position })
      shown.push({ ...message, position })
      this.#delivered++
      if (echoes(message)) this.#echoes.push({ message, dueAt: this.#delivered + this.#afterMessages })
      while ((this.#echoes[0]?.dueAt ?? Infinity) <= this.#delivered) shown.push(...this.#echo())
    }
    return shown
  }

  /** All second deliveries that wait, due or not. */
  flush(): IncomingMessage[] {
    const shown: IncomingMessage[] = []
    while (this.waiting) shown.push(...this.#echo())
    return shown
  }

  /** Whether nothing was delivered since this was asked before. */
  quiet(): boolean {
    const quiet = this.#delivered === this.#deliveredBefore
    this.#deliveredBefore = this.#delivered
    return quiet
  }

  /** The broker's position that a shown one stands for; undefined when all up to there is committed already. */
  realPosition(shown: bigint): bigint | undefined {
    return this.#shown[this.#countUpTo(shown) - 1]?.real
  }

  /** All up to the shown position is committed. */
  committed(shown: bigint): void {
    this.#shown.splice(0, this.#countUpTo(shown))
  }

  #countUpTo(shown: bigint): number {
    let count = 0
    while (count < this.#shown.length && (this.#shown[count]?.shown ?? 0n) <= shown) count++
    return count
  }

  #echo(): IncomingMessage[] {
    const echo = this.#echoes.shift()
    return echo === undefined ? [] : [{ ...echo.message, position: this.#nextPosition() }]
  }
}
