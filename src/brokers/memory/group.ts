/**
 * The coordinator of one group.
 *
 * - Membership changes only mark the group; one loop works the marks off, so that rebalances never overlap.
 * - A rebalance is incremental: members keep what they keep. First every member that gives something up settles it
 *   (`onRevoking` is awaited, within its session timeout), then what is free is assigned. A partition therefore never
 *   has two owners, and what was committed while settling is not handed over again.
 * - Each assignment begins where the group's committed position is: what was handed over and not committed comes again.
 * - If membership changed while members were settling, the shares are computed anew before anything is assigned.
 */
import type { Partition } from '../broker.ts'
import { assign } from './assignment.ts'
import { partitionName } from './member.ts'
import type { GroupPosition, Member } from './member.ts'
import type { TopicLog } from './topic-log.ts'

export class Group {
  readonly #topics: ReadonlyMap<string, TopicLog>
  readonly #members = new Set<Member>()
  readonly #positions = new Map<string, GroupPosition[]>()
  #generation = 0
  #stale = false
  #rebalancing = false

  constructor(topics: ReadonlyMap<string, TopicLog>) {
    this.#topics = topics
  }

  /** Counts rebalances. */
  get generation(): number {
    return this.#generation
  }

  get members(): ReadonlySet<Member> {
    return this.#members
  }

  join(member: Member): void {
    this.#members.add(member)
    for (const topic of member.topics) this.#positionsOf(topic, member.startFrom)
    this.rebalance()
  }

  leave(member: Member): void {
    if (!this.#members.delete(member)) return
    member.leave()
    this.rebalance()
  }

  /** The topic was made: members that read it get its partitions. */
  discover(topic: string): void {
    for (const member of this.#members) {
      if (!member.topics.includes(topic)) continue
      this.#positionsOf(topic, member.startFrom)
      this.rebalance()
    }
  }

  /** The topic is no more: its members lose it, the group forgets it. */
  forget(topic: string): void {
    this.#positions.delete(topic)
    for (const member of this.#members) member.lose(member.owned.filter((partition) => partition.topic === topic))
    this.rebalance()
  }

  /** Takes every partition from every member without asking, as an expired session does, and shares them anew. */
  expire(): void {
    for (const member of this.#members) member.lose(member.owned)
    this.rebalance()
  }

  /** The offset below which the group needs nothing of the partition; undefined when it does not read the topic. */
  floorOf(topic: string, partition: number): number | undefined {
    return this.#positions.get(topic)?.[partition]?.committed
  }

  /** Messages not yet committed, of all topics the group reads. */
  lag(): number {
    let lag = 0
    for (const [name, positions] of this.#positions) {
      const topic = this.#topics.get(name)
      topic?.partitions.forEach((log, i) => (lag += log.end - (positions[i]?.committed ?? log.start)))
    }
    return lag
  }

  wake(topic: string): void {
    for (const member of this.#members) if (member.topics.includes(topic)) member.wake()
  }

  /** Shares the partitions among the members, soon. */
  rebalance(): void {
    this.#stale = true
    if (this.#rebalancing) return
    this.#rebalancing = true
    // Member callbacks are guarded where they are called: the loop never throws.
    void this.#run()
  }

  async #run(): Promise<void> {
    // Members that join in one go are shared out in one go.
    await Promise.resolve()
    while (this.#stale) {
      this.#stale = false
      this.#generation++
      const shares = this.#shares()
      const revokes = [...shares].flatMap(([member, share]) => {
        const kept = new Set(share.map(partitionName))
        const given = member.owned.filter((partition) => !kept.has(partitionName(partition)))
        return given.length > 0 ? [member.revoke(given)] : []
      })
      await Promise.all(revokes)
      if (this.#stale) continue
      for (const [member, share] of shares) {
        const owned = new Set(member.owned.map(partitionName))
        member.assign(share.filter((p) => !owned.has(partitionName(p))).flatMap((p) => this.#logOf(p, member)))
      }
    }
    this.#rebalancing = false
  }

  #shares(): Map<Member, Partition[]> {
    const wanted = new Set([...this.#members].flatMap((member) => member.topics))
    const partitions = [...wanted].flatMap((name) => this.#topics.get(name)?.partitions ?? [])
    return assign([...this.#members], partitions)
  }

  #logOf(
    { topic, partition }: Partition,
    member: Member,
  ): { log: TopicLog['partitions'][number]; position: GroupPosition }[] {
    const log = this.#topics.get(topic)?.partitions[partition]
    const position = this.#positionsOf(topic, member.startFrom)?.[partition]
    return log === undefined || position === undefined ? [] : [{ log, position }]
  }

  #positionsOf(name: string, startFrom: 'earliest' | 'latest'): GroupPosition[] | undefined {
    const topic = this.#topics.get(name)
    if (topic === undefined || this.#positions.has(name)) return this.#positions.get(name)
    const positions = topic.partitions.map((log) => {
      const start = startFrom === 'earliest' ? log.start : log.end
      return { committed: start, delivered: start }
    })
    this.#positions.set(name, positions)
    return positions
  }
}
