import type { Clock } from '../../core/clock.ts'
import { withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { IncomingMessage, Partition, SubscriptionOptions } from '../broker.ts'
import type { PartitionLog } from './topic-log.ts'

/** One hand-over is at most this large, so that no partition holds the event loop. */
const HANDOVER_MESSAGES = 500
const HANDOVER_BYTES = 1024 * 1024

/** Where a group stands in a partition. */
export interface GroupPosition {
  /** The offset the group continues at. */
  committed: number
  /** Everything below was handed over to some member before. */
  delivered: number
}

interface Assignment extends Partition {
  readonly log: PartitionLog
  readonly position: GroupPosition
  next: number
  paused: boolean
  revoking: boolean
}

/** The name of a partition in maps. A topic may hold any character: the number comes first. */
export function partitionName({ topic, partition }: Partition): string {
  return `${partition} ${topic}`
}

/**
 * A member of a group as the coordinator sees it: it owns partitions, hands their messages over, one bounded
 * hand-over per partition and turn of the event loop, and checks commits against what it owns.
 */
export class Member {
  readonly topics: readonly string[]
  readonly #options: SubscriptionOptions
  readonly #clock: Clock
  readonly #sessionTimeoutMs: number
  readonly #assignments = new Map<string, Assignment>()
  readonly #gone = Promise.withResolvers<void>()
  #left = false
  #scheduled = false

  constructor(options: SubscriptionOptions, clock: Clock) {
    this.#options = options
    this.#clock = clock
    this.#sessionTimeoutMs = options.sessionTimeoutMs ?? 30_000
    this.topics = [...new Set(options.topics)]
  }

  get startFrom(): 'earliest' | 'latest' {
    return this.#options.startFrom ?? 'earliest'
  }

  get owned(): readonly Partition[] {
    return [...this.#assignments.values()]
  }

  /** Takes partitions over from where the group stands. */
  assign(given: readonly { readonly log: PartitionLog; readonly position: GroupPosition }[]): void {
    if (this.#left || given.length === 0) return
    for (const { log, position } of given) {
      const { topic, partition } = log
      const next = Math.max(position.committed, log.start)
      const assignment = { topic, partition, log, position, next, paused: false, revoking: false }
      this.#assignments.set(partitionName(log), assignment)
    }
    this.#guard(() => this.#options.onAssigned(given.map(({ log }) => plain(log))))
    this.wake()
  }

  /** Gives partitions up in good order, within the session timeout; after it they count as lost. */
  async revoke(partitions: readonly Partition[]): Promise<void> {
    for (const partition of partitions) {
      const assignment = this.#assignments.get(partitionName(partition))
      if (assignment !== undefined) assignment.revoking = true
    }
    const told = partitions.map(plain)
    const settled = Promise.race([(async () => await this.#options.onRevoking(told))(), this.#gone.promise])
    const late = (): Error =>
      new MillraceError(
        'PARTITION_LOST',
        `onRevoking took longer than the session timeout of ${this.#sessionTimeoutMs} ms: the partitions are given ` +
          'away. Let handlers end sooner, or raise sessionTimeoutMs.',
      )
    try {
      await withDeadline(this.#clock, settled, this.#sessionTimeoutMs, late)
      for (const partition of partitions) this.#assignments.delete(partitionName(partition))
    } catch (error) {
      if (!this.#left) this.#tell(error)
      this.lose(partitions)
    }
  }

  /** Takes partitions away without asking. */
  lose(partitions: readonly Partition[]): void {
    const lost = partitions.filter((partition) => this.#assignments.delete(partitionName(partition)))
    if (lost.length > 0 && !this.#left) this.#guard(() => this.#options.onLost(lost.map(plain)))
  }

  /** The member is no more: nothing is handed over, nothing is owned, no callback is called. */
  leave(): void {
    this.#left = true
    this.#assignments.clear()
    this.#gone.resolve()
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
      if (assignment !== undefined) assignment.paused = false
    }
    this.wake()
  }

  /** Moves the group's positions; throws, moving none, unless this member owns them all and was handed so much. */
  commit(positions: readonly (Partition & { readonly position: bigint })[]): void {
    const moves = positions.map((entry) => {
      const assignment = this.#assignments.get(partitionName(entry))
      if (assignment === undefined || entry.position >= BigInt(assignment.next)) {
        throw new MillraceError(
          'PARTITION_LOST',
          assignment === undefined
            ? `partition ${entry.partition} of ${entry.topic} is not owned by this member: commit nothing of it, ` +
                'its new owner is handed everything since the last commit'
            : `position ${entry.position} of partition ${entry.partition} of ${entry.topic} was not handed over in ` +
                'this assignment',
          { details: { topic: entry.topic, partition: entry.partition, position: String(entry.position) } },
        )
      }
      return { assignment, next: Number(entry.position) + 1 }
    })
    for (const { assignment, next } of moves) {
      assignment.position.committed = Math.max(assignment.position.committed, next)
    }
  }

  /** Something may be there to hand over. */
  wake(): void {
    if (this.#scheduled || this.#left) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#handOver()
    })
  }

  #handOver(): void {
    let more = false
    // A callback may change the map; what it took away is not visited.
    for (const assignment of this.#assignments.values()) {
      const { log, position } = assignment
      if (assignment.paused || assignment.revoking || assignment.next >= log.end) continue
      const stored = log.read(assignment.next, HANDOVER_MESSAGES, HANDOVER_BYTES)
      const again = position.delivered > assignment.next
      const messages = again ? stored.map((message) => asRedelivered(message, position.delivered)) : stored
      assignment.next = Number((stored.at(-1) as IncomingMessage).position) + 1
      position.delivered = Math.max(position.delivered, assignment.next)
      this.#guard(() => this.#options.onMessages(plain(assignment), messages))
      if (assignment.next < log.end) more = true
    }
    if (more) this.wake()
  }

  #guard(callback: () => void): void {
    try {
      callback()
    } catch (error) {
      this.#tell(error)
    }
  }

  #tell(error: unknown): void {
    this.#options.onError(error instanceof Error ? error : new Error('a subscription callback threw', { cause: error }))
  }
}

function plain({ topic, partition }: Partition): Partition {
  return { topic, partition }
}

function asRedelivered(message: IncomingMessage, delivered: number): IncomingMessage {
  return message.position < BigInt(delivered) ? { ...message, redelivered: true } : message
}
