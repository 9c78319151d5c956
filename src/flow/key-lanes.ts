/**
 * Key lanes: the order-keeping queues of a consumer, and the ring of those that may run.
 *
 * A lane holds the messages of one key of one source (a partition), in order. It is in one of these states:
 *
 *   ready   in the ring; its head may be taken
 *   busy    a caller has taken the first `taken` items; nobody else gets any of the lane until it is settled or held
 *   held    waits until a time, then is ready again
 *
 *   offer: (new) → ready           take: ready → busy           settle: busy → ready, or gone when empty
 *   hold:  busy → held             wake: held → ready           drop: any → gone
 *
 * Order holds because items stay in their lane until they are settled, only the head may be taken, and a lane has at
 * most one taker. Items without a key have no order: each gets a lane of its own that nothing can find.
 *
 * Items are linked through their own `next`, lanes through theirs: a message costs no queue, promise or timer of its
 * own, and a key costs one small object while it has messages.
 */

/** What a lane holds: anything with a place for the link. */
export interface Linked<T> {
  next: T | undefined
}

const READY = 0
const BUSY = 1
const HELD = 2

/** The queue of one key. Read `head` and follow `next` for `taken` items. */
export interface Lane<T extends Linked<T>> {
  readonly source: LaneSource<T>
  readonly head: T | undefined
  /** How many of the first items the caller has; 0 unless busy. */
  readonly taken: number
  /** How many of the first items are to be taken one at a time, each by itself. */
  readonly alone: number
}

/** The lanes of one partition. */
export interface LaneSource<T extends Linked<T>> {
  readonly dropped: boolean
  /** Brands the type; the fields are KeyLanes' own. */
  readonly lanes: ReadonlyMap<string, Lane<T>>
}

class LaneState<T extends Linked<T>> implements Lane<T> {
  readonly source: SourceState<T>
  readonly key: string | null
  head: T | undefined
  tail: T | undefined
  length = 0
  taken = 0
  alone = 0
  state = READY
  dueMs = 0
  nextReady: LaneState<T> | undefined

  constructor(source: SourceState<T>, key: string | null) {
    this.source = source
    this.key = key
  }
}

class SourceState<T extends Linked<T>> implements LaneSource<T> {
  readonly lanes = new Map<string, LaneState<T>>()
  dropped = false
}

/** All lanes of a consumer. */
export class KeyLanes<T extends Linked<T>> {
  #first: LaneState<T> | undefined
  #last: LaneState<T> | undefined
  #ready = 0
  /** Held lanes, a binary heap by dueMs. */
  readonly #held: LaneState<T>[] = []

  /** How many items lie in ready lanes. */
  get ready(): number {
    return this.#ready
  }

  /** When the first held lane is due; undefined when none is held. */
  get nextDueMs(): number | undefined {
    return this.#held[0]?.dueMs
  }

  /** A new set of lanes: a partition from its assignment to its end. */
  source(): LaneSource<T> {
    return new SourceState<T>()
  }

  /** Puts an item at the end of its key's lane. */
  offer(source: LaneSource<T>, key: string | null, item: T): void {
    const own = source as SourceState<T>
    if (own.dropped) return
    item.next = undefined
    let lane = key === null ? undefined : own.lanes.get(key)
    if (lane === undefined) {
      lane = new LaneState<T>(own, key)
      if (key !== null) own.lanes.set(key, lane)
      lane.head = lane.tail = item
      lane.length = 1
      this.#makeReady(lane)
      return
    }
    ;(lane.tail as T).next = item
    lane.tail = item
    lane.length++
    if (lane.state === READY) this.#ready++
  }

  /**
   * Takes up to `limit` items from the ready lanes, several of a lane in its order; the lanes are busy until each is
   * settled or held. A lane with items to run alone yields one item and is the only one taken.
   */
  take(limit: number): Lane<T>[] {
    const group: Lane<T>[] = []
    let count = 0
    while (count < limit) {
      const lane = this.#first
      if (lane === undefined || (lane.alone > 0 && count > 0)) break
      this.#first = lane.nextReady
      if (this.#first === undefined) this.#last = undefined
      lane.nextReady = undefined
      this.#ready -= lane.length
      lane.state = BUSY
      lane.taken = lane.alone > 0 ? 1 : Math.min(lane.length, limit - count)
      count += lane.taken
      group.push(lane)
      if (lane.alone > 0) break
    }
    return group
  }

  /**
   * Gives a busy lane back: its first `done` items are finished and leave, the rest may be taken again, the first
   * `alone` of them each by itself.
   */
  settle(lane: Lane<T>, done: number, alone = Math.max(0, lane.alone - done)): void {
    const own = lane as LaneState<T>
    if (this.#release(own, done, alone)) this.#makeReady(own)
  }

  /** As `settle`, but nothing of the lane may be taken before `dueMs`. */
  hold(lane: Lane<T>, done: number, dueMs: number, alone = Math.max(0, lane.alone - done)): void {
    const own = lane as LaneState<T>
    if (!this.#release(own, done, alone)) return
    own.state = HELD
    own.dueMs = dueMs
    this.#pushHeld(own)
  }

  /** Makes the held lanes ready that are due; returns how many. */
  wake(nowMs: number): number {
    let woken = 0
    for (let lane = this.#held[0]; lane !== undefined && lane.dueMs <= nowMs; lane = this.#held[0]) {
      this.#popHeld()
      this.#makeReady(lane)
      woken++
    }
    return woken
  }

  /** Forgets a source with all that is queued in it. Its busy lanes may still be settled, to no effect. */
  drop(source: LaneSource<T>): void {
    const own = source as SourceState<T>
    if (own.dropped) return
    own.dropped = true
    own.lanes.clear()
    let lane = this.#first
    this.#first = this.#last = undefined
    this.#ready = 0
    while (lane !== undefined) {
      const next: LaneState<T> | undefined = lane.nextReady
      lane.nextReady = undefined
      if (!lane.source.dropped) this.#makeReady(lane)
      lane = next
    }
    const held = this.#held.splice(0)
    for (const waiting of held) if (!waiting.source.dropped) this.#pushHeld(waiting)
  }

  #makeReady(lane: LaneState<T>): void {
    lane.state = READY
    this.#ready += lane.length
    if (this.#last === undefined) this.#first = lane
    else this.#last.nextReady = lane
    this.#last = lane
  }

  /** Takes the finished items off a busy lane; false when the lane is gone. */
  #release(lane: LaneState<T>, done: number, alone: number): boolean {
    if (lane.state !== BUSY || done > lane.taken) throw new RangeError('only what was taken of a busy lane can be done')
    lane.taken = 0
    if (lane.source.dropped) {
      lane.head = lane.tail = undefined
      lane.length = 0
      return false
    }
    for (let i = 0; i < done; i++) {
      const item = lane.head as T
      lane.head = item.next
      item.next = undefined
    }
    lane.length -= done
    lane.alone = alone
    if (lane.head !== undefined) return true
    lane.tail = undefined
    if (lane.key !== null) lane.source.lanes.delete(lane.key)
    return false
  }

  #pushHeld(lane: LaneState<T>): void {
    const heap = this.#held
    let index = heap.push(lane) - 1
    while (index > 0) {
      const parent = (index - 1) >> 1
      if ((heap[parent] as LaneState<T>).dueMs <= lane.dueMs) break
      heap[index] = heap[parent] as LaneState<T>
      index = parent
    }
    heap[index] = lane
  }

  #popHeld(): void {
    const heap = this.#held
    const lane = heap.pop()
    if (lane === undefined || heap.length === 0) return
    let index = 0
    for (;;) {
      let child = index * 2 + 1
      if (child >= heap.length) break
      const right = heap[child + 1]
      if (right !== undefined && right.dueMs < (heap[child] as LaneState<T>).dueMs) child++
      if ((heap[child] as LaneState<T>).dueMs >= lane.dueMs) break
      heap[index] = heap[child] as LaneState<T>
      index = child
    }
    heap[index] = lane
  }
}
