import type { RecordColumns } from './record-columns.ts'
import { walMalformed } from './wal-malformed.ts'

/** A field that came as text, as its type would be in binary. The rare way; it need not be fast. */
export function fieldInBinary(name: Exclude<keyof RecordColumns, 'count'>, text: string): Buffer {
  switch (name) {
    case 'headers':
      return Buffer.from(`\u0001${text}`)
    case 'key':
    case 'topic':
    case 'type':
      return Buffer.from(text)
    case 'payload':
      if (!/^\\x(?:[0-9a-f]{2})*$/.test(text)) throw walMalformed('bytea that is not hexadecimal')
      return Buffer.from(text.slice(2), 'hex')
    case 'id':
      if (!/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text)) throw walMalformed('a uuid that is none')
      return Buffer.from(text.replaceAll('-', ''), 'hex')
    case 'tx':
      return integer(text, 0n, 2n ** 64n - 1n, 8)
    case 'seq':
      return integer(text, -(2n ** 63n), 2n ** 63n - 1n, 8)
    case 'shard':
      return integer(text, -(2n ** 15n), 2n ** 15n - 1n, 2)
  }
}

function integer(text: string, least: bigint, most: bigint, bytes: number): Buffer {
  if (!/^-?\d{1,20}$/.test(text)) throw walMalformed('a number that is none')
  const value = BigInt(text)
  if (value < least || value > most) throw walMalformed('a number out of its range')
  const hex = BigInt.asUintN(bytes * 8, value).toString(16)
  return Buffer.from(hex.padStart(bytes * 2, '0'), 'hex')
}
