import { expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { backoffMs } from '../../src/flow/index.ts'

const drawing = (random: number) => ({ ...systemClock, random: () => random })
const bounds = { maxDelayMs: 1000, minDelayMs: 100 }

test('the cap of the wait doubles with each failure up to the longest, and stays there', () => {
  const top = drawing(1 - Number.EPSILON)
  const caps = [1, 2, 3, 4, 5, 60, 5000].map((failures) => Math.round(backoffMs(failures, bounds, top)))
  expect(caps).toEqual([100, 200, 400, 800, 1000, 1000, 1000])
})

test('the wait is anywhere between nothing and the cap', () => {
  expect(backoffMs(3, bounds, drawing(0))).toBe(0)
  expect(backoffMs(3, bounds, drawing(0.25))).toBe(100)
})
