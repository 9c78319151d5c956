import { describe, expect, test } from 'vitest'
import { BATCH_OVERHEAD_BYTES, ProduceRecord } from '../../src/brokers/kafka/produce-record.ts'
import { batchBytesAlone } from '../../src/brokers/kafka/record-size.ts'
import { TopicLimits, type TopicAnswer } from '../../src/brokers/kafka/topic-limits.ts'
import { newId } from '../../src/core/ids.ts'

/** A cluster of which the test decides what it says. */
class Cluster {
  readonly asked: string[][] = []
  answer: ((topic: string) => TopicAnswer | undefined) | Error = () => undefined
  readonly ask = (topics: readonly string[]): Promise<ReadonlyMap<string, TopicAnswer>> => {
    this.asked.push([...topics])
    const { answer } = this
    if (answer instanceof Error) return Promise.reject(answer)
    return Promise.resolve(
      new Map(
        topics.flatMap((topic) => {
          const said = answer(topic)
          return said === undefined ? [] : [[topic, said] as const]
        }),
      ),
    )
  }
}

describe('the limits of topics', () => {
  test('are those of the cluster, asked for once, all new topics together', async () => {
    const cluster = new Cluster()
    cluster.answer = (topic) => (topic === 'small' ? 5_000 : topic === 'none' ? 'missing' : 9_000_000)
    const limits = new TopicLimits(cluster.ask, undefined)
    expect(limits.isNew('small')).toBe(true)
    expect(limits.of('small')).toBe(1_048_588)
    expect(await limits.learn(['small', 'large', 'none'], 1000)).toEqual(new Set(['none']))
    expect(['small', 'large', 'none'].map((one) => limits.of(one))).toEqual([5_000, 9_000_000, 1_048_588])
    expect(['small', 'large', 'none'].map((one) => limits.isNew(one))).toEqual([false, false, true])
    limits.refresh('small')
    expect(cluster.asked).toEqual([['small', 'large', 'none']])
  })

  test('never exceed what the operator gave, who is believed where nobody may ask', async () => {
    const cluster = new Cluster()
    cluster.answer = (topic) => (topic === 'hidden' ? 'hidden' : 9_000_000)
    const limits = new TopicLimits(cluster.ask, 2_000_000)
    await limits.learn(['open', 'hidden'], 1000)
    expect(['open', 'hidden'].map((one) => limits.of(one))).toEqual([2_000_000, 2_000_000])
    expect(await limits.refuses('open', 2_000_001, 1000)).toBe(true)
    expect(cluster.asked, 'no answer could change that').toHaveLength(1)
  })

  test('a cluster that does not answer is not waited for, nor asked again at once', async () => {
    const cluster = new Cluster()
    cluster.answer = new Error('nobody there')
    const limits = new TopicLimits(cluster.ask, undefined)
    expect(await limits.learn(['t'], 1000)).toEqual(new Set())
    expect([limits.of('t'), limits.isNew('t')]).toEqual([1_048_588, false])
    const silent = new TopicLimits(() => new Promise(() => {}), undefined)
    expect(await silent.learn(['t'], 20)).toEqual(new Set())
    expect(silent.isNew('t')).toBe(false)
  })

  test('a refusal halves the limit at once and has the cluster asked again behind it', async () => {
    const cluster = new Cluster()
    cluster.answer = () => 100_000
    const limits = new TopicLimits(cluster.ask, undefined)
    await limits.learn(['t'], 1000)
    cluster.answer = () => 30_000
    limits.refused('t', 90_000)
    expect(limits.of('t')).toBe(45_000)
    limits.refresh('t')
    limits.refresh('t')
    await expect.poll(() => limits.of('t')).toBe(30_000)
    expect(cluster.asked).toHaveLength(2)
  })

  test('a message above the limit is too large only when the cluster says so anew', async () => {
    const cluster = new Cluster()
    const limits = new TopicLimits(cluster.ask, undefined)
    cluster.answer = () => 100_000
    limits.refused('t', 20_000)
    expect(await limits.refuses('t', 9_000, 1000)).toBe(false)
    expect(cluster.asked, 'nothing to ask').toHaveLength(0)
    expect(await limits.refuses('t', 50_000, 1000), 'raised since').toBe(false)
    expect(await limits.refuses('t', 100_001, 1000)).toBe(true)
    expect(cluster.asked, 'asked a moment ago').toHaveLength(1)
  })

  test('a topic that went is asked for again', async () => {
    const cluster = new Cluster()
    cluster.answer = () => 100_000
    const limits = new TopicLimits(cluster.ask, undefined)
    await limits.learn(['t'], 1000)
    limits.forget('t')
    expect(limits.isNew('t')).toBe(true)
  })

  test('of any number of topics take a bounded memory', async () => {
    const limits = new TopicLimits(() => Promise.resolve(new Map()), undefined)
    const names = Array.from({ length: 10_001 }, (_, i) => `t${i}`)
    await limits.learn(names, 1000)
    expect(names.filter((name) => limits.isNew(name))).toEqual(['t0'])
  })
})

describe('the size of a batch of one record', () => {
  const record = (bytes: number, headers: Record<string, string> = {}): ProduceRecord =>
    new ProduceRecord(
      0,
      { headers, id: newId(), key: 'k', payload: Buffer.alloc(bytes), seq: '1', timeMs: 1, topic: 't', type: 'x' },
      0,
    )

  test('grows as varints do, and is below the upper bound that pages are cut by', () => {
    const growth = (from: number, to: number): number => batchBytesAlone(record(to)) - batchBytesAlone(record(from))
    // 63 is the last length that takes one byte.
    expect([growth(62, 63), growth(63, 64), growth(64, 65)]).toEqual([1, 2, 1])
    expect(growth(9_000, 10_000)).toBe(1_000)
    for (const bytes of [0, 1, 63, 64, 8_191, 8_192, 1_000_000]) {
      const one = record(bytes, { a: 'ä'.repeat(bytes % 100) })
      expect(batchBytesAlone(one)).toBeLessThanOrEqual(one.sizeBytes + BATCH_OVERHEAD_BYTES)
    }
  })
})
