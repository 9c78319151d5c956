/**
 * A member of a consumer group on @platformatic/kafka: its membership (`Membership`), what it owns, and where each
 * partition is fetched from (`Fetcher`). The client package gives the connections and the requests; its own consumer is
 * not used, for it can pause only all it has, and commits whatever it likes.
 *
 * - A partition is fetched once its start is known: what the group has committed, else an end of its log. Where a group
 *   begins at the `latest`, that end is committed at once, or what comes before the first commit of a handler would be
 *   skipped by a restart.
 * - A log that does not go on where it was (cut, made anew) is told as lost and assigned again.
 * - Nothing is handed over once the session's time has passed without a heartbeat: the partition may have a new owner.
 *
 * Life: new → starting → running → stopped, or failed (`stopped` rejects).
 */
import { delay, systemClock, withDeadline } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { Partition, Subscription, SubscriptionOptions } from '../../broker.ts'
import { CommitQueue } from '../commit-queue.ts'
import type { CommitOffset } from '../commit-queue.ts'
import { memberError, notCommitted, subscriptionStopped, unreachable } from '../group-error.ts'
import { OwnedPartitions } from '../owned-partitions.ts'
import type { OwnedPartition } from '../owned-partitions.ts'
import type { Client } from './client.ts'
import type { Connector } from './connector.ts'
import { classify } from './error-class.ts'
import { FetchedPartition, Fetcher } from './fetcher.ts'
import { Membership, nameOf } from './membership.ts'
import { listOffsets } from './start-offsets.ts'

const COMMIT_MS = 10_000
const JOIN_MS = 10_000
const REQUEST_TIMEOUT_MS = 10_000
const RETRY_MS = 50
const SESSION_TIMEOUT_MS = 30_000
const STOP_MS = 5000
/** How long a topic may be missing at the start, for brokers hear of a new one at different times. */
const TOPIC_MS = 2000

/** What is answered to a commit while the group meets: it counts afterwards, if the partition is still ours. */
const COMMIT_LATER = new Set(['ILLEGAL_GENERATION', 'REBALANCE_IN_PROGRESS'])

export class PlatformaticSubscription implements Subscription {
  readonly stopped: Promise<void>
  readonly #commits: CommitQueue
  readonly #connector: Connector
  readonly #options: SubscriptionOptions
  readonly #owned = new OwnedPartitions()
  readonly #sessionTimeoutMs: number
  readonly #stopping = new AbortController()
  #client: Client | undefined
  #fetcher: Fetcher | undefined
  #membership: Membership | undefined
  #rejectStopped!: (error: Error) => void
  #resolveStopped!: () => void
  #running: Promise<void> = Promise.resolve()
  #starting: Promise<void> | undefined
  #stop: Promise<void> | undefined

  constructor(connector: Connector, options: SubscriptionOptions) {
    this.#connector = connector
    this.#commits = new CommitQueue(this.#owned, (offsets, check) => this.#commitNow(offsets, check))
    this.#options = options
    this.#sessionTimeoutMs = options.sessionTimeoutMs ?? SESSION_TIMEOUT_MS
    this.stopped = new Promise((resolve, reject) => {
      this.#resolveStopped = resolve
      this.#rejectStopped = reject
    })
    // Whoever does not ask is not to be struck by an unhandled rejection.
    this.stopped.catch(() => {})
  }

  start(): Promise<void> {
    if (this.#stopping.signal.aborted) return Promise.reject(subscriptionStopped())
    this.#starting ??= this.#begin()
    return this.#starting
  }

  pause(partitions: readonly Partition[]): void {
    for (const owned of this.#ours(partitions)) owned.paused = true
  }

  resume(partitions: readonly Partition[]): void {
    for (const owned of this.#ours(partitions)) owned.paused = false
    this.#fetcher?.wake()
  }

  commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    return this.#commits.commit(positions)
  }

  stop(): Promise<void> {
    this.#stop ??= this.#leave()
    return this.#stop
  }

  async #begin(): Promise<void> {
    const { group, topics } = this.#options
    const sessionTimeoutMs = this.#sessionTimeoutMs
    const { signal } = this.#stopping
    const client = await this.#connector.open({
      requestTimeoutMs: REQUEST_TIMEOUT_MS,
      slowLanes: { join: Membership.meetingMs(sessionTimeoutMs) + REQUEST_TIMEOUT_MS },
    })
    this.#client = client
    try {
      await this.#findTopics(client)
    } catch (error) {
      this.#connector.release(client)
      throw memberError(classify(error), this.#options)
    }
    if (signal.aborted) {
      this.#connector.release(client)
      throw subscriptionStopped()
    }
    this.#fetcher = new Fetcher(client, signal, {
      broken: (partition, at) => this.#broken(partition, at),
      messages: ({ owned }, messages) => this.#tell(() => this.#options.onMessages(plain(owned), messages)),
      problem: (error) => this.#problem(error),
      wanted: ({ owned }) => !owned.paused && this.#owned.get(owned) === owned && this.#membership?.expired === false,
    })
    const membership = new Membership(
      client,
      { group, sessionTimeoutMs, topics },
      {
        assigned: (partitions, awaited) => this.#assigned(partitions, awaited),
        lost: () => this.#loseAll(),
        owned: () => this.#owned.all().map(plain),
        problem: (error) => this.#problem(error),
        revived: () => this.#fetcher?.wake(),
      },
    )
    this.#membership = membership
    await this.#join(membership)
  }

  /** Resolves when the group has met with us; rejects with what makes that impossible, or when nobody answers. */
  async #join(membership: Membership): Promise<void> {
    const joined = Promise.withResolvers<void>()
    let started = false
    this.#running = membership.run(this.#stopping.signal, joined.resolve).catch((error: unknown) => {
      const failure = memberError(classify(error), this.#options)
      if (started) this.#fail(failure)
      else joined.reject(failure)
    })
    // Meeting with others may take them long; that nobody answers may not.
    const deadlineMs = JOIN_MS + Membership.meetingMs(this.#sessionTimeoutMs)
    try {
      await withDeadline(systemClock, Promise.race([joined.promise, this.#aborted()]), deadlineMs, unreachable)
      started = true
    } catch (error) {
      this.#stopping.abort()
      if (this.#client !== undefined) this.#connector.release(this.#client)
      throw error
    }
  }

  #aborted(): Promise<never> {
    const { signal } = this.#stopping
    return new Promise((_, reject) => {
      signal.addEventListener('abort', () => reject(subscriptionStopped()), { once: true })
    })
  }

  /** Rejects when a topic is not there, or no broker answers in time. */
  async #findTopics(client: Client): Promise<void> {
    const started = systemClock.monotonic()
    for (;;) {
      let failure: unknown
      let patienceMs = TOPIC_MS
      try {
        const infos = await client.topics(this.#options.topics, true)
        failure = [...infos.values()].find((info) => info.error !== undefined)?.error
        if (failure === undefined) return
      } catch (error) {
        failure = error
        patienceMs = JOIN_MS
      }
      const { signal } = this.#stopping
      if (signal.aborted || classify(failure).class !== 'retry') throw failure
      if (systemClock.monotonic() - started > patienceMs) throw failure
      await delay(systemClock, RETRY_MS, signal)
    }
  }

  /** Takes over an assignment; true when something was given up for it. */
  async #assigned(partitions: readonly Partition[], awaited: boolean): Promise<boolean> {
    if (this.#stopping.signal.aborted) return false
    const next = new Map<string, number[]>()
    for (const { partition, topic } of partitions) next.set(topic, [...(next.get(topic) ?? []), partition])
    // What is given up in good order stays ours for its last commit.
    const mine = new Set(partitions.map(nameOfPartition))
    const leaving = awaited ? this.#owned.all().filter((one) => !mine.has(nameOfPartition(one))) : []
    for (const { partition, topic } of leaving) next.set(topic, [...(next.get(topic) ?? []), partition])
    const { gained, lost } = this.#owned.assign(Object.fromEntries(next))
    for (const owned of [...lost, ...leaving]) this.#fetcher?.remove(owned)
    if (lost.length > 0) this.#tell(() => this.#options.onLost(lost.map(plain)))
    if (gained.length > 0) this.#tell(() => this.#options.onAssigned(gained.map(plain)))
    if (gained.length > 0) void this.#locate(gained)
    if (leaving.length === 0) return false
    try {
      const settling = Promise.resolve(this.#options.onRevoking(leaving.map(plain)))
      await withDeadline(systemClock, settling, this.#sessionTimeoutMs, subscriptionStopped)
    } catch (error) {
      this.#problem(error)
    }
    this.#disown(leaving)
    return true
  }

  /** Takes these out of what is ours, unless they went already. */
  #disown(partitions: readonly OwnedPartition[]): void {
    const gone = new Set(partitions)
    const kept = new Map<string, number[]>()
    for (const one of this.#owned.all()) {
      if (!gone.has(one)) kept.set(one.topic, [...(kept.get(one.topic) ?? []), one.partition])
    }
    this.#owned.assign(Object.fromEntries(kept))
  }

  #loseAll(): void {
    const { lost } = this.#owned.assign({})
    for (const owned of lost) this.#fetcher?.remove(owned)
    if (lost.length > 0) this.#tell(() => this.#options.onLost(lost.map(plain)))
  }

  /** Finds out where these partitions begin, and has them fetched. */
  async #locate(partitions: readonly OwnedPartition[]): Promise<void> {
    const { signal } = this.#stopping
    for (let failures = 0; ; failures++) {
      const left = partitions.filter((one) => this.#owned.get(one) === one && one.next === undefined)
      if (left.length === 0 || signal.aborted) return
      try {
        const committed = await this.#membership?.committed(left)
        const without = left.filter((one) => committed?.has(nameOfPartition(one)) !== true)
        const fresh = without.length === 0 ? undefined : await this.#freshStarts(without)
        for (const one of left) {
          const start = committed?.get(nameOfPartition(one)) ?? fresh?.get(nameOfPartition(one))
          if (start !== undefined) this.#fetchFrom(one, start)
        }
      } catch (error) {
        if (failures > 3) this.#problem(error)
      }
      await delay(systemClock, Math.min(2000, RETRY_MS * 2 ** Math.min(failures, 6)), signal)
    }
  }

  /** Where a group without a commit begins. An end is committed before anything of it is handed over. */
  async #freshStarts(partitions: readonly OwnedPartition[]): Promise<Map<string, bigint>> {
    const { startFrom = 'earliest' } = this.#options
    const starts = await listOffsets(this.#client as Client, partitions, startFrom)
    if (startFrom === 'latest') {
      const offsets = partitions.flatMap((one) => {
        const offset = starts.get(nameOfPartition(one))
        return offset === undefined || this.#owned.get(one) !== one ? [] : [{ ...plain(one), offset }]
      })
      if (offsets.length > 0) await this.#membership?.commit(offsets)
    }
    return starts
  }

  #fetchFrom(owned: OwnedPartition, offset: bigint): void {
    if (this.#owned.get(owned) !== owned || owned.next !== undefined) return
    owned.next = offset
    owned.committed = offset
    this.#fetcher?.add(new FetchedPartition(owned, offset))
  }

  /** The log does not go on where it was. Undefined: it ends before, or begins after. */
  #broken(partition: FetchedPartition, at: bigint | undefined): void {
    const { owned } = partition
    this.#fetcher?.remove(owned)
    if (this.#owned.get(owned) !== owned) return
    if (at === undefined) void this.#reset(owned, partition.offset)
    else this.#renew(owned, at)
  }

  /** What is to be read is not in the log: goes on at its beginning, which is told only if that is a step back. */
  async #reset(owned: OwnedPartition, offset: bigint): Promise<void> {
    const { signal } = this.#stopping
    for (;;) {
      if (this.#owned.get(owned) !== owned || signal.aborted) return
      try {
        const start = (await listOffsets(this.#client as Client, [owned], 'earliest')).get(nameOfPartition(owned))
        if (start !== undefined && this.#owned.get(owned) === owned) {
          if (start < offset) this.#renew(owned, start)
          else {
            owned.next = start
            this.#fetcher?.add(new FetchedPartition(owned, start))
          }
          return
        }
      } catch (error) {
        this.#problem(error)
      }
      await delay(systemClock, RETRY_MS * 4, signal)
    }
  }

  /** Gives the partition a new life that begins at this offset. */
  #renew(owned: OwnedPartition, at: bigint): void {
    const again = [plain(owned)]
    const renewed = this.#owned.renew(owned)
    this.#tell(() => this.#options.onLost(again))
    this.#tell(() => this.#options.onAssigned(again))
    this.#fetchFrom(renewed, at)
    renewed.committed = -1n
  }

  /** Sends until the broker has them: what it says while the group meets counts for that moment only. */
  async #commitNow(offsets: readonly CommitOffset[], check: () => void): Promise<void> {
    const deadline = systemClock.monotonic() + COMMIT_MS
    for (;;) {
      check()
      if (this.#stopping.signal.aborted || this.#membership === undefined) throw subscriptionStopped()
      try {
        const left = Math.max(1, deadline - systemClock.monotonic())
        return await withDeadline(systemClock, this.#membership.commit(offsets), left, () => notCommitted())
      } catch (error) {
        const passes = COMMIT_LATER.has(nameOf(error)) || classify(error).class === 'retry'
        const late = error instanceof MillraceError || systemClock.monotonic() > deadline
        if (!passes || late || nameOf(error) === 'UNKNOWN_MEMBER_ID') {
          throw error instanceof MillraceError ? error : notCommitted(classify(error).cause)
        }
        await delay(systemClock, RETRY_MS, this.#stopping.signal)
      }
    }
  }

  async #leave(): Promise<void> {
    // Commits that were asked for before are still answered.
    await withDeadline(systemClock, this.#commits.settled(), STOP_MS, subscriptionStopped).catch(() => {})
    await this.#end()
    this.#resolveStopped()
  }

  /** Leaves the group and ends every connection; nothing is handed over from its first moment on. */
  async #end(): Promise<void> {
    this.#stopping.abort()
    this.#owned.assign({})
    await this.#membership?.leave()
    if (this.#client !== undefined) this.#connector.release(this.#client)
    // Its requests were ended with the connections.
    await withDeadline(systemClock, this.#running, STOP_MS, subscriptionStopped).catch(() => {})
    await withDeadline(systemClock, Promise.allSettled([this.#starting]), STOP_MS, subscriptionStopped).catch(() => {})
  }

  /** The member can no longer work. */
  #fail(error: Error): void {
    if (this.#stopping.signal.aborted) return
    this.#stopping.abort()
    this.#loseAll()
    this.#rejectStopped(error)
    this.#stop ??= this.#end()
  }

  /** A callback that throws has lost its place, and so has the member. */
  #tell(callback: () => void): void {
    try {
      callback()
    } catch (error) {
      this.#fail(error instanceof Error ? error : new Error(String(error)))
    }
  }

  #problem(error: unknown): void {
    if (!this.#stopping.signal.aborted) {
      this.#tell(() => this.#options.onError(memberError(classify(error), this.#options)))
    }
  }

  #ours(partitions: readonly Partition[]): OwnedPartition[] {
    return partitions.flatMap((one) => this.#owned.get(one) ?? [])
  }
}

function plain({ partition, topic }: Partition): Partition {
  return { partition, topic }
}

function nameOfPartition({ partition, topic }: Partition): string {
  return `${partition} ${topic}`
}
