import { describe, expect, test } from 'vitest'
import { Watermark } from '../../src/flow/index.ts'
import { seeded } from './flow-random.ts'

describe('the watermark', () => {
  test('is the newest position below which nothing is open, whatever the gaps and the order of completion', () => {
    for (let seed = 1; seed <= 30; seed++) {
      const random = seeded(seed)
      const watermark = new Watermark()
      const open: { position: bigint; slot: number }[] = []
      const all: bigint[] = []
      let position = BigInt(random.below(1000))
      for (let step = 0; step < 3000; step++) {
        if (random.chance(0.5) || open.length === 0) {
          position += 1n + BigInt(random.below(5))
          all.push(position)
          open.push({ position, slot: watermark.add(position) })
        } else {
          // Now and then leave the oldest open for long, so that the ring has to grow.
          const index = random.chance(0.05) ? 0 : random.below(open.length)
          const [done] = open.splice(index, 1)
          watermark.done(done?.slot ?? -1)
        }
        const lowest = open.reduce<bigint | undefined>(
          (low, entry) => (low === undefined || entry.position < low ? entry.position : low),
          undefined,
        )
        const expected = lowest === undefined ? all.at(-1) : all[all.indexOf(lowest) - 1]
        if (step % 7 === 0) expect(watermark.position).toBe(expected)
      }
      expect(watermark.size + watermark.settled).toBe(all.length)
    }
  })

  test('says when it moved, and a slot counts once', () => {
    const watermark = new Watermark()
    const [a, b, c] = [watermark.add(10n), watermark.add(20n), watermark.add(2n ** 62n)]
    expect([watermark.done(b), watermark.position]).toEqual([false, undefined])
    expect([watermark.done(a), watermark.position]).toEqual([true, 20n])
    expect([watermark.done(a), watermark.done(b), watermark.position]).toEqual([false, false, 20n])
    expect([watermark.done(c), watermark.position, watermark.size]).toEqual([true, 2n ** 62n, 0])
  })

  test('a position that does not rise is refused', () => {
    const watermark = new Watermark()
    watermark.add(5n)
    expect(() => watermark.add(5n)).toThrow(RangeError)
    expect(() => watermark.add(4n)).toThrow(RangeError)
  })
})
