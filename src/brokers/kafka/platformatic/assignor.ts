/**
 * Who gets which partition, computed by the member that leads the group. Balanced first, then as little moved as can be.
 * Ours, for the client's own leaves a member without any partition where others have two each.
 *
 * In the cooperative protocol a partition that changes hands is given to nobody in this round: its owner gives it up,
 * and the group meets again. So nobody gets it before the other has settled.
 */
import type { Partition } from '../../broker.ts'

/** What a member says of itself when it joins. */
export interface Candidate {
  /** The generation in which it got what it owns; -1 when it does not say. */
  readonly generation: number
  readonly id: string
  readonly owned: readonly Partition[]
  readonly topics: ReadonlySet<string>
}

interface Slot extends Partition {
  readonly claimants: Set<string>
  /** Who claims it in the newest generation, if only one does. */
  readonly keeper: string | undefined
  owner: string | undefined
}

/** The partitions of every member, by its id. */
export function assign(
  candidates: readonly Candidate[],
  counts: ReadonlyMap<string, number>,
  cooperative: boolean,
): Map<string, Partition[]> {
  const members = candidates.toSorted((a, b) => (a.id < b.id ? -1 : 1))
  const slots = slotsOf(members, counts)
  const held = new Map(members.map((member) => [member.id, new Set<Slot>()]))
  const give = (slot: Slot, id: string): void => {
    if (slot.owner !== undefined) held.get(slot.owner)?.delete(slot)
    slot.owner = id
    held.get(id)?.add(slot)
  }
  const loadOf = (id: string): number => held.get(id)?.size ?? 0
  const lightest = (topic: string): Candidate | undefined => {
    let best: Candidate | undefined
    for (const one of members) {
      if (one.topics.has(topic) && (best === undefined || loadOf(one.id) < loadOf(best.id))) best = one
    }
    return best
  }
  for (const slot of slots) if (slot.keeper !== undefined) give(slot, slot.keeper)
  for (const slot of slots) {
    const member = slot.owner === undefined ? lightest(slot.topic) : undefined
    if (member !== undefined) give(slot, member.id)
  }
  // Every move makes the sum of the squares of the loads smaller, so this ends.
  for (let moved = true; moved;) {
    moved = false
    for (const slot of slots) {
      const member = lightest(slot.topic)
      if (slot.owner === undefined || member === undefined || loadOf(slot.owner) - loadOf(member.id) < 2) continue
      give(slot, member.id)
      moved = true
    }
  }
  return new Map(
    members.map(({ id }) => {
      const own = [...(held.get(id) ?? [])]
      const free = cooperative ? own.filter(({ claimants }) => claimants.size === 0 || isOnly(claimants, id)) : own
      return [id, free.map(({ partition, topic }) => ({ partition, topic }))]
    }),
  )
}

function slotsOf(members: readonly Candidate[], counts: ReadonlyMap<string, number>): Slot[] {
  const claims = new Map<string, Candidate[]>()
  for (const member of members) {
    for (const { partition, topic } of member.owned) {
      const name = `${partition} ${topic}`
      const list = claims.get(name)
      if (list === undefined) claims.set(name, [member])
      else list.push(member)
    }
  }
  const slots: Slot[] = []
  for (const [topic, count] of [...counts].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    for (let partition = 0; partition < count; partition++) {
      const all = claims.get(`${partition} ${topic}`) ?? []
      const newest = Math.max(-1, ...all.map((one) => one.generation))
      // Who claims it from an older generation has been passed over since.
      const claimants = all.filter((one) => one.generation === newest)
      const only = claimants.length === 1 ? claimants[0] : undefined
      const keeper = only?.topics.has(topic) === true ? only.id : undefined
      slots.push({ claimants: new Set(claimants.map((one) => one.id)), keeper, owner: undefined, partition, topic })
    }
  }
  return slots
}

function isOnly(claimants: ReadonlySet<string>, id: string): boolean {
  return claimants.size === 1 && claimants.has(id)
}
