import { describe, expect, test } from 'vitest'
import { planParts } from '../../src/brokers/kafka/batch-plan.ts'
import type { PlanLimits } from '../../src/brokers/kafka/batch-plan.ts'
import { BATCH_OVERHEAD_BYTES, ProduceRecord } from '../../src/brokers/kafka/produce-record.ts'

function record(index: number, key: string | null, bytes = 1000, topic = 't'): ProduceRecord {
  return new ProduceRecord(
    index,
    {
      headers: {},
      id: `id-${index}`,
      key,
      payload: Buffer.alloc(bytes),
      seq: String(index),
      timeMs: 1,
      topic,
      type: 'x',
    },
    index,
  )
}

function limits(batchBytes: number, partitions: number | undefined, requestBytes = Infinity): PlanLimits {
  return { batchBytesOf: () => batchBytes, partitionsOf: () => partitions, requestBytes }
}

const indexes = (parts: readonly (readonly ProduceRecord[])[]): number[][] =>
  parts.map((part) => part.map((one) => one.index))

describe('a batch is cut', () => {
  test('not at all when every partition keeps below the limit', () => {
    const records = Array.from({ length: 100 }, (_, i) => record(i, `k${i}`))
    expect(planParts(records, limits(60_000, 12))).toEqual([records])
  })

  test('so that no part holds more for one partition than the limit, each partition in order', () => {
    const records = Array.from({ length: 500 }, (_, i) => record(i, `k${i % 37}`, 500 + ((i * 71) % 900)))
    const parts = planParts(records, limits(20_000, 5))
    expect(parts.length).toBeGreaterThan(1)
    for (const part of parts) {
      for (const [, group] of Map.groupBy(part, (one) => one.hash % 5)) {
        const bytes = group.reduce((sum, one) => sum + one.sizeBytes, BATCH_OVERHEAD_BYTES)
        expect(bytes).toBeLessThanOrEqual(20_000)
      }
    }
    for (const [, group] of Map.groupBy(parts.flat(), (one) => one.hash % 5)) {
      expect(group.map((one) => one.index)).toEqual(group.map((one) => one.index).toSorted((a, b) => a - b))
    }
    expect(parts.flat()).toHaveLength(500)
  })

  test('as if the topic had one partition while nobody knows how many it has', () => {
    const records = Array.from({ length: 10 }, (_, i) => record(i, `k${i}`))
    expect(indexes(planParts(records, limits(6500, undefined)))).toEqual([
      [0, 1, 2, 3, 4],
      [5, 6, 7, 8, 9],
    ])
  })

  test('by the size of the request too', () => {
    const records = Array.from({ length: 10 }, (_, i) => record(i, `k${i}`))
    const parts = planParts(records, limits(100_000, 12, 3500))
    for (const part of parts) expect(part.reduce((sum, one) => sum + one.sizeBytes, 0)).toBeLessThanOrEqual(3500)
    expect(parts.flat()).toHaveLength(10)
  })

  test('with a message above every limit in a part of its own', () => {
    const records = [record(0, 'a'), record(1, 'a', 50_000), record(2, 'a')]
    expect(indexes(planParts(records, limits(5000, 1)))).toEqual([[0], [1], [2]])
  })

  test('so that a key that is used in two topics keeps its order over them', () => {
    const records = [
      ...Array.from({ length: 9 }, (_, i) => record(i, 'shared', 1000, 'full')),
      record(9, 'shared', 1000, 'empty'),
      record(10, 'alone', 1000, 'empty'),
    ]
    const parts = planParts(records, limits(5500, 1))
    const order = parts.flat().filter((one) => one.message.key === 'shared')
    expect(order.map((one) => one.index)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  })
})

test('the size of a record is never below what it takes on the wire', () => {
  const one = record(1, 'key', 10)
  const headers = Object.entries(one.headers).reduce((sum, [name, value]) => sum + name.length + value.length + 2, 0)
  expect(one.sizeBytes).toBeGreaterThanOrEqual(10 + 3 + headers + 8)
  expect(one.value).toBe(one.message.payload)
})
