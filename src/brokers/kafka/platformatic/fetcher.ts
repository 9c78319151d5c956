/**
 * Fetches the partitions that are ours, on the client's `Fetch` request: the client's own stream can be paused only as a
 * whole.
 *
 * - One request asks a broker for all its partitions that are neither paused nor being fetched already. What it brings is
 *   handed over synchronously, and the next request is sent; nobody waits for a handler.
 * - A paused partition is left out of the next request. What a request that was under way brings of it is dropped, and
 *   fetched again on resume from the same offset.
 * - A partition that is resumed or assigned while requests are waiting for messages does not wait for them: a broker is
 *   asked over up to `LANES` connections, and a partition is in one request at a time.
 * - A leader that moved is asked for again. A log that was cut or made anew (its leader epochs, its end or its topic's id
 *   say so) is told of, for positions rise strictly within one assignment.
 */
import { delay, systemClock } from '../../../core/clock.ts'
import type { IncomingMessage } from '../../broker.ts'
import type { OwnedPartition } from '../owned-partitions.ts'
import type { ApiAnswer, ApiArguments } from './apis.ts'
import type { Client } from './client.ts'
import { verdictOf } from './error-class.ts'
import { readFetched } from './fetched-records.ts'

/** How long a broker waits for messages before it answers with none. */
const WAIT_MS = 250
const LANES = 3
const BACKOFF_FIRST_MS = 50
const BACKOFF_MAX_MS = 2000
/** What one answer may bring, of one partition and in all; a larger record batch comes alone. It is parsed in one turn. */
const PARTITION_BYTES = 1024 * 1024
const ANSWER_BYTES = 4 * 1024 * 1024
const READ_COMMITTED = 1
// A request that stands for itself: no fetch session.
const NO_SESSION = [0, -1] as const

type PartitionAnswer = ApiAnswer<'fetch'>['responses'][number]['partitions'][number]
type TopicRequest = ApiArguments<'fetch'>[6][number]

/** A partition that is ours, and where it is fetched from. */
export class FetchedPartition {
  /** It is in a request. */
  busy = false
  /** How often in a row it could not be fetched. */
  failures = 0
  lastEpoch = -1
  /** Not before this time, for it could not be fetched. */
  notBefore = 0
  offset: bigint
  readonly owned: OwnedPartition
  /** The topic as it was when fetching began; one made anew has another. */
  topicId: string | undefined = undefined

  constructor(owned: OwnedPartition, offset: bigint) {
    this.owned = owned
    this.offset = offset
  }
}

/** Whom the fetcher asks and tells. */
export interface FetcherEvents {
  /** The log of this partition does not go on where it was: it was cut at this offset, made anew (0), or its start or end passed us. */
  broken(partition: FetchedPartition, at: bigint | undefined): void
  /** Messages, never none. */
  messages(partition: FetchedPartition, messages: readonly IncomingMessage[]): void
  problem(error: unknown): void
  /** Whether it may be handed over and fetched: it is ours, and not paused. */
  wanted(partition: FetchedPartition): boolean
}

export class Fetcher {
  readonly #client: Client
  readonly #events: FetcherEvents
  readonly #lanes = new Map<number, Set<number>>()
  readonly #partitions = new Set<FetchedPartition>()
  readonly #signal: AbortSignal
  #refreshing = false
  #waking = false

  constructor(client: Client, signal: AbortSignal, events: FetcherEvents) {
    this.#client = client
    this.#events = events
    this.#signal = signal
  }

  add(partition: FetchedPartition): void {
    this.#partitions.add(partition)
    this.wake()
  }

  remove(owned: OwnedPartition): void {
    for (const one of this.#partitions) if (one.owned === owned) this.#partitions.delete(one)
  }

  /** Fetches what can be fetched, in the next turn, so that many calls make one request. */
  wake(): void {
    if (this.#waking) return
    this.#waking = true
    queueMicrotask(() => {
      this.#waking = false
      if (!this.#signal.aborted) this.#fetchAll()
    })
  }

  #fetchAll(): void {
    const byLeader = new Map<number, FetchedPartition[]>()
    const now = systemClock.monotonic()
    for (const one of this.#partitions) {
      if (one.busy || one.notBefore > now || !this.#events.wanted(one)) continue
      const { partition, topic } = one.owned
      const info = this.#client.known(topic)
      const leader = info?.partitions[partition]?.leader ?? -1
      if (info === undefined || leader < 0) {
        this.#hold(one)
        continue
      }
      one.topicId ??= info.id
      if (one.topicId !== info.id) {
        this.#events.broken(one, 0n)
        continue
      }
      const own = byLeader.get(leader)
      if (own === undefined) byLeader.set(leader, [one])
      else own.push(one)
    }
    for (const [node, own] of byLeader) this.#fetch(node, own)
  }

  #fetch(node: number, partitions: FetchedPartition[]): void {
    let lanes = this.#lanes.get(node)
    if (lanes === undefined) this.#lanes.set(node, (lanes = new Set()))
    const inUse = lanes
    const lane = Array.from({ length: LANES }, (_, i) => i).find((one) => !inUse.has(one))
    // The first answer wakes us again.
    if (lane === undefined) return
    inUse.add(lane)
    for (const one of partitions) one.busy = true
    this.#ask(node, lane, partitions)
      .catch((error: unknown) => {
        for (const one of partitions) this.#hold(one)
        if (!this.#signal.aborted && (partitions[0]?.failures ?? 0) > 3) this.#events.problem(error)
      })
      .finally(() => {
        inUse.delete(lane)
        for (const one of partitions) one.busy = false
        this.wake()
      })
  }

  async #ask(node: number, lane: number, partitions: readonly FetchedPartition[]): Promise<void> {
    const link = await this.#client.broker(node, `fetch${lane}`)
    const asked = new Map<string, { readonly from: bigint; readonly one: FetchedPartition }>()
    const topics = new Map<string, TopicRequest>()
    for (const one of partitions) {
      const { partition, topic } = one.owned
      const topicId = one.topicId ?? ''
      let request = topics.get(topicId)
      if (request === undefined) topics.set(topicId, (request = { partitions: [], topicId }))
      asked.set(`${partition} ${topicId}`, { from: one.offset, one })
      request.partitions.push({
        currentLeaderEpoch: this.#client.known(topic)?.partitions[partition]?.leaderEpoch ?? -1,
        fetchOffset: one.offset,
        lastFetchedEpoch: one.lastEpoch,
        partition,
        partitionMaxBytes: PARTITION_BYTES,
      })
    }
    const wanted = [...topics.values()]
    const answer = await link.request('fetch', WAIT_MS, 1, ANSWER_BYTES, READ_COMMITTED, ...NO_SESSION, wanted, [], '')
    if (answer.errorCode !== 0) throw this.#client.refusal(answer.errorCode)
    for (const { partitions: answers, topicId } of answer.responses) {
      for (const partitionAnswer of answers) {
        const found = asked.get(`${partitionAnswer.partitionIndex} ${topicId}`)
        if (found !== undefined) this.#take(found.one, found.from, partitionAnswer)
      }
    }
  }

  #take(one: FetchedPartition, from: bigint, answer: PartitionAnswer): void {
    if (this.#signal.aborted || !this.#partitions.has(one) || one.offset !== from) return
    if (answer.errorCode !== 0) {
      this.#refused(one, answer.errorCode)
      return
    }
    one.failures = 0
    if (answer.divergingEpoch !== undefined && answer.divergingEpoch.epoch >= 0) {
      this.#events.broken(one, answer.divergingEpoch.endOffset)
      return
    }
    if (!this.#events.wanted(one) || (answer.records ?? []).length === 0) return
    const { leaderEpoch, messages, next } = readFetched(one.owned, from, answer)
    one.offset = next
    if (leaderEpoch >= 0) one.lastEpoch = leaderEpoch
    one.owned.next = next
    if (messages.length > 0) this.#events.messages(one, messages)
  }

  #refused(one: FetchedPartition, errorCode: number): void {
    const refusal = this.#client.refusal(errorCode)
    if (refusal.apiId === 'OFFSET_OUT_OF_RANGE') {
      this.#events.broken(one, undefined)
      return
    }
    this.#hold(one)
    // A change of leader is routine, and so is a topic that is being made anew.
    if (verdictOf(refusal).class === 'fatal' || one.failures > 10) this.#events.problem(refusal)
  }

  /** Asks again after a moment, by when it is known who leads it. */
  #hold(one: FetchedPartition): void {
    const waitMs = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** Math.min(one.failures++, 10))
    one.notBefore = systemClock.monotonic() + waitMs
    void this.#refresh()
    void delay(systemClock, waitMs + 1, this.#signal).then(() => this.wake())
  }

  async #refresh(): Promise<void> {
    if (this.#refreshing) return
    this.#refreshing = true
    const names = new Set(Array.from(this.#partitions, (one) => one.owned.topic))
    try {
      await this.#client.topics(names, true)
    } catch {
      // No broker answers; whoever waits asks again.
    }
    this.#refreshing = false
    this.wake()
  }
}
