/**
 * One `publish`: a batch on its way through the window.
 *
 * Each message is in one state: waiting → in flight → settled, where settled is stored or unresolved. Every key has a
 * lane: its messages of the batch, linked in order. The rule that makes re-sending safe is that a lane has at most one
 * message in flight, and its next one becomes ready only when that one is stored. So:
 *
 * - a message that is unresolved takes the rest of its lane with it, as `unsent`: nothing later of its key can be on
 *   the stream, and sending the batch's remainder again, in order, keeps the key in order;
 * - messages without a key have no lane and are ready at once.
 *
 * A topic that answers anything but stored or poison is halted: what was not sent of it is not sent. So one unwell
 * stream costs one time-out and not one per window, and the other topics of the batch go on.
 *
 * Nothing here is per message but slots in arrays: no promise, no timer, no closure. Time and sending are injected.
 */
import type { OutgoingMessage } from '../../core/message.ts'
import type { Unresolved } from '../broker.ts'
import type { Verdict } from './error-class.ts'

const WAITING = 0
const IN_FLIGHT = 1
const SETTLED = 2

/** What a run needs of the publisher. */
export interface PublishRunOptions {
  readonly batch: readonly OutgoingMessage[]
  /** Gives the message to the connection; returns a verdict when it cannot be sent. */
  readonly send: (message: OutgoingMessage, index: number) => Verdict | undefined
  readonly now: () => number
  readonly windowBytes: number
  readonly windowMessages: number
}

export class PublishRun {
  /** Resolves with what was not stored, by rising index. */
  readonly done: Promise<readonly Unresolved[]>
  readonly #batch: readonly OutgoingMessage[]
  readonly #options: PublishRunOptions
  readonly #state: Uint8Array
  /** The next message of the same key, or -1. */
  readonly #next: Int32Array
  /** 1 where an earlier message of the key is in the batch. */
  readonly #follows: Uint8Array
  readonly #sentAt: Float64Array
  /** Messages whose predecessor was stored, in that order. */
  readonly #ready: Int32Array
  readonly #unresolved: Unresolved[] = []
  readonly #halted = new Map<string, Verdict>()
  #haltedAll: ((message: OutgoingMessage) => Verdict) | undefined
  #readyHead = 0
  #readyTail = 0
  #cursor = 0
  #inFlight = 0
  #inFlightBytes = 0
  #left: number
  #oldest = 0
  #pumping = false
  #resolve: ((unresolved: readonly Unresolved[]) => void) | undefined

  constructor(options: PublishRunOptions) {
    const { batch } = options
    this.#batch = batch
    this.#options = options
    this.#state = new Uint8Array(batch.length)
    this.#next = new Int32Array(batch.length).fill(-1)
    this.#follows = new Uint8Array(batch.length)
    this.#sentAt = new Float64Array(batch.length)
    this.#ready = new Int32Array(batch.length)
    this.#left = batch.length
    this.done = new Promise((resolve) => {
      this.#resolve = resolve
    })
    this.#linkLanes()
  }

  /** How many messages are published and not answered. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Sends what the window and the lanes allow. */
  pump(): void {
    if (this.#pumping) return
    this.#pumping = true
    for (let index = this.#take(); index >= 0; index = this.#take()) this.#send(index)
    this.#pumping = false
    this.#finish()
  }

  /** The broker has it. Ignored for a message that is not in flight. */
  stored(index: number): void {
    if (!this.#land(index)) return
    this.#settle(index)
    const next = this.#next[index] as number
    if (next >= 0) this.#ready[this.#readyTail++] = next
    this.pump()
  }

  /** The broker says no, or nothing in time. Ignored for a message that is not in flight. */
  refused(index: number, verdictOf: (message: OutgoingMessage) => Verdict): void {
    if (!this.#land(index)) return
    const message = this.#batch[index] as OutgoingMessage
    const verdict = verdictOf(message)
    this.#fail(index, verdict)
    if (verdict.class !== 'poison') this.#halted.set(message.topic, verdict)
    this.pump()
  }

  /** Refuses every message in flight that was sent at `deadline` or before. */
  expire(deadline: number, verdictOf: (message: OutgoingMessage) => Verdict): void {
    while (this.#oldest < this.#batch.length && this.#state[this.#oldest] === SETTLED) this.#oldest += 1
    const end = this.#batch.length
    for (let index = this.#oldest; index < end && this.#inFlight > 0; index++) {
      if (this.#state[index] !== IN_FLIGHT || (this.#sentAt[index] as number) > deadline) continue
      this.refused(index, verdictOf)
    }
  }

  /** Refuses every message in flight to the topic. */
  forbid(topic: string, verdict: Verdict): void {
    for (let index = 0; index < this.#batch.length && this.#inFlight > 0; index++) {
      if (this.#state[index] === IN_FLIGHT && this.#batch[index]?.topic === topic) this.refused(index, () => verdict)
    }
  }

  /** Sends nothing more; what is in flight may still be answered. */
  halt(verdictOf: (message: OutgoingMessage) => Verdict): void {
    this.#haltedAll ??= verdictOf
    this.pump()
  }

  /** Nothing in flight will be answered: all of it is refused and nothing more is sent. */
  abandon(sent: (message: OutgoingMessage) => Verdict, unsent: (message: OutgoingMessage) => Verdict): void {
    this.#haltedAll ??= unsent
    this.expire(Infinity, sent)
    this.pump()
  }

  #linkLanes(): void {
    const tails = new Map<string, number>()
    for (let index = 0; index < this.#batch.length; index++) {
      // By key alone: two topics may be subjects of one stream.
      const { key } = this.#batch[index] as OutgoingMessage
      if (key === null) continue
      const tail = tails.get(key)
      if (tail !== undefined) {
        this.#next[tail] = index
        this.#follows[index] = 1
      }
      tails.set(key, index)
    }
  }

  /** The next message that may be sent now, or -1. */
  #take(): number {
    const ready = this.#readyHead < this.#readyTail
    let index: number
    if (ready) {
      index = this.#ready[this.#readyHead] as number
    } else {
      while (this.#cursor < this.#batch.length && this.#follows[this.#cursor] === 1) this.#cursor += 1
      if (this.#cursor === this.#batch.length) return -1
      index = this.#cursor
    }
    if (this.#inFlight > 0) {
      if (this.#inFlight >= this.#options.windowMessages) return -1
      if (this.#inFlightBytes + sizeOf(this.#batch[index]) > this.#options.windowBytes) return -1
    }
    if (ready) this.#readyHead += 1
    else this.#cursor += 1
    return index
  }

  #send(index: number): void {
    const message = this.#batch[index] as OutgoingMessage
    const halted = this.#haltedAll?.(message) ?? this.#halted.get(message.topic)
    if (halted !== undefined) {
      this.#fail(index, { class: halted.class, error: halted.error, outcome: 'failed' })
      return
    }
    this.#state[index] = IN_FLIGHT
    this.#sentAt[index] = this.#options.now()
    this.#inFlight += 1
    this.#inFlightBytes += sizeOf(message)
    const verdict = this.#options.send(message, index)
    if (verdict !== undefined) {
      this.#land(index)
      this.#fail(index, verdict)
    }
  }

  /** Takes a message out of the window; false when it is not in it. */
  #land(index: number): boolean {
    if (this.#state[index] !== IN_FLIGHT) return false
    this.#state[index] = WAITING
    this.#inFlight -= 1
    this.#inFlightBytes -= sizeOf(this.#batch[index])
    return true
  }

  #fail(index: number, verdict: Verdict): void {
    this.#settle(index)
    this.#unresolved.push({ index, outcome: verdict.outcome, class: verdict.class, error: verdict.error })
    for (let later = this.#next[index] as number; later >= 0; later = this.#next[later] as number) {
      this.#settle(later)
      this.#unresolved.push({ index: later, outcome: 'unsent', class: verdict.class, error: verdict.error })
    }
  }

  #settle(index: number): void {
    this.#state[index] = SETTLED
    this.#left -= 1
  }

  #finish(): void {
    if (this.#left > 0) return
    this.#resolve?.(this.#unresolved.sort((a, b) => a.index - b.index))
    this.#resolve = undefined
  }
}

function sizeOf(message: OutgoingMessage | undefined): number {
  return message === undefined ? 0 : message.payload.length
}
