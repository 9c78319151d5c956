import { describe, expect, it } from 'vitest'
import type { Broker } from '../../src/brokers/broker.ts'
import { createMemoryBroker, memory } from '../../src/brokers/memory/index.ts'
import { systemClock } from '../../src/core/clock.ts'
import type { ReaderOptions } from '../../src/testing/conformance/recording-reader.ts'
import { RecordingReader } from '../../src/testing/conformance/recording-reader.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../../src/testing/conformance/sample-message.ts'
import type { DuplicatingOptions } from '../../src/testing/faults/index.ts'
import { duplicating } from '../../src/testing/faults/index.ts'
import { runConformance } from '../support/conformance.ts'

// With no second delivery in reach, nothing of the broker's guarantees may change: all cases hold through the wrapper.
runConformance('the duplicating wrapper when it duplicates nothing', () => {
  const host = createMemoryBroker()
  const target = (): Broker => duplicating(memory({ host }), { every: 1_000_000_000 })
  return { deadlineMs: 5000, broker: async () => target() }
})

async function setUp(count: number, options: DuplicatingOptions, keys = sampleKeys(10)) {
  const host = createMemoryBroker({ partitions: 3 })
  host.createTopic('t')
  const broker = duplicating(memory({ host }), options)
  const publisher = broker.publisher()
  await publisher.start()
  await publisher.publish(keyedMessages('t', keys, count))
  const join = async (more: Partial<ReaderOptions> = {}): Promise<RecordingReader> => {
    const reader = new RecordingReader(broker, systemClock, 5000, 5000, { group: 'g', topics: ['t'], ...more })
    await reader.start()
    return reader
  }
  return { broker, host, join, publisher }
}

describe('duplicating', () => {
  it('delivers one message in N twice, the second time behind others, and counts them', async () => {
    const { broker, join } = await setUp(3000, { every: 50, afterMs: 20 })
    const reader = await join()
    await reader.count(3060)
    expect(broker.duplicates).toBe(60)
    const sightings = Map.groupBy(reader.received, (message) => message.id)
    expect(sightings.size).toBe(3000)
    expect([...sightings.values()].filter((messages) => messages.length === 2)).toHaveLength(60)
    for (const partition of [0, 1, 2]) {
      const ids = reader.received.filter((m) => m.partition === partition).map((m) => m.id)
      for (const id of new Set(ids)) {
        const between = ids.lastIndexOf(id) - ids.indexOf(id)
        // The last ones come when their partition has fallen quiet, behind whatever came after them.
        if (between !== 0 && ids.lastIndexOf(id) < ids.length - 10) expect(between).toBeGreaterThan(10)
      }
    }
    await reader.stop()
    expect(reader.violations).toEqual([])
  })

  it('commits of its own positions move the real ones: the next member continues right behind', async () => {
    const { host, join, publisher } = await setUp(300, { every: 7, afterMessages: 3 }, ['one-key'])
    const first = await join({ autoCommit: false })
    await first.until('the message 150', () => first.received.some((m) => String(m.payload) === '150'))
    // The last delivery up to which every message before 150 was seen, be it a first or a second one.
    const at = first.received.findIndex((m) => String(m.payload) === '150')
    const before = first.received[at - 1]
    expect(before).toBeDefined()
    await first.commit([{ topic: 't', partition: before?.partition ?? 0, position: before?.position ?? 0n }])
    expect(host.stats().groups['g']?.lag).toBe(150)
    await first.stop()
    const second = await join({ autoCommit: false })
    await second.until('the rest', () => new Set(second.textsOf('one-key')).size === 150)
    await publisher.publish([sampleMessage('t', { key: 'one-key', payload: Buffer.from('end') })])
    await second.until('the end', () => second.textsOf('one-key').includes('end'))
    expect([...new Set(second.textsOf('one-key'))].slice(0, 2)).toEqual(['150', '151'])
    expect(second.textsOf('one-key').filter((text) => Number(text) < 150)).toEqual([])
    await second.stop()
  })

  it('a commit that the broker refused is not taken for done: the same commit again goes through', async () => {
    const host = createMemoryBroker({ partitions: 1 })
    host.createTopic('t')
    const inner = memory({ host })
    let refuse = true
    const broker = duplicating({
      ...inner,
      system: inner.system,
      publisher: (options) => inner.publisher(options),
      close: () => inner.close(),
      subscription: (options) => {
        const subscription = inner.subscription(options)
        const commit = subscription.commit.bind(subscription)
        subscription.commit = (positions) => (refuse ? Promise.reject(new Error('not now')) : commit(positions))
        return subscription
      },
    })
    const publisher = inner.publisher()
    await publisher.start()
    await publisher.publish([sampleMessage('t')])
    const reader = new RecordingReader(broker, systemClock, 5000, 5000, {
      group: 'g',
      topics: ['t'],
      autoCommit: false,
    })
    await reader.start()
    await reader.count(1)
    const commit = [{ topic: 't', partition: 0, position: reader.received[0]?.position ?? 0n }]
    await expect(reader.commit(commit)).rejects.toThrow('not now')
    refuse = false
    await reader.commit(commit)
    expect(host.stats().groups['g']?.lag).toBe(0)
    await reader.stop()
  })

  it('a second delivery that is on its way waits too when its partition is paused meanwhile', async () => {
    const { broker, join } = await setUp(5, { every: 5, afterMs: 40 }, ['k'])
    const reader = await join()
    await reader.count(5)
    reader.pause([...reader.owned.values()])
    // Nothing announces what does not come.
    await new Promise((resolve) => setTimeout(resolve, 120))
    expect(broker.duplicates).toBe(0)
    reader.resume([...reader.owned.values()])
    await reader.count(6)
    expect(broker.duplicates).toBe(1)
    await reader.stop()
  })

  it('a paused partition gets no second delivery either, until it is resumed', async () => {
    const { broker, join } = await setUp(5, { every: 5, afterMs: 10 }, ['k'])
    const reader = await join({ onMessages: (partition, _, self) => self.pause([partition]) })
    await reader.count(5)
    await new Promise((resolve) => setTimeout(resolve, 60))
    expect(broker.duplicates).toBe(0)
    reader.resume([...reader.owned.values()])
    await reader.count(6)
    expect(reader.received[5]?.id).toBe(reader.received[4]?.id)
    expect(reader.violations).toEqual([])
    await reader.stop()
  })
})
