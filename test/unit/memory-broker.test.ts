import { describe, expect, it } from 'vitest'
import type { Broker, IncomingMessage, Partition, Publisher } from '../../src/brokers/broker.ts'
import type { MemoryBroker } from '../../src/brokers/memory/index.ts'
import { createMemoryBroker, memory } from '../../src/brokers/memory/index.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

async function started(host: MemoryBroker): Promise<Publisher> {
  const publisher = memory({ host }).publisher()
  await publisher.start()
  return publisher
}

interface Told {
  readonly received: IncomingMessage[]
  readonly events: string[]
}

/** A started member that says what it is told, and resolves `until` predicates after each callback. */
async function member(
  broker: Broker,
  topic: string,
  group = 'g',
  onRevoking?: () => Promise<void>,
  startFrom: 'earliest' | 'latest' = 'earliest',
) {
  const told: Told = { received: [], events: [] }
  const waiters = new Set<() => void>()
  const tell = (event: string): void => {
    told.events.push(event)
    for (const waiter of waiters) waiter()
  }
  const numbers = (partitions: readonly Partition[]): string => partitions.map((p) => p.partition).join()
  const subscription = broker.subscription({
    group,
    topics: [topic],
    sessionTimeoutMs: 100,
    startFrom,
    onMessages: (_, messages) => {
      told.received.push(...messages)
      tell('messages')
    },
    onAssigned: (partitions) => tell(`assigned ${numbers(partitions)}`),
    onRevoking: async (partitions) => {
      tell(`revoking ${numbers(partitions)}`)
      await onRevoking?.()
    },
    onLost: (partitions) => tell(`lost ${numbers(partitions)}`),
    onError: (error) => tell(`error ${error.message}`),
  })
  await subscription.start()
  const until = (predicate: (told: Told) => boolean): Promise<void> =>
    new Promise((resolve) => {
      const waiter = (): void => {
        if (predicate(told)) resolve()
      }
      waiters.add(waiter)
      waiter()
    })
  return { ...told, subscription, until }
}

describe('a topic that is full', () => {
  const limits = { maxTopicMessages: 10, partitions: 1 }

  it('holds its publishers with retry, naming what is full, and stores nothing beyond its limit', async () => {
    const host = createMemoryBroker(limits)
    host.createTopic('t')
    const publisher = await started(host)
    const batch = Array.from({ length: 12 }, (_, i) => sampleMessage('t', { key: `k${i}` }))
    const unresolved = await publisher.publish(batch)
    expect(unresolved.map(({ index, outcome, class: errorClass }) => [index, outcome, errorClass])).toEqual([
      [10, 'failed', 'retry'],
      [11, 'failed', 'retry'],
    ])
    expect(unresolved[0]?.error.message).toMatch(/full/)
    expect(host.stats().topics['t']?.messages).toBe(10)
  })

  it('drops what every group has committed, and nothing that one of them still needs', async () => {
    const host = createMemoryBroker(limits)
    host.createTopic('t')
    const publisher = await started(host)
    const first = Array.from({ length: 10 }, () => sampleMessage('t', { key: 'k' }))
    await publisher.publish(first)
    const fast = await member(memory({ host }), 't', 'fast')
    const slow = await member(memory({ host }), 't', 'slow')
    await fast.until((told) => told.received.length === 10)
    await slow.until((told) => told.received.length === 10)
    await fast.subscription.commit([{ topic: 't', partition: 0, position: 9n }])
    expect(await publisher.publish([sampleMessage('t')])).toHaveLength(1)
    await slow.subscription.commit([{ topic: 't', partition: 0, position: 3n }])
    expect(await publisher.publish(Array.from({ length: 5 }, () => sampleMessage('t')))).toHaveLength(1)
    await slow.subscription.stop()
    const next = await member(memory({ host }), 't', 'slow')
    await next.until((told) => told.received.length === 10)
    expect(next.received.slice(0, 6).map((m) => m.id)).toEqual(first.slice(4).map((m) => m.id))
    await next.subscription.stop()
    await fast.subscription.stop()
  })

  it('is full by bytes as well', async () => {
    const host = createMemoryBroker({ maxTopicBytes: 1000, partitions: 1 })
    host.createTopic('t')
    const publisher = await started(host)
    const payload = Buffer.alloc(400)
    const unresolved = await publisher.publish([1, 2, 3].map(() => sampleMessage('t', { payload })))
    expect(unresolved.map((entry) => entry.index)).toEqual([2])
    expect(host.stats().topics['t']?.bytes).toBe(800)
  })
})

describe('what is stored', () => {
  it('does not change with the buffers and headers it was made from', async () => {
    const host = createMemoryBroker()
    host.createTopic('t')
    const publisher = await started(host)
    const payload = Buffer.from('before')
    const headers: Record<string, string> = { name: 'before' }
    await publisher.publish([sampleMessage('t', { payload, headers })])
    payload.write('after!')
    headers['name'] = 'after'
    const reader = await member(memory({ host }), 't')
    await reader.until((told) => told.received.length === 1)
    expect(String(reader.received[0]?.payload)).toBe('before')
    expect(reader.received[0]?.headers['name']).toBe('before')
    await reader.subscription.stop()
  })

  it('is marked as redelivered when it was handed over before, and only then', async () => {
    const host = createMemoryBroker({ partitions: 1 })
    host.createTopic('t')
    const publisher = await started(host)
    await publisher.publish([sampleMessage('t'), sampleMessage('t')])
    const first = await member(memory({ host }), 't')
    await first.until((told) => told.received.length === 2)
    await first.subscription.stop()
    await publisher.publish([sampleMessage('t')])
    const second = await member(memory({ host }), 't')
    await second.until((told) => told.received.length === 3)
    expect(first.received.map((m) => m.redelivered)).toEqual([false, false])
    expect(second.received.map((m) => m.redelivered)).toEqual([true, true, false])
    await second.subscription.stop()
  })
})

describe('a group', () => {
  it('that starts from the latest gets nothing of what was there, not even after a member that committed nothing', async () => {
    const host = createMemoryBroker({ partitions: 1 })
    host.createTopic('t')
    const publisher = await started(host)
    await publisher.publish([sampleMessage('t')])
    const received: string[] = []
    const done = Promise.withResolvers<void>()
    const nothing = (): void => {}
    const options = {
      group: 'g',
      topics: ['t'],
      startFrom: 'latest' as const,
      onAssigned: nothing,
      onRevoking: async () => {},
      onLost: nothing,
      onError: nothing,
      onMessages: (_: Partition, messages: readonly IncomingMessage[]) => {
        received.push(...messages.map((m) => m.id))
        done.resolve()
      },
    }
    const first = memory({ host }).subscription(options)
    await first.start()
    await first.stop()
    const late = sampleMessage('t')
    await publisher.publish([late])
    const second = memory({ host }).subscription(options)
    await second.start()
    await done.promise
    expect(received).toEqual([late.id])
    await second.stop()
  })

  it('gets the partitions of a topic that is made after it joined, from the first message on', async () => {
    const host = createMemoryBroker()
    const reader = await member(memory({ host }), 'later')
    host.createTopic('later', 2)
    const publisher = await started(host)
    await publisher.publish([sampleMessage('later'), sampleMessage('later')])
    await reader.until((told) => told.received.length === 2)
    expect(reader.events[0]).toBe('assigned 0,1')
    host.deleteTopic('later')
    expect(reader.events.at(-1)).toBe('lost 0,1')
    await reader.subscription.stop()
  })

  it('hands nothing of a partition over while its member settles it', async () => {
    const host = createMemoryBroker({ partitions: 2 })
    host.createTopic('t')
    const publisher = await started(host)
    const settled = Promise.withResolvers<void>()
    const first = await member(memory({ host }), 't', 'g', () => settled.promise)
    await first.until((told) => told.events.includes('assigned 0,1'))
    const second = await member(memory({ host }), 't')
    await first.until((told) => told.events.includes('revoking 1'))
    await publisher.publish(Array.from({ length: 10 }, () => sampleMessage('t')))
    await first.until((told) => told.received.length === 5)
    settled.resolve()
    await second.until((told) => told.received.length === 5)
    expect(first.received.every((message) => message.partition === 0)).toBe(true)
    expect(second.received.every((message) => !message.redelivered)).toBe(true)
    await first.subscription.stop()
    await second.subscription.stop()
  })

  it('that starts from the latest misses nothing of a topic that is made after it joined', async () => {
    const host = createMemoryBroker({ partitions: 1 })
    const reader = await member(memory({ host }), 'later', 'g', undefined, 'latest')
    const publisher = await started(host)
    host.createTopic('later')
    await publisher.publish([sampleMessage('later')])
    await reader.until((told) => told.received.length === 1)
    await reader.subscription.stop()
  })

  it('takes a partition from a member whose onRevoking outlasts the session timeout, and tells it', async () => {
    const host = createMemoryBroker({ partitions: 2 })
    host.createTopic('t')
    const stuck = await member(memory({ host }), 't', 'g', () => new Promise(() => {}))
    await stuck.until((told) => told.events.includes('assigned 0,1'))
    const other = await member(memory({ host }), 't')
    await other.until((told) => told.events.some((event) => event.startsWith('assigned')))
    expect(stuck.events).toEqual([
      'assigned 0,1',
      'revoking 1',
      expect.stringMatching(/^error .*session timeout/),
      'lost 1',
    ])
    await expect(stuck.subscription.commit([{ topic: 't', partition: 1, position: 0n }])).rejects.toMatchObject({
      code: 'PARTITION_LOST',
    })
    await stuck.subscription.stop()
    await other.subscription.stop()
  })

  it('whose members expire loses its partitions unasked and gets them again, with what was not committed', async () => {
    const host = createMemoryBroker({ partitions: 1 })
    host.createTopic('t')
    const publisher = await started(host)
    await publisher.publish([sampleMessage('t')])
    const reader = await member(memory({ host }), 't')
    await reader.until((told) => told.received.length === 1)
    host.expireMembers('g')
    await reader.until((told) => told.received.length === 2)
    expect(reader.events).toEqual(['assigned 0', 'messages', 'lost 0', 'assigned 0', 'messages'])
    await reader.subscription.stop()
  })

  it('refuses to commit what was not handed over', async () => {
    const host = createMemoryBroker({ partitions: 1 })
    host.createTopic('t')
    const publisher = await started(host)
    await publisher.publish([sampleMessage('t')])
    const reader = await member(memory({ host }), 't')
    await reader.until((told) => told.received.length === 1)
    await expect(reader.subscription.commit([{ topic: 't', partition: 0, position: 1n }])).rejects.toThrow(/not handed/)
    expect(host.stats().groups['g']).toEqual({ generation: 1, lag: 1, members: 1 })
    await reader.subscription.commit([{ topic: 't', partition: 0, position: 0n }])
    expect(host.stats().groups['g']?.lag).toBe(0)
    await reader.subscription.stop()
  })
})

describe('a fault', () => {
  it('refuses the next publish and stores nothing of it', async () => {
    const host = createMemoryBroker()
    host.createTopic('t')
    const publisher = await started(host)
    host.faults.next({ refuse: 'throttle' })
    const unresolved = await publisher.publish([sampleMessage('t'), sampleMessage('t')])
    expect(unresolved.map(({ outcome, class: c }) => [outcome, c])).toEqual([
      ['failed', 'throttle'],
      ['failed', 'throttle'],
    ])
    expect(host.stats().topics['t']?.messages).toBe(0)
    expect(await publisher.publish([sampleMessage('t')])).toEqual([])
  })

  it('loses the answer of a publish that is stored', async () => {
    const host = createMemoryBroker()
    host.createTopic('t')
    const publisher = await started(host)
    host.faults.next({ loseAnswer: true })
    const unresolved = await publisher.publish([sampleMessage('t')])
    expect(unresolved).toMatchObject([{ index: 0, outcome: 'unknown', class: 'retry' }])
    expect(host.stats().topics['t']?.messages).toBe(1)
  })

  it('delays an answer beyond the time-out: unknown, although it is stored later', async () => {
    const host = createMemoryBroker()
    host.createTopic('t')
    const publisher = memory({ host }).publisher({ timeoutMs: 20 })
    await publisher.start()
    host.faults.next({ delayMs: 60 })
    expect(await publisher.publish([sampleMessage('t')])).toMatchObject([{ outcome: 'unknown', class: 'retry' }])
    expect(host.stats().topics['t']?.messages).toBe(0)
    await expect.poll(() => host.stats().topics['t']?.messages).toBe(1)
  })
})

it('autoCreateTopics makes a topic by its first message', async () => {
  const host = createMemoryBroker({ autoCreateTopics: true })
  const publisher = await started(host)
  expect(await publisher.publish([sampleMessage('new'), sampleMessage('')])).toMatchObject([
    { index: 1, class: 'poison' },
  ])
  expect(host.stats().topics['new']?.messages).toBe(1)
})

it('all that is wrong with the options is said at once', () => {
  const wrong = { maxMessageBytes: 0, partitions: 2.5, maxTopicByte: 1 }
  expect(() => createMemoryBroker(wrong)).toThrow(/maxTopicBytes[\s\S]*maxMessageBytes[\s\S]*partitions/)
})
