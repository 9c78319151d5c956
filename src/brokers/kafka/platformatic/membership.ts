/**
 * The membership in a consumer group, in Kafka's classic protocol: meet (join, sync), then heartbeats until the group
 * meets again. It runs on timers of its own, so neither a handler nor a fetch can hold a heartbeat up.
 *
 * - Nothing is given up to meet: what is ours goes on while the group meets. With the cooperative protocol a partition
 *   that moves is given up when the new assignment says so (`onRevoking` is awaited, heartbeats go on), and the group
 *   meets again to give it to another.
 * - Commits carry the generation whose assignment is in force, never one that is still being met for.
 * - A broker that is away costs nothing until the session's time is over; then the group must be thought to have given
 *   our partitions to others, so all is lost, whatever the broker says when it is back.
 */
import { delay, systemClock, withDeadline } from '../../../core/clock.ts'
import type { Partition } from '../../broker.ts'
import type { ApiAnswer, ApiArguments, ApiName } from './apis.ts'
import { assign } from './assignor.ts'
import type { Client } from './client.ts'
import { classify, ProtocolRefusal } from './error-class.ts'
import {
  COOPERATIVE,
  decodeAssignment,
  decodeSubscription,
  encodeAssignment,
  encodeSubscription,
} from './group-wire.ts'
import type { Address, Link } from './link.ts'

const BACKOFF_FIRST_MS = 100
const BACKOFF_MAX_MS = 2000
const HEARTBEAT_MAX_MS = 1000
const LEAVE_MS = 3000
/** How often the leader looks whether topics have other partitions than those it gave away. */
const TOPICS_LOOK_MS = 30_000

/** What a group answers that is answered by meeting again. */
const MEET_AGAIN = new Set(['ILLEGAL_GENERATION', 'REBALANCE_IN_PROGRESS', 'UNKNOWN_MEMBER_ID'])

/** Which group, and as who. */
export interface MembershipOptions {
  readonly group: string
  readonly sessionTimeoutMs: number
  readonly topics: readonly string[]
}

/** Whom the membership tells. */
export interface MembershipEvents {
  /**
   * All that is ours from now on. With `awaited` nobody else has what is not in it yet; resolves true when something
   * was given up, so that the group must meet again.
   */
  assigned(partitions: readonly Partition[], awaited: boolean): Promise<boolean>
  /** The group has given us up, or must be thought to have. */
  lost(): void
  owned(): readonly Partition[]
  /** The session's time had passed, but the group still knows us: what is ours goes on. */
  revived(): void
  /** Something went wrong that is tried again. */
  problem(error: unknown): void
}

export class Membership {
  readonly #client: Client
  readonly #events: MembershipEvents
  readonly #options: MembershipOptions
  #coordinator: Address | undefined
  /** The generation whose assignment is in force; -1 when there is none. */
  #generation = -1
  #lastHeard = -Infinity
  #memberId = ''

  constructor(client: Client, options: MembershipOptions, events: MembershipEvents) {
    this.#client = client
    this.#events = events
    this.#options = options
  }

  /** For how long the group waits for a member when it meets. */
  static meetingMs(sessionTimeoutMs: number): number {
    return 2 * sessionTimeoutMs
  }

  /** True when the group must be thought to have given our partitions to others. */
  get expired(): boolean {
    return systemClock.monotonic() - this.#lastHeard > this.#options.sessionTimeoutMs
  }

  /** Is a member until the signal aborts; rejects with what makes that impossible. `joined` is called at the first assignment. */
  async run(signal: AbortSignal, joined: () => void): Promise<void> {
    let backoffMs = BACKOFF_FIRST_MS
    while (!signal.aborted) {
      try {
        await this.#term(signal, () => {
          backoffMs = BACKOFF_FIRST_MS
          joined()
        })
      } catch (error) {
        if (signal.aborted) return
        if (classify(error).class === 'fatal') throw error
        const name = nameOf(error)
        if (name === 'UNKNOWN_MEMBER_ID' || name === 'ILLEGAL_GENERATION') {
          this.#giveUp(name === 'UNKNOWN_MEMBER_ID')
          continue
        }
        if (MEET_AGAIN.has(name)) continue
        this.#coordinator = undefined
        if (this.expired) this.#giveUp(false)
        if (backoffMs > BACKOFF_FIRST_MS) this.#events.problem(error)
        await delay(systemClock, backoffMs * (0.5 + systemClock.random() / 2), signal)
        backoffMs = Math.min(BACKOFF_MAX_MS, backoffMs * 2)
      }
    }
  }

  /** Leaves the group, if the broker lets us within a moment. */
  async leave(): Promise<void> {
    if (this.#memberId === '') return
    const member = { groupInstanceId: null, memberId: this.#memberId, reason: null }
    const leaving = this.#ask('group', 'leaveGroup', this.#options.group, [member])
    // Else the broker finds out by the session's timeout.
    await withDeadline(systemClock, leaving, LEAVE_MS, () => new Error('no answer')).catch(() => {})
  }

  /** Commits once; rejects with what the broker says or fails to say. */
  async commit(offsets: readonly (Partition & { readonly offset: bigint })[]): Promise<void> {
    const topics = Array.from(
      Map.groupBy(offsets, (one) => one.topic),
      ([name, own]) => ({
        name,
        partitions: own.map(({ offset, partition }) => ({
          committedLeaderEpoch: -1,
          committedMetadata: null,
          committedOffset: offset,
          partitionIndex: partition,
        })),
      }),
    )
    const { group } = this.#options
    // In one turn with the caller's look at what is ours.
    const [generation, memberId] = [this.#generation, this.#memberId]
    if (generation < 0) throw new ProtocolRefusal('REBALANCE_IN_PROGRESS')
    const answer = await this.#ask('group', 'offsetCommit', group, generation, memberId, null, topics)
    const answers = answer.topics.flatMap((topic) => topic.partitions)
    for (const one of answers) this.#check(one.errorCode)
    if (answers.length < offsets.length) throw new ProtocolRefusal('NETWORK_EXCEPTION', 'not every offset was answered')
  }

  /** The offsets the group has committed; those without one are left out. */
  async committed(partitions: readonly Partition[]): Promise<Map<string, bigint>> {
    const topics = Array.from(
      Map.groupBy(partitions, (one) => one.topic),
      ([name, own]) => ({ name, partitionIndexes: own.map((one) => one.partition) }),
    )
    const wanted = { groupId: this.#options.group, memberEpoch: -1, memberId: null, topics }
    const { groups } = await this.#ask('group', 'offsetFetch', [wanted], true)
    const found = new Map<string, bigint>()
    for (const group of groups) {
      this.#check(group.errorCode)
      for (const { name, partitions: own } of group.topics) {
        for (const one of own) {
          this.#check(one.errorCode)
          if (one.committedOffset >= 0n) found.set(`${one.partitionIndex} ${name}`, one.committedOffset)
        }
      }
    }
    return found
  }

  /** One meeting of the group, and the time until the next. */
  async #term(signal: AbortSignal, joined: () => void): Promise<void> {
    const met = new AbortController()
    void this.#stayHeard(AbortSignal.any([signal, met.signal]))
    let assignment: Partition[]
    let awaited: boolean
    let counts: ReadonlyMap<string, number> | undefined
    let generation: number
    try {
      const meeting = await this.#join()
      generation = meeting.generationId
      awaited = meeting.protocolName === COOPERATIVE
      const { group } = this.#options
      const shares = meeting.leader === this.#memberId ? await this.#shares(meeting, awaited) : undefined
      counts = shares?.counts
      // The answer may have lain there while this process stood still.
      const at = systemClock.monotonic()
      const { assignment: share } = await this.#ask(
        'join',
        'syncGroup',
        group,
        generation,
        this.#memberId,
        null,
        'consumer',
        meeting.protocolName ?? null,
        shares?.assignments ?? [],
      )
      assignment = decodeAssignment(this.#client.module, share)
      this.#heard(at)
    } finally {
      met.abort()
    }
    if (signal.aborted) return
    // Who gives up everything to meet may have had ours in a generation that we missed.
    if (!awaited && this.#generation >= 0 && generation !== this.#generation + 1) this.#giveUp(false)
    const over = new AbortController()
    const stopped = AbortSignal.any([signal, over.signal])
    const beating = this.#beat(generation, counts, stopped)
    let out = false
    beating.catch(() => (out = true))
    try {
      const giving = this.#events.assigned(assignment, awaited)
      this.#generation = generation
      joined()
      const gave = await giving
      // Who is out of the group by now meets nobody as what he was.
      if (!gave || (out && !signal.aborted)) await beating
    } finally {
      over.abort()
    }
  }

  async #join(): Promise<ApiAnswer<'joinGroup'>> {
    const { group, sessionTimeoutMs, topics } = this.#options
    const meetingMs = Membership.meetingMs(sessionTimeoutMs)
    for (;;) {
      const protocols = encodeSubscription(this.#client.module, topics, this.#events.owned(), this.#generation)
      const link = await this.#link('join')
      const answer = await link.request(
        'joinGroup',
        group,
        sessionTimeoutMs,
        meetingMs,
        this.#memberId,
        null,
        'consumer',
        protocols,
        null,
      )
      if (answer.memberId !== '') this.#memberId = answer.memberId
      if (answer.errorCode === 0) return answer
      const refusal = this.#client.refusal(answer.errorCode)
      if (refusal.apiId !== 'MEMBER_ID_REQUIRED') throw refusal
    }
  }

  /** What everybody gets: the leader's task. */
  async #shares(
    { members }: ApiAnswer<'joinGroup'>,
    cooperative: boolean,
  ): Promise<{ assignments: { assignment: Buffer; memberId: string }[]; counts: ReadonlyMap<string, number> }> {
    const { module } = this.#client
    const candidates = members.map((one) => decodeSubscription(module, one.memberId, one.metadata))
    const counts = await this.#counts(new Set(candidates.flatMap((one) => [...one.topics])))
    const assignments = Array.from(assign(candidates, counts, cooperative), ([memberId, partitions]) => ({
      assignment: encodeAssignment(module, partitions),
      memberId,
    }))
    return { assignments, counts }
  }

  async #counts(topics: ReadonlySet<string>): Promise<Map<string, number>> {
    const infos = await this.#client.topics(topics, true)
    return new Map(Array.from(infos, ([name, info]) => [name, info.partitions.length]))
  }

  /** Heartbeats until the group meets again (resolves), or we are out of it (rejects). */
  async #beat(generation: number, counts: ReadonlyMap<string, number> | undefined, signal: AbortSignal): Promise<void> {
    const { group } = this.#options
    let looked = systemClock.monotonic()
    let meets = false
    const { promise, reject, resolve } = Promise.withResolvers<void>()
    const beat = async (): Promise<void> => {
      while (!signal.aborted) {
        await delay(systemClock, this.#everyMs, signal)
        if (signal.aborted) break
        const at = systemClock.monotonic()
        try {
          await this.#ask('group', 'heartbeat', group, generation, this.#memberId, null)
          this.#heard(at)
          if (counts !== undefined && at - looked > TOPICS_LOOK_MS) {
            looked = at
            const now = await this.#counts(new Set(counts.keys()))
            meets ||= [...counts].some(([topic, count]) => now.get(topic) !== count)
          }
        } catch (error) {
          const name = nameOf(error)
          if (name === 'REBALANCE_IN_PROGRESS') {
            // Alive all the same, while something is still being given up.
            this.#heard(at)
            meets = true
          } else if (MEET_AGAIN.has(name) || classify(error).class === 'fatal' || this.expired) {
            throw error
          } else {
            this.#coordinator = undefined
          }
        }
        if (meets) resolve()
      }
      resolve()
    }
    beat().catch((error: unknown) => {
      // Nothing more is handed over, also while something is still being given up.
      if (!signal.aborted) this.#lastHeard = -Infinity
      reject(error)
    })
    await promise
  }

  /**
   * Heartbeats while the group meets, for the meeting may take longer than the session, and its answer may never come.
   * To be told of another generation is to be known.
   */
  async #stayHeard(signal: AbortSignal): Promise<void> {
    const { group } = this.#options
    const generation = this.#generation
    if (generation < 0) return
    while (!signal.aborted) {
      await delay(systemClock, this.#everyMs, signal)
      if (signal.aborted) return
      const at = systemClock.monotonic()
      try {
        await this.#ask('group', 'heartbeat', group, generation, this.#memberId, null)
        this.#heard(at)
      } catch (error) {
        const name = nameOf(error)
        // The meeting itself will be told.
        if (name === 'UNKNOWN_MEMBER_ID' || signal.aborted) return
        if (MEET_AGAIN.has(name)) this.#heard(at)
        else if (this.expired) return this.#giveUp(false)
      }
    }
  }

  get #everyMs(): number {
    return Math.max(1, Math.min(HEARTBEAT_MAX_MS, Math.floor(this.#options.sessionTimeoutMs / 10)))
  }

  #heard(at: number): void {
    const was = this.expired
    this.#lastHeard = Math.max(this.#lastHeard, at)
    if (was && !this.expired && this.#generation >= 0) this.#events.revived()
  }

  /** All is lost; the next meeting is as somebody new if the group does not know us. */
  #giveUp(unknown: boolean): void {
    if (unknown) this.#memberId = ''
    this.#generation = -1
    this.#events.lost()
  }

  async #ask<N extends ApiName>(lane: string, name: N, ...args: ApiArguments<N>): Promise<ApiAnswer<N>> {
    const link = await this.#link(lane)
    const answer = await link.request(name, ...args)
    const { errorCode } = answer as { readonly errorCode?: number }
    if (errorCode !== undefined) this.#check(errorCode)
    return answer
  }

  #check(errorCode: number): void {
    if (errorCode === 0) return
    const refusal = this.#client.refusal(errorCode)
    if (refusal.apiId.includes('COORDINATOR')) this.#coordinator = undefined
    throw refusal
  }

  async #link(lane: string): Promise<Link> {
    if (this.#coordinator === undefined) {
      const link = await this.#client.any('control')
      const { coordinators } = await link.request('findCoordinator', 0, [this.#options.group])
      const found = coordinators[0]
      if (found === undefined) throw new ProtocolRefusal('COORDINATOR_NOT_AVAILABLE')
      if (found.errorCode !== 0) throw this.#client.refusal(found.errorCode, found.errorMessage)
      this.#coordinator = { host: found.host, port: found.port }
    }
    try {
      return await this.#client.at(this.#coordinator, lane)
    } catch (error) {
      this.#coordinator = undefined
      throw error
    }
  }
}

/** The protocol's name of the error; empty when it has none. */
export function nameOf(error: unknown): string {
  return error instanceof ProtocolRefusal ? error.apiId : ''
}
