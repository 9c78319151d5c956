import * as module from '@platformatic/kafka'
import type { RecordsBatch } from '@platformatic/kafka'
import { describe, expect, test } from 'vitest'
import { ProduceRecord } from '../../src/brokers/kafka/produce-record.ts'
import { readFetched } from '../../src/brokers/kafka/platformatic/fetched-records.ts'
import {
  COOPERATIVE,
  decodeAssignment,
  decodeSubscription,
  EAGER,
  encodeAssignment,
  encodeSubscription,
} from '../../src/brokers/kafka/platformatic/group-wire.ts'
import { encodeRecordBatch } from '../../src/brokers/kafka/platformatic/record-batch.ts'
import { newId } from '../../src/core/ids.ts'

const head = { producerEpoch: 3, producerId: 7n, sequence: 41, timeMs: 1_790_000_000_123 }

function record(key: string | null, payload: Buffer, headers: Record<string, string> = {}, i = 0): ProduceRecord {
  const wire = { headers, id: newId(), key, payload, seq: '1', timeMs: 1_790_000_000_000, topic: 't', type: 'test' }
  return new ProduceRecord(i, wire, 0)
}

describe('a record batch', () => {
  test('is read by the client package as it was written, whatever the sizes', () => {
    // Around every size at which a length takes one byte more.
    const around = Array.from({ length: 160 }, (_, i) => 7000 + i * 8)
    const sizes = [0, 1, 20, 63, 64, ...around, 9000, 1_047_900, 1_048_200, 1_048_500, 1_048_576]
    for (const size of sizes) {
      const records = [
        record('k', Buffer.alloc(size, 7), { 'blå-漢字': '🚣'.repeat(30), empty: '' }),
        record(null, Buffer.alloc(size)),
        record('ü'.repeat(size % 5000), Buffer.from('x')),
      ]
      const bytes = encodeRecordBatch(records, head, module.crc32c)
      const batch = module.readRecordsBatch(module.Reader.from(bytes))
      expect(batch).toMatchObject({ firstSequence: 41, lastOffsetDelta: 2, length: bytes.length - 12, producerId: 7n })
      expect(batch.crc).toBe(module.jsCRC32C(bytes.subarray(21)) >>> 0)
      for (const [i, one] of records.entries()) {
        const read = batch.records[i]
        expect(read?.offsetDelta).toBe(i)
        expect(read?.key?.toString() ?? null).toBe(one.message.key)
        expect(read?.value?.equals(one.value)).toBe(true)
        const texts = read?.headers.map(([name, value]) => [String(name), value?.toString() ?? ''])
        expect(texts).toEqual(Object.entries(one.headers))
      }
    }
  })

  test('never takes more room than the sizes that were planned with', () => {
    const records = Array.from({ length: 300 }, (_, i) =>
      record('k'.repeat(i), Buffer.alloc(i * 13), { a: 'b'.repeat(i) }),
    )
    const bound = records.reduce((sum, one) => sum + one.sizeBytes, 61)
    expect(encodeRecordBatch(records, head, module.crc32c).length).toBeLessThanOrEqual(bound)
  })
})

const batch = (firstOffset: number, values: string[], fields: Partial<RecordsBatch> = {}): RecordsBatch =>
  ({
    attributes: 0,
    firstOffset: BigInt(firstOffset),
    firstTimestamp: 1000n,
    lastOffsetDelta: values.length - 1,
    partitionLeaderEpoch: 5,
    producerId: -1n,
    records: values.map((value, offsetDelta) => ({
      attributes: 0,
      headers: [],
      key: null,
      length: 0,
      offsetDelta,
      timestampDelta: 1n,
      value: Buffer.from(value),
    })),
    ...fields,
  }) as RecordsBatch

const read = (from: number, records: RecordsBatch[], abortedTransactions: object[] = []): [string[], bigint] => {
  const answer = { abortedTransactions: abortedTransactions as never, records }
  const { messages, next } = readFetched({ partition: 0, topic: 't' }, BigInt(from), answer)
  return [messages.map((one) => `${one.position}${String(one.payload)}`), next]
}
const control = (offset: number, producerId: bigint, type: 0 | 1): RecordsBatch => {
  const end = batch(offset, ['end'], { attributes: (1 << 4) | (1 << 5), producerId })
  ;(end.records[0] as { key: Buffer }).key = Buffer.from([0, 0, 0, type])
  return end
}

describe('what a fetch brought', () => {
  test('begins where it was asked for, though the broker gives whole batches', () => {
    expect(read(2, [batch(0, ['a', 'b', 'c']), batch(3, ['d'])])).toEqual([['2c', '3d'], 4n])
  })

  test('goes on after a batch of which compaction left nothing', () => {
    expect(read(0, [batch(0, [], { lastOffsetDelta: 4 })])).toEqual([[], 5n])
  })

  test('leaves out control records and what was aborted, and nothing else of that producer', () => {
    const transactional = { attributes: 1 << 4, producerId: 9n }
    const log = [
      batch(0, ['a'], transactional),
      control(1, 9n, 0),
      batch(2, ['b'], transactional),
      batch(3, ['c'], { attributes: 1 << 4, producerId: 8n }),
      control(4, 9n, 1),
      control(5, 8n, 1),
    ]
    expect(read(0, log, [{ firstOffset: 0n, producerId: 9n }])).toEqual([['2b', '3c'], 6n])
  })

  test('has the time of the record and an id from where it stands', () => {
    const { leaderEpoch, messages } = readFetched({ partition: 3, topic: 't' }, 0n, {
      abortedTransactions: null,
      records: [batch(7, ['a'])],
    })
    expect(leaderEpoch).toBe(5)
    expect(messages[0]).toMatchObject({ id: 't/3/7/1001', key: null, partition: 3, timeMs: 1001, topic: 't', type: '' })
  })
})

describe('what members say to one another', () => {
  const owned = [
    { partition: 2, topic: 'u' },
    { partition: 0, topic: 't' },
  ]

  test('is read as it was written, in both protocols', () => {
    const protocols = encodeSubscription(module, ['t', 'u'], owned, 12)
    expect(protocols.map((one) => one.name)).toEqual([COOPERATIVE, EAGER])
    const said = decodeSubscription(module, 'm', protocols[0]?.metadata as Buffer)
    expect(said).toMatchObject({ generation: 12, id: 'm', topics: new Set(['t', 'u']) })
    expect(new Set(said.owned.map((one) => `${one.topic}${one.partition}`))).toEqual(new Set(['t0', 'u2']))
    expect(new Set(decodeAssignment(module, encodeAssignment(module, owned)).map((one) => one.topic))).toEqual(
      new Set(['t', 'u']),
    )
    expect(decodeAssignment(module, Buffer.alloc(0))).toEqual([])
  })
})
