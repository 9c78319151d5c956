import { describe, expect, test } from 'vitest'
import {
  formatWalPosition,
  parseWalPosition,
  readWalPosition,
  writeWalPosition,
} from '../../src/outbox-relay/capture/replication/wal-position.ts'

describe('a WAL position', () => {
  test('compares as a number where its text does not', () => {
    const [nine, sixteen] = [parseWalPosition('9/0'), parseWalPosition('10/0')]
    expect(nine < sixteen).toBe(true)
    expect(parseWalPosition('0/FFFFFFFF') < parseWalPosition('1/0')).toBe(true)
    expect(parseWalPosition('0/9') < parseWalPosition('0/10')).toBe(true)
    // Above 2^53, where a number would round.
    expect(parseWalPosition('FFFFFFFF/FFFFFFFE') < parseWalPosition('FFFFFFFF/FFFFFFFF')).toBe(true)
  })

  test.each(['0/0', '0/1', '16/B374D848', '1/0', 'FFFFFFFF/FFFFFFFF', '0/ABCDEF'])(
    '%s is the same as text and bytes',
    (text) => {
      const position = parseWalPosition(text)
      expect(formatWalPosition(position)).toBe(text)
      const bytes = Buffer.alloc(10)
      writeWalPosition(bytes, position, 1)
      expect(readWalPosition(bytes, 1)).toBe(position)
    },
  )

  test('leading zeros and lower case are read', () => {
    expect(parseWalPosition('00000016/b374d848')).toBe(parseWalPosition('16/B374D848'))
  })

  test.each(['', '0', '0/', '/0', '0/0 ', '-1/0', '100000000/0', '0/100000000', '0x1/0', 'g/0'])(
    '%j is refused',
    (text) => {
      expect(() => parseWalPosition(text)).toThrow(RangeError)
    },
  )
})
