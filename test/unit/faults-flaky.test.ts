import { describe, expect, it } from 'vitest'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { systemClock } from '../../src/core/clock.ts'
import { createMemoryBroker, memory } from '../../src/brokers/memory/index.ts'
import { RecordingReader } from '../../src/testing/conformance/recording-reader.ts'
import { keyedMessages, sampleKeys, sampleMessage } from '../../src/testing/conformance/sample-message.ts'
import type { FlakyOptions } from '../../src/testing/faults/index.ts'
import { flaky } from '../../src/testing/faults/index.ts'
import { runConformance } from '../support/conformance.ts'

runConformance('the flaky wrapper when nothing happens', () => {
  const host = createMemoryBroker()
  return { deadlineMs: 5000, broker: async () => flaky(memory({ host })) }
})

async function setUp(options: FlakyOptions) {
  const host = createMemoryBroker({ partitions: 1 })
  host.createTopic('t')
  const broker = flaky(memory({ host }), options)
  const publisher = broker.publisher()
  await publisher.start()
  return { broker, host, publisher, stored: () => host.stats().topics['t']?.messages }
}

describe('flaky', () => {
  it('follows its script, and then lets everything pass', async () => {
    const { broker, publisher, stored } = await setUp({ script: ['refuse', 'lose-answer', 'pass'], class: 'throttle' })
    const batch = [sampleMessage('t', { key: 'a' }), sampleMessage('t')]
    expect(await publisher.publish(batch)).toMatchObject([
      { index: 0, outcome: 'failed', class: 'throttle' },
      { index: 1, outcome: 'failed', class: 'throttle' },
    ])
    expect(stored()).toBe(0)
    expect(await publisher.publish(batch)).toMatchObject([{ outcome: 'unknown' }, { outcome: 'unknown' }])
    expect(stored()).toBe(2)
    expect(await publisher.publish(batch)).toEqual([])
    expect(await publisher.publish(batch)).toEqual([])
    expect(broker.mishaps).toEqual({ pass: 2, refuse: 1, 'refuse-one': 0, 'lose-answer': 1 })
  })

  it('fails poison every time, holds what is behind it of its key, and sends the rest', async () => {
    const { publisher, stored } = await setUp({ poison: (message) => message.type === 'bad' })
    const batch = [
      sampleMessage('t', { key: 'a' }),
      sampleMessage('t', { key: 'a', type: 'bad' }),
      sampleMessage('t', { key: 'a' }),
      sampleMessage('t', { key: 'b' }),
    ]
    expect(await publisher.publish(batch)).toMatchObject([
      { index: 1, outcome: 'failed', class: 'poison' },
      { index: 2, outcome: 'unsent', class: 'poison' },
    ])
    expect(stored()).toBe(2)
  })

  it('does the same for the same seed', async () => {
    const run = async (seed: number): Promise<object> => {
      const { broker, publisher } = await setUp({ refuse: 0.2, refuseOne: 0.2, loseAnswer: 0.2, seed })
      const outcomes: unknown[] = []
      for (let i = 0; i < 50; i++) {
        const unresolved = await publisher.publish(keyedMessages('t', sampleKeys(3), 6))
        outcomes.push(unresolved.map((entry) => [entry.index, entry.outcome]))
      }
      return { outcomes, mishaps: broker.mishaps }
    }
    expect(await run(7)).toEqual(await run(7))
    expect(await run(7)).not.toEqual(await run(8))
  })

  it('whoever sends again what was not stored loses nothing and turns no key around', async () => {
    const { broker, publisher } = await setUp({ refuse: 0.2, refuseOne: 0.3, loseAnswer: 0.2, seed: 3 })
    const keys = sampleKeys(5)
    let open: readonly OutgoingMessage[] = keyedMessages('t', keys, 500)
    while (open.length > 0) {
      const page = open.slice(0, 40)
      const unresolved = await publisher.publish(page)
      open = [...unresolved.map((entry) => page[entry.index] as OutgoingMessage), ...open.slice(40)]
    }
    const reader = new RecordingReader(broker, systemClock, 5000, 5000, { group: 'g', topics: ['t'] })
    await reader.start()
    await reader.until('all', () => new Set(reader.received.map((m) => m.id)).size === 500)
    for (const key of keys) {
      expect([...new Set(reader.textsOf(key))]).toEqual(Array.from({ length: 100 }, (_, i) => String(i)))
    }
    expect(broker.mishaps['lose-answer']).toBeGreaterThan(0)
    await reader.stop()
  })
})
