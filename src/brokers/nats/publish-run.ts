/**
 * One `publish`: a batch on its way through the window.
 *
 * Each message is in one state: waiting → in flight → settled, where settled is stored or unresolved. Every key has a
 * lane: its messages of the batch, linked in order. What makes re-sending safe is that of a key only one *chain* is in
 * flight. A chain is sent without a gap: a head, which is sent only when all of its key before it is stored, and
 * followers of the same topic, each of which names the id of the message before it (`Nats-Expected-Last-Msg-Id`). The
 * server stores a follower only while that message is the last of the stream. So, by induction along the chain:
 *
 * - a follower that is stored has the one before it on the stream, in front of it, whatever else happened: a failure in
 *   the middle, other writers, a connection that dies and whose rest is read by the server later;
 * - a follower that another writer's message overtook is refused, and is known not to be there; when the chain is
 *   answered, it is the head of the next one. A head expects nothing, so every chain makes progress.
 *
 * The chain is one key's and never a page's. Across keys the same header proves nothing when a message is sent again:
 * a1 fails, b1 is there from before and the last of the stream, and a2 behind it would be stored without a1.
 *
 * When the chain is answered and something of it is unresolved, the rest of the lane is `unsent`: nothing later of the
 * key is on the stream, and sending the remainder again, in order, keeps the key in order. Messages without a key have
 * no lane and are ready at once. With a chain limit of 1 a lane has one message in flight, on any stream.
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
  /** Told when a chain is answered: how many messages it had, and whether another writer got between them. */
  readonly chained?: (topic: string, messages: number, overtaken: boolean) => void
  /** How many messages of one key may be in flight to the topic as a chain. Default: 1. */
  readonly chainLimit?: (topic: string) => number
  /**
   * Gives the message to the connection; returns a verdict when it cannot be sent. It is to be stored only right
   * behind `behind`, if that is given.
   */
  readonly send: (message: OutgoingMessage, index: number, behind: OutgoingMessage | undefined) => Verdict | undefined
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
  /** The first message of the same key. What belongs to a lane is kept at the place of its first message. */
  readonly #lane: Int32Array
  /** By lane: how many are in flight. */
  readonly #flying: Int32Array
  /** By lane: how many messages the chain in flight had. */
  readonly #chain: Int32Array
  /** By lane: 1 when a follower of the chain in flight was overtaken. */
  readonly #overtaken: Uint8Array
  /** By lane: the first message that may not be settled. */
  readonly #front: Int32Array
  /** By lane: what ended it. */
  readonly #cut = new Map<number, Verdict>()
  readonly #sentAt: Float64Array
  /** Heads whose predecessors are stored, at most one per lane, in a ring. */
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
    this.#lane = new Int32Array(batch.length)
    this.#flying = new Int32Array(batch.length)
    this.#chain = new Int32Array(batch.length)
    this.#overtaken = new Uint8Array(batch.length)
    this.#front = new Int32Array(batch.length)
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
    for (let index = this.#take(); index >= 0; index = this.#take()) this.#sendChain(index)
    this.#pumping = false
    this.#finish()
  }

  /** The broker has it. Ignored for a message that is not in flight. */
  stored(index: number): void {
    if (!this.#land(index)) return
    this.#settle(index)
    this.#answered(this.#lane[index] as number)
    this.pump()
  }

  /** The broker says no, or nothing in time. Ignored for a message that is not in flight. */
  refused(index: number, verdictOf: (message: OutgoingMessage) => Verdict): void {
    if (!this.#land(index)) return
    const message = this.#batch[index] as OutgoingMessage
    const verdict = verdictOf(message)
    this.#fail(index, verdict)
    if (verdict.class !== 'poison') this.#halted.set(message.topic, verdict)
    this.#answered(this.#lane[index] as number)
    this.pump()
  }

  /** The broker did not store it, because the message it is to stand behind is not the last of the stream. */
  overtaken(index: number): void {
    if (!this.#land(index)) return
    const lane = this.#lane[index] as number
    this.#overtaken[lane] = 1
    this.#answered(lane)
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
      this.#lane[index] = index
      this.#front[index] = index
      if (key === null) continue
      const tail = tails.get(key)
      if (tail !== undefined) {
        this.#next[tail] = index
        this.#lane[index] = this.#lane[tail] as number
      }
      tails.set(key, index)
    }
  }

  /** The next head that may be sent now, or -1. */
  #take(): number {
    const size = this.#batch.length
    const ready = this.#readyHead !== this.#readyTail
    let index: number
    if (ready) {
      index = this.#ready[this.#readyHead % size] as number
    } else {
      while (this.#cursor < size && this.#lane[this.#cursor] !== this.#cursor) this.#cursor += 1
      if (this.#cursor === size) return -1
      index = this.#cursor
    }
    if (!this.#hasRoom(index)) return -1
    if (ready) this.#readyHead += 1
    else this.#cursor += 1
    return index
  }

  /** One message always has room, however large. */
  #hasRoom(index: number): boolean {
    if (this.#inFlight === 0) return true
    if (this.#inFlight >= this.#options.windowMessages) return false
    return this.#inFlightBytes + sizeOf(this.#batch[index]) <= this.#options.windowBytes
  }

  /** Sends a head, and behind it, at once, as many followers as the limit and the window allow. */
  #sendChain(head: number): void {
    const lane = this.#lane[head] as number
    const { topic } = this.#batch[head] as OutgoingMessage
    let length = 1
    if (this.#send(head, undefined)) {
      let last = head
      let limit = 0
      for (let next = this.#next[head] as number; next >= 0; next = this.#next[next] as number) {
        if (limit === 0) limit = this.#options.chainLimit?.(topic) ?? 1
        if (length >= limit || this.#state[next] !== WAITING || !this.#hasRoom(next)) break
        if (this.#batch[next]?.topic !== topic || !this.#send(next, this.#batch[last])) break
        last = next
        length += 1
      }
    }
    this.#chain[lane] = length
    this.#answered(lane)
  }

  #send(index: number, behind: OutgoingMessage | undefined): boolean {
    const message = this.#batch[index] as OutgoingMessage
    const halted = this.#haltedAll?.(message) ?? this.#halted.get(message.topic)
    if (halted !== undefined) {
      this.#fail(index, { class: halted.class, error: halted.error, outcome: 'failed' })
      return false
    }
    const verdict = this.#options.send(message, index, behind)
    if (verdict !== undefined) {
      this.#fail(index, verdict)
      return false
    }
    this.#state[index] = IN_FLIGHT
    this.#sentAt[index] = this.#options.now()
    this.#inFlight += 1
    this.#inFlightBytes += sizeOf(message)
    this.#flying[this.#lane[index] as number]! += 1
    return true
  }

  /** Takes a message out of the window; false when it is not in it. */
  #land(index: number): boolean {
    if (this.#state[index] !== IN_FLIGHT) return false
    this.#state[index] = WAITING
    this.#inFlight -= 1
    this.#inFlightBytes -= sizeOf(this.#batch[index])
    this.#flying[this.#lane[index] as number]! -= 1
    return true
  }

  /** When all of the lane's chain is answered: the next head is ready, or the rest of the lane is not to be sent. */
  #answered(lane: number): void {
    if (this.#flying[lane] !== 0) return
    const overtaken = this.#overtaken[lane] === 1
    const length = this.#chain[lane] as number
    if (overtaken || length > 1) this.#options.chained?.(this.#batch[lane]?.topic as string, length, overtaken)
    this.#overtaken[lane] = 0
    const cut = this.#cut.get(lane)
    let front = this.#front[lane] as number
    while (front >= 0 && (cut !== undefined || this.#state[front] === SETTLED)) {
      if (this.#state[front] !== SETTLED && cut !== undefined) {
        this.#settle(front)
        this.#unresolved.push({ index: front, outcome: 'unsent', class: cut.class, error: cut.error })
      }
      front = this.#next[front] as number
    }
    this.#front[lane] = front
    if (front >= 0) this.#ready[this.#readyTail++ % this.#batch.length] = front
  }

  #fail(index: number, verdict: Verdict): void {
    this.#settle(index)
    const lane = this.#lane[index] as number
    if (!this.#cut.has(lane)) this.#cut.set(lane, verdict)
    this.#unresolved.push({ index, outcome: verdict.outcome, class: verdict.class, error: verdict.error })
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
