import { describe, expect, test } from 'vitest'
import { checkSlotName, slotName } from '../../src/outbox-relay/capture/replication/slot-name.ts'

const LONG = 'd'.repeat(63)

describe('the name of a slot', () => {
  test('is readable where database and schema allow it', () => {
    expect(slotName('shop', 'outbox')).toBe('millrace_shop_outbox')
  })

  test.each([
    ['Shop', 'outbox'],
    ['shop-1', 'outbox'],
    ['shop', 'out"box'],
    ["sh'op\\", 'outbox'],
    ['läden', 'outbox'],
    [LONG, LONG],
    ['', ''],
  ])('of %j and %j is one that Postgres takes', (database, schema) => {
    const name = slotName(database, schema)
    expect(() => checkSlotName(name)).not.toThrow()
    expect(name).toMatch(/^millrace_/)
  })

  test('differs where the names differ, also when they look alike after cleaning', () => {
    const names = [
      slotName('shop-1', 'outbox'),
      slotName('shop_1', 'outbox'),
      slotName('shop.1', 'outbox'),
      slotName('Shop_1', 'outbox'),
      slotName(`${LONG}`, `${LONG}a`),
      slotName(`${LONG}a`, `${LONG}`),
      slotName('a-', 'b'),
      slotName('a', '-b'),
    ]
    expect(new Set(names).size).toBe(names.length)
  })

  test.each(['', 'A', 'a-b', 'a"b', "a'b", 'a b', 'a'.repeat(64), 'ä', 'a\0', 'a\n'])('%j is refused', (name) => {
    expect(() => checkSlotName(name)).toThrow(RangeError)
  })
})
