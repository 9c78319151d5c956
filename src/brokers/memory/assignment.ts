import type { Partition } from '../broker.ts'

/** What {@link assign} needs to know of a member. */
export interface Candidate {
  readonly topics: readonly string[]
  /** What it has now. */
  readonly owned: readonly Partition[]
}

/**
 * Shares the partitions among the members that read their topic: each keeps what it has as far as that is fair, what
 * nobody has goes to whoever has least, and no member has two more than another that could take one.
 */
export function assign<Member extends Candidate>(
  members: readonly Member[],
  partitions: readonly Partition[],
): Map<Member, Partition[]> {
  const shares = new Map<Member, Partition[]>(members.map((member) => [member, []]))
  const count = (member: Member): number => shares.get(member)?.length ?? 0
  const least = (topic: string): Member | undefined => {
    let best: Member | undefined
    for (const member of members) {
      if (member.topics.includes(topic) && (best === undefined || count(member) < count(best))) best = member
    }
    return best
  }
  const keeps = (member: Member, { topic, partition }: Partition): boolean =>
    member.topics.includes(topic) && member.owned.some((p) => p.topic === topic && p.partition === partition)
  const free: Partition[] = []
  for (const partition of partitions) {
    const owner = members.find((member) => keeps(member, partition))
    if (owner === undefined) free.push(partition)
    else shares.get(owner)?.push(partition)
  }
  for (const partition of free) {
    const taker = least(partition.topic)
    if (taker !== undefined) shares.get(taker)?.push(partition)
  }
  for (let moved = true; moved;) {
    moved = false
    for (const [giver, share] of shares) {
      for (let i = share.length - 1; i >= 0; i--) {
        const taker = least((share[i] as Partition).topic)
        if (taker === undefined || taker === giver || count(taker) + 1 >= share.length) continue
        shares.get(taker)?.push(...share.splice(i, 1))
        moved = true
      }
    }
  }
  return shares
}
