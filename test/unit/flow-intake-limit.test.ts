import { describe, expect, test } from 'vitest'
import { IntakeLimit, type IntakeAccount } from '../../src/flow/index.ts'
import { seeded } from './flow-random.ts'

/** Adds messages until the source is full; how many it took. */
function fill(limit: IntakeLimit, account: IntakeAccount, bytes = 1): number {
  let count = 0
  for (; !limit.full(account) && count < 10_000; count++) limit.add(account, bytes)
  return count
}

describe('the intake limit', () => {
  test('a single source may use nearly everything, and has room again only after a good part is done', () => {
    const limit = new IntakeLimit({ maxBytes: 1e9, maxCount: 100 })
    const account = limit.open()
    expect(fill(limit, account)).toBe(100)
    limit.remove(account, 1)
    expect([limit.full(account), limit.roomy(account)]).toEqual([false, false])
    for (let i = 0; i < 24; i++) limit.remove(account, 1)
    expect(limit.roomy(account)).toBe(true)
  })

  test('a blocked source never takes the reserve of another', () => {
    const limit = new IntakeLimit({ maxBytes: 1e9, maxCount: 1000 })
    const accounts = Array.from({ length: 10 }, () => limit.open())
    const [blocked, ...others] = accounts as [IntakeAccount, ...IntakeAccount[]]
    expect(fill(limit, blocked)).toBe(550)
    for (const other of others) expect(fill(limit, other)).toBe(50)
    expect(limit.count).toBe(1000)
    for (let i = 0; i < 25; i++) limit.remove(others[0] as IntakeAccount, 1)
    expect([limit.roomy(others[0] as IntakeAccount), limit.roomy(blocked)]).toEqual([true, false])
  })

  test('bytes bound it as the count does', () => {
    const limit = new IntakeLimit({ maxBytes: 10_000, maxCount: 1e6 })
    const account = limit.open()
    expect(fill(limit, account, 1000)).toBe(10)
    expect(limit.bytes).toBe(10_000)
  })

  test('a message larger than the whole limit passes, alone', () => {
    const limit = new IntakeLimit({ maxBytes: 100, maxCount: 100 })
    const [big, small] = [limit.open(), limit.open()]
    limit.add(big, 5000)
    expect([limit.full(big), limit.full(small)]).toEqual([true, false])
    limit.remove(big, 5000)
    expect(limit.roomy(big)).toBe(true)
  })

  test('whatever comes, goes and closes, the sums end at nothing and every paused source gets room', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = seeded(seed)
      const limit = new IntakeLimit({ maxBytes: 5000, maxCount: 7 })
      const held = new Map<IntakeAccount, number[]>()
      for (let step = 0; step < 2000; step++) {
        const accounts = [...held.keys()]
        const account = accounts[random.below(accounts.length)]
        const move = random.below(100)
        if (account === undefined || move < 2) held.set(limit.open(), [])
        else if (move < 4) {
          limit.close(account)
          held.delete(account)
          limit.remove(account, 1)
        } else if (move < 52) {
          const bytes = random.below(900)
          limit.add(account, bytes)
          held.get(account)?.push(bytes)
        } else {
          const bytes = held.get(account)?.shift()
          if (bytes !== undefined) limit.remove(account, bytes)
        }
      }
      const sum = [...held.values()].flat()
      expect(limit.count).toBe(sum.length)
      expect(limit.bytes).toBe(sum.reduce((total, bytes) => total + bytes, 0))
      for (const [account, all] of held) for (const bytes of all) limit.remove(account, bytes)
      expect([limit.count, limit.bytes]).toEqual([0, 0])
      for (const account of held.keys()) expect(limit.roomy(account)).toBe(true)
    }
  })
})
