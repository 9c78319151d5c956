import { describe, expect, test } from 'vitest'
import type { Partition } from '../../src/brokers/broker.ts'
import { assign } from '../../src/brokers/kafka/platformatic/assignor.ts'
import type { Candidate } from '../../src/brokers/kafka/platformatic/assignor.ts'
import { seeded } from './flow-random.ts'

const member = (id: string, owned: readonly Partition[] = [], generation = -1, topics = ['t']): Candidate => ({
  generation,
  id,
  owned,
  topics: new Set(topics),
})
const of = (...partitions: number[]): Partition[] => partitions.map((partition) => ({ partition, topic: 't' }))
const sizes = (shares: ReadonlyMap<string, readonly Partition[]>): number[] =>
  [...shares.values()].map((own) => own.length).toSorted((a, b) => a - b)

describe('the assignor', () => {
  test.each([
    [4, 3, [1, 1, 2]],
    [12, 5, [2, 2, 2, 3, 3]],
    [2, 3, [0, 1, 1]],
    [1, 1, [1]],
  ])('%i partitions over %i members who own none', (partitions, count, expected) => {
    const members = Array.from({ length: count }, (_, i) => member(`m${i}`))
    expect(sizes(assign(members, new Map([['t', partitions]]), true))).toEqual(expected)
  })

  test('a third member gets one of four, after the group has met twice', () => {
    const [a, b, c] = [member('a', of(0, 1), 1), member('b', of(2, 3), 1), member('c')]
    const first = assign([a, b, c], new Map([['t', 4]]), true)
    expect(first.get('c'), 'nothing before it was given up').toEqual([])
    expect(sizes(first)).toEqual([0, 1, 2])
    const met = [...first].map(([id, own]) => member(id, own, 2))
    expect(sizes(assign(met, new Map([['t', 4]]), true))).toEqual([1, 1, 2])
  })

  test('a partition that two claim goes to neither until both have given it up', () => {
    const shares = assign([member('a', of(0), 3), member('b', of(0), 3)], new Map([['t', 1]]), true)
    expect([...shares.values()].flat()).toEqual([])
  })

  test('who claims it from an older generation has been passed over since', () => {
    const shares = assign([member('a', of(0), 2), member('b', of(0), 3)], new Map([['t', 1]]), true)
    expect(shares.get('b')).toEqual(of(0))
  })

  test('a topic goes only to those who read it', () => {
    const members = [member('a', [], -1, ['t', 'u']), member('b', [], -1, ['u'])]
    const shares = assign(
      members,
      new Map([
        ['t', 2],
        ['u', 2],
      ]),
      false,
    )
    expect(shares.get('b')?.every((one) => one.topic === 'u')).toBe(true)
    expect(sizes(shares)).toEqual([2, 2])
  })

  test('members that come and go: nobody gets what another still owns, and it ends balanced', () => {
    const draw = seeded(42)
    for (let run = 0; run < 100; run++) {
      const partitions = 1 + draw.below(16)
      const counts = new Map([['t', partitions]])
      let group = new Map<string, Partition[]>([['m0', []]])
      for (let change = 1; change < 8; change++) {
        if (draw.chance(0.6)) group.set(`m${change}`, [])
        else if (group.size > 1) group.delete([...group.keys()][draw.below(group.size)] as string)
        for (let meeting = 0; meeting < 4; meeting++) {
          const members = Array.from(group, ([id, own]) => member(id, own, change * 10 + meeting))
          const shares = assign(members, counts, true)
          for (const [id, own] of shares) {
            for (const { partition } of own) {
              for (const [other, before] of group) {
                if (other !== id) expect(before.map((one) => one.partition)).not.toContain(partition)
              }
            }
          }
          group = shares
        }
        const all = [...group.values()].flat().map((one) => one.partition)
        expect(all.toSorted((a, b) => a - b)).toEqual(Array.from({ length: partitions }, (_, i) => i))
        const [least, most] = [sizes(group)[0] ?? 0, sizes(group).at(-1) ?? 0]
        expect(most - least).toBeLessThan(2)
      }
    }
  })
})
