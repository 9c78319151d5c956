import { Partitioners } from 'kafkajs'
import { expect, test } from 'vitest'
import { partitionOfKey } from '../../src/brokers/memory/partition-of-key.ts'
import { keyHash, murmur2 } from '../../src/core/key-hash.ts'

// From the tests of Kafka's Java client.
const VECTORS: readonly (readonly [text: string, hash: number])[] = [
  ['21', -973932308],
  ['foobar', -790332482],
  ['a-little-bit-long-string', -985981536],
  ['a-little-bit-longer-string', -1486304829],
  ['lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58897971],
  ['abc', 479470107],
]

test('murmur2 is the one of the Java client', () => {
  for (const [text, hash] of VECTORS) expect(murmur2(Buffer.from(text)), text).toBe(hash)
})

test('5000 keys of every length and alphabet go where kafkajs would send them, for any number of partitions', () => {
  const theirs = Partitioners.DefaultPartitioner()
  for (let i = 0; i < 5000; i++) {
    const key = Buffer.from(`${'é鍵🔑k-'.slice(0, i % 7)}${i * 7919}`.repeat(1 + (i % 4)))
    for (const partitions of [1, 7, 12, 16]) {
      const partitionMetadata = Array.from({ length: partitions }, (_, partitionId) => ({
        isr: [1],
        leader: 1,
        partitionErrorCode: 0,
        partitionId,
        replicas: [1],
      }))
      expect(keyHash(key) % partitions).toBe(theirs({ message: { key, value: null }, partitionMetadata, topic: 't' }))
    }
  }
})

test('the memory broker chooses likewise, also for a key longer than its shared buffer', () => {
  for (const key of ['é'.repeat(5000), 'é'.repeat(512), 'k']) {
    expect(partitionOfKey(key, 1024)).toBe(keyHash(Buffer.from(key)) % 1024)
  }
})
