import type { Partition } from '../broker.ts'

/** A partition for as long as it is ours without a break. A new assignment of the same partition is a new object. */
export class OwnedPartition implements Partition {
  /** The highest offset committed so far plus one. */
  committed = -1n
  /** The offset after the last message handed over; undefined before the first. */
  next: bigint | undefined = undefined
  paused = false
  readonly partition: number
  readonly topic: string

  constructor(topic: string, partition: number) {
    this.topic = topic
    this.partition = partition
  }
}

/** What changed with an assignment. */
export interface Change {
  readonly gained: OwnedPartition[]
  readonly kept: OwnedPartition[]
  readonly lost: OwnedPartition[]
}

/** The partitions that are ours. */
export class OwnedPartitions {
  #topics = new Map<string, Map<number, OwnedPartition>>()

  get({ topic, partition }: Partition): OwnedPartition | undefined {
    return this.#topics.get(topic)?.get(partition)
  }

  all(): OwnedPartition[] {
    return [...this.#topics.values()].flatMap((partitions) => [...partitions.values()])
  }

  /** Takes over a new assignment and tells what that changes. */
  assign(assignment: Readonly<Record<string, readonly number[]>>): Change {
    const gained: OwnedPartition[] = []
    const kept: OwnedPartition[] = []
    const topics = new Map<string, Map<number, OwnedPartition>>()
    for (const [topic, numbers] of Object.entries(assignment)) {
      const partitions = new Map<number, OwnedPartition>()
      for (const number of numbers) {
        const old = this.get({ topic, partition: number })
        const owned = old ?? new OwnedPartition(topic, number)
        if (old === undefined) gained.push(owned)
        else kept.push(owned)
        partitions.set(number, owned)
      }
      topics.set(topic, partitions)
    }
    const stays = new Set(kept)
    const lost = this.all().filter((one) => !stays.has(one))
    this.#topics = topics
    return { gained, kept, lost }
  }

  /** Gives the partition a new life: what was handed over before counts no longer. */
  renew({ topic, partition }: Partition): OwnedPartition {
    const owned = new OwnedPartition(topic, partition)
    this.#topics.get(topic)?.set(partition, owned)
    return owned
  }
}
