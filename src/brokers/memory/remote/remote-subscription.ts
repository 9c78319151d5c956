/**
 * A member of a group of a served memory broker.
 *
 * The broker has at most two hand-overs of a partition under way that were not `taken`; a paused partition keeps what
 * has come in here and takes nothing, so memory is bounded and `pause` holds at once. Each assignment has a number:
 * what belongs to an earlier one is dropped on both sides. When the connection is lost, so are the partitions; the
 * member joins again, with backoff, until it is stopped.
 */
import type { Clock } from '../../../core/clock.ts'
import { delay } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { Partition, Subscription, SubscriptionOptions } from '../../broker.ts'
import { closedError } from '../local-client.ts'
import { partitionName } from '../member.ts'
import type { Address } from './address.ts'
import { Connection } from './connection.ts'
import { integerOf, listOf, protocolError, textOf } from './frame.ts'
import { readHandOver } from './message-frames.ts'
import type { HandOver } from './message-frames.ts'

const REQUEST_MS = 10_000
const FIRST_BACKOFF_MS = 50
const LAST_BACKOFF_MS = 1000

interface Assignment extends Partition {
  readonly number: number
  readonly waiting: HandOver[]
  paused: boolean
  revoking: boolean
}

export class RemoteSubscription implements Subscription {
  readonly stopped: Promise<void>
  readonly #address: Address
  readonly #clock: Clock
  readonly #options: SubscriptionOptions
  readonly #assignments = new Map<string, Assignment>()
  readonly #stopping = new AbortController()
  readonly #stop = Promise.withResolvers<void>()
  #connection: Connection | undefined
  #started: Promise<void> | undefined

  constructor(address: Address, clock: Clock, options: SubscriptionOptions) {
    this.#address = address
    this.#clock = clock
    this.#options = options
    this.stopped = this.#stop.promise
  }

  start(): Promise<void> {
    if (this.#stopping.signal.aborted) return Promise.reject(closedError())
    this.#started ??= this.#join().catch((error: unknown) => {
      this.#started = undefined
      throw error
    })
    return this.#started
  }

  pause(partitions: readonly Partition[]): void {
    for (const partition of partitions) {
      const assignment = this.#assignments.get(partitionName(partition))
      if (assignment !== undefined) assignment.paused = true
    }
  }

  resume(partitions: readonly Partition[]): void {
    for (const partition of partitions) {
      const assignment = this.#assignments.get(partitionName(partition))
      if (assignment === undefined || !assignment.paused) continue
      assignment.paused = false
      // Not here and now: the caller may stand inside a hand-over.
      setImmediate(() => this.#handOver(assignment))
    }
  }

  async commit(positions: readonly (Partition & { readonly position: bigint })[]): Promise<void> {
    const connection = this.#connection
    const owned = positions.map(({ topic, partition, position }) => {
      const assignment = this.#assignments.get(partitionName({ topic, partition }))
      if (assignment === undefined || connection === undefined) {
        throw new MillraceError(
          'PARTITION_LOST',
          `partition ${partition} of ${topic} is not owned by this member: commit nothing of it`,
          { details: { topic, partition, position: String(position) } },
        )
      }
      return { topic, partition, assignment: assignment.number, position: String(position) }
    })
    await connection?.request({ method: 'commit', positions: owned }, REQUEST_MS)
  }

  async stop(): Promise<void> {
    this.#stopping.abort()
    this.#assignments.clear()
    await this.#started?.catch(() => {})
    const connection = this.#connection
    this.#connection = undefined
    // When the broker does not answer it sees the socket end, which is leaving too.
    await connection?.request({ method: 'leave' }, 1000).catch(() => {})
    connection?.end()
    this.#stop.resolve()
  }

  async #join(): Promise<void> {
    const { group, startFrom, sessionTimeoutMs } = this.#options
    const connection = await Connection.open(this.#address, this.#clock, REQUEST_MS, {
      onControl: (control) => this.#told(control),
      onHandOver: (body) => this.#received(readHandOver(body)),
      onLost: (error) => this.#lost(error),
    })
    this.#connection = connection
    try {
      const topics = this.#options.topics
      await connection.request({ method: 'subscribe', group, topics, startFrom, sessionTimeoutMs }, REQUEST_MS)
    } catch (error) {
      connection.end()
      throw error
    }
  }

  #lost(error: Error): void {
    this.#connection = undefined
    const partitions = [...this.#assignments.values()].map(plain)
    this.#assignments.clear()
    if (this.#stopping.signal.aborted) return
    this.#guard(() => this.#options.onError(error))
    if (partitions.length > 0) this.#guard(() => this.#options.onLost(partitions))
    this.#started = this.#rejoin()
  }

  async #rejoin(): Promise<void> {
    const { signal } = this.#stopping
    for (let backoffMs = FIRST_BACKOFF_MS; !signal.aborted; backoffMs = Math.min(backoffMs * 2, LAST_BACKOFF_MS)) {
      await delay(this.#clock, backoffMs * (0.5 + this.#clock.random() / 2), signal)
      if (signal.aborted) return
      try {
        return await this.#join()
      } catch (error) {
        this.#guard(() => this.#options.onError(error as Error))
      }
    }
  }

  #told(control: Readonly<Record<string, unknown>>): void {
    switch (control['tell']) {
      case 'assigned':
        return this.#assigned(listOf(control['partitions'], readAssignment))
      case 'revoking':
        return void this.#revoking(integerOf(control['revoke']), listOf(control['partitions'], readPartition))
      case 'lost':
        return this.#taken(listOf(control['partitions'], readPartition))
      case 'error':
        return this.#guard(() => this.#options.onError(new Error(textOf(control['message']))))
      case 'ping':
        return this.#connection?.tell({ tell: 'pong' })
      default:
        throw protocolError('something unknown was told')
    }
  }

  #assigned(assignments: readonly Assignment[]): void {
    if (this.#stopping.signal.aborted) return
    for (const assignment of assignments) this.#assignments.set(partitionName(assignment), assignment)
    this.#guard(() => this.#options.onAssigned(assignments.map(plain)))
  }

  async #revoking(revoke: number, partitions: readonly Partition[]): Promise<void> {
    const connection = this.#connection
    const owned = partitions.flatMap((partition) => this.#assignments.get(partitionName(partition)) ?? [])
    for (const assignment of owned) assignment.revoking = true
    try {
      if (owned.length > 0) await this.#options.onRevoking(owned.map(plain))
    } catch (error) {
      this.#guard(() => this.#options.onError(error as Error))
    }
    for (const assignment of owned) this.#forget(assignment)
    connection?.tell({ tell: 'revoked', revoke })
  }

  #taken(partitions: readonly Partition[]): void {
    const lost = partitions.filter((partition) => this.#assignments.delete(partitionName(partition)))
    if (lost.length > 0) this.#guard(() => this.#options.onLost(lost))
  }

  #received(handOver: HandOver): void {
    const assignment = this.#assignments.get(partitionName(handOver.partition))
    if (assignment?.number !== handOver.assignment) return
    assignment.waiting.push(handOver)
    this.#handOver(assignment)
  }

  #handOver(assignment: Assignment): void {
    while (
      !assignment.paused &&
      !assignment.revoking &&
      this.#assignments.get(partitionName(assignment)) === assignment
    ) {
      const next = assignment.waiting.shift()
      if (next === undefined) return
      this.#connection?.tell({ tell: 'taken', assignment: assignment.number })
      this.#guard(() => this.#options.onMessages(next.partition, next.messages))
    }
  }

  #forget(assignment: Assignment): void {
    const name = partitionName(assignment)
    if (this.#assignments.get(name) === assignment) this.#assignments.delete(name)
  }

  #guard(callback: () => void): void {
    try {
      callback()
    } catch (cause) {
      this.#options.onError(cause instanceof Error ? cause : new Error('a subscription callback threw', { cause }))
    }
  }
}

function plain({ topic, partition }: Partition): Partition {
  return { topic, partition }
}

function readPartition(entry: Readonly<Record<string, unknown>>): Partition {
  return { topic: textOf(entry['topic']), partition: integerOf(entry['partition']) }
}

function readAssignment(entry: Readonly<Record<string, unknown>>): Assignment {
  const number = integerOf(entry['assignment'])
  return { ...readPartition(entry), number, waiting: [], paused: false, revoking: false }
}
