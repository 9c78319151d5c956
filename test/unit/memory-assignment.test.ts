import { expect, it } from 'vitest'
import type { Partition } from '../../src/brokers/broker.ts'
import { assign } from '../../src/brokers/memory/assignment.ts'

const partitions = (topic: string, count: number): Partition[] =>
  Array.from({ length: count }, (_, partition) => ({ topic, partition }))

const sizes = (shares: Map<unknown, Partition[]>): number[] => [...shares.values()].map((share) => share.length)

it('partitions are shared evenly, and every partition has exactly one owner', () => {
  const members = [1, 2, 3].map(() => ({ topics: ['t'], owned: [] }))
  const shares = assign(members, partitions('t', 10))
  expect(sizes(shares).toSorted((a, b) => a - b)).toEqual([3, 3, 4])
  expect(new Set([...shares.values()].flat().map((p) => p.partition)).size).toBe(10)
})

it('a member keeps what it has as far as that is fair', () => {
  const all = partitions('t', 6)
  const old = { topics: ['t'], owned: all }
  const young = { topics: ['t'], owned: [] }
  const shares = assign([old, young], all)
  expect(sizes(shares)).toEqual([3, 3])
  const again = assign(
    [
      { topics: ['t'], owned: shares.get(old) ?? [] },
      { topics: ['t'], owned: shares.get(young) ?? [] },
    ],
    all,
  )
  const sets = (map: Map<unknown, Partition[]>): unknown =>
    [...map.values()].map((s) => new Set(s.map((p) => p.partition)))
  expect(sets(again)).toEqual(sets(shares))
})

it('nobody gets a partition of a topic it does not read, however little it has', () => {
  const a = { topics: ['x', 'y'], owned: [] }
  const b = { topics: ['y'], owned: [] }
  const shares = assign([a, b], [...partitions('x', 5), ...partitions('y', 2)])
  expect(shares.get(b)?.every((p) => p.topic === 'y')).toBe(true)
  expect(sizes(shares)).toEqual([5, 2])
})
