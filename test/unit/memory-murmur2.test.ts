import { expect, it } from 'vitest'
import { murmur2, partitionOfKey } from '../../src/brokers/memory/murmur2.ts'

// The vectors of Kafka's own unit test.
const VECTORS: readonly (readonly [string, number])[] = [
  ['21', -973932308],
  ['foobar', -790332482],
  ['a-little-bit-long-string', -985981536],
  ['a-little-bit-longer-string', -1486304829],
  ['lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58897971],
  ['abc', 479470107],
]

it.each(VECTORS)('murmur2 of %s is what the Java client computes', (text, hash) => {
  expect(murmur2(Buffer.from(text))).toBe(hash)
})

it('a key longer than the shared buffer is hashed whole', () => {
  const key = 'é'.repeat(5000)
  expect(partitionOfKey(key, 1024)).toBe((murmur2(Buffer.from(key)) & 0x7fffffff) % 1024)
  expect(partitionOfKey('é'.repeat(512), 1024)).toBe((murmur2(Buffer.from('é'.repeat(512))) & 0x7fffffff) % 1024)
})
