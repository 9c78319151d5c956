import { describe, expect, test } from 'vitest'
import { KeyLanes, type Lane, type Linked } from '../../src/flow/index.ts'
import { seeded } from './flow-random.ts'

interface Item extends Linked<Item> {
  readonly key: string | null
  readonly n: number
}

const item = (key: string | null, n: number): Item => ({ key, n, next: undefined })

function takenOf(lane: Lane<Item>): Item[] {
  const items: Item[] = []
  for (let next = lane.head; items.length < lane.taken && next !== undefined; next = next.next) items.push(next)
  return items
}

describe('key lanes', () => {
  test('under random schedules every key runs in order, by one taker at a time, and nothing is lost', () => {
    for (let seed = 1; seed <= 30; seed++) {
      const random = seeded(seed)
      const lanes = new KeyLanes<Item>()
      const source = lanes.source()
      const offered = new Map<string, number>()
      const finished = new Map<string, number>()
      const busy = new Map<string, Lane<Item>>()
      let total = 0
      let done = 0
      let nowMs = 0
      const settleOne = (): void => {
        const [key, lane] = [...busy][random.below(busy.size)] as [string, Lane<Item>]
        busy.delete(key)
        const items = takenOf(lane)
        const count = random.chance(0.7) ? items.length : random.below(items.length + 1)
        for (const { n } of items.slice(0, count)) {
          expect(n).toBe(finished.get(key) ?? 0)
          finished.set(key, n + 1)
        }
        done += count
        const alone = random.chance(0.2) ? items.length - count : undefined
        if (random.chance(0.2)) lanes.hold(lane, count, nowMs + random.below(20), alone)
        else lanes.settle(lane, count, alone)
      }
      const take = (): void => {
        const limit = 1 + random.below(8)
        const group = lanes.take(limit)
        expect(group.reduce((sum, lane) => sum + lane.taken, 0)).toBeLessThanOrEqual(limit)
        for (const lane of group) {
          const key = lane.head?.key as string
          expect(busy.has(key)).toBe(false)
          if (lane.alone > 0) expect([group.length, lane.taken]).toEqual([1, 1])
          busy.set(key, lane)
        }
      }
      while (total < 2000 || done < total) {
        const step = random.below(5)
        if (step <= 1 && total < 2000) {
          const key = `k${random.below(12)}`
          const n = offered.get(key) ?? 0
          offered.set(key, n + 1)
          lanes.offer(source, key, item(key, n))
          total++
        } else if (step === 2) take()
        else if (step === 3 && busy.size > 0) settleOne()
        else lanes.wake(++nowMs)
      }
      expect(finished).toEqual(offered)
      expect(lanes.ready).toBe(0)
      expect(source.lanes.size).toBe(0)
    }
  })

  test('a held lane is out of reach until it is due, and only that lane', () => {
    const lanes = new KeyLanes<Item>()
    const source = lanes.source()
    for (const key of ['a', 'b', 'a', 'b']) lanes.offer(source, key, item(key, 0))
    const [a, b] = lanes.take(10) as [Lane<Item>, Lane<Item>]
    lanes.hold(a, 0, 100)
    lanes.hold(b, 1, 50)
    expect(lanes.nextDueMs).toBe(50)
    expect(lanes.wake(49)).toBe(0)
    expect(lanes.take(10)).toEqual([])
    expect(lanes.wake(50)).toBe(1)
    expect(lanes.take(10)).toEqual([b])
    expect([lanes.nextDueMs, lanes.wake(100)]).toEqual([100, 1])
    expect(lanes.take(10)).toEqual([a])
    expect(a.taken).toBe(2)
  })

  test('items without a key have no order and never wait for each other', () => {
    const lanes = new KeyLanes<Item>()
    const source = lanes.source()
    for (let n = 0; n < 5; n++) lanes.offer(source, null, item(null, n))
    expect(lanes.take(1)).toHaveLength(1)
    expect(lanes.take(10)).toHaveLength(4)
  })

  test('a dropped source hands nothing out, and settling what ran of it does nothing', () => {
    const lanes = new KeyLanes<Item>()
    const [kept, dropped] = [lanes.source(), lanes.source()]
    for (const source of [kept, dropped]) {
      for (const key of ['ready', 'busy', 'held']) lanes.offer(source, key, item(key, 0))
      lanes.offer(source, null, item(null, 0))
    }
    const group = lanes.take(8)
    const of = (source: unknown, key: string): Lane<Item> =>
      group.find((lane) => lane.source === source && lane.head?.key === key) as Lane<Item>
    const running = of(dropped, 'busy')
    for (const source of [kept, dropped]) lanes.hold(of(source, 'held'), 0, 10)
    for (const lane of group) if (lane.taken > 0 && lane !== running) lanes.settle(lane, 0)
    lanes.drop(dropped)
    lanes.settle(running, 0)
    lanes.offer(dropped, 'late', item('late', 0))
    lanes.wake(10)
    expect(lanes.ready).toBe(4)
    expect(lanes.take(100).every((lane) => lane.source === kept)).toBe(true)
    expect(lanes.ready).toBe(0)
  })

  test('only what was taken can be done', () => {
    const lanes = new KeyLanes<Item>()
    const source = lanes.source()
    lanes.offer(source, 'a', item('a', 0))
    lanes.offer(source, 'a', item('a', 1))
    const [lane] = lanes.take(1) as [Lane<Item>]
    expect(() => lanes.settle(lane, 2)).toThrow(RangeError)
    lanes.settle(lane, 1)
    expect(() => lanes.settle(lane, 0)).toThrow(RangeError)
  })
})
