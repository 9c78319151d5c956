import { describe, expect, test } from 'vitest'
import { type BatchAnswer, publishAtomically } from '../../src/brokers/nats/atomic-publish.ts'
import type { Unresolved } from '../../src/brokers/broker.ts'
import type { Verdict } from '../../src/brokers/nats/error-class.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

const POISON: Verdict = { class: 'poison', error: new Error('poison'), outcome: 'failed' }
const UNKNOWN: Verdict = { class: 'retry', error: new Error('no answer'), outcome: 'unknown' }
const REFUSED: Verdict = { class: 'retry', error: new Error('full'), outcome: 'failed' }

interface Server {
  readonly answer?: (messages: readonly OutgoingMessage[]) => BatchAnswer
  readonly maxMessages?: number
  readonly refuse?: (message: OutgoingMessage) => Verdict | undefined
  readonly single?: (message: OutgoingMessage) => Verdict | undefined
}

/** Publishes; `calls` is what the server saw, `b` a batch and `s` a list of singles. The topic's first letter is its stream. */
async function play(batch: readonly OutgoingMessage[], server: Server = {}) {
  const calls: string[] = []
  const indexesOf = (messages: readonly OutgoingMessage[]): string => {
    const indexes = messages.map((message) => batch.indexOf(message))
    return indexes.length > 6 ? `${indexes[0]}..${indexes.at(-1)}` : indexes.join(',')
  }
  const unresolved = await publishAtomically({
    batch,
    halted: () => undefined,
    maxBytes: 1 << 20,
    maxMessages: server.maxMessages ?? 1000,
    refuse: (message) => server.refuse?.(message),
    sendBatch: async (messages) => {
      calls.push(`b ${indexesOf(messages)}`)
      return server.answer?.(messages) ?? 'stored'
    },
    sendSingly: async (messages) => {
      calls.push(`s ${indexesOf(messages)}`)
      return messages.flatMap((message, index): Unresolved[] => {
        const verdict = server.single?.(message)
        return verdict === undefined ? [] : [{ index, ...verdict }]
      })
    },
    streamOf: (topic) => (topic.startsWith('missing') ? () => POISON : topic.slice(0, 1)),
  })
  return { calls, outcomes: unresolved.map(({ index, outcome }) => `${index} ${outcome}`), unresolved }
}

function page(count: number, keys: number, topic = 'a'): OutgoingMessage[] {
  return Array.from({ length: count }, (_, i) => sampleMessage(topic, { key: `key-${i % keys}` }))
}

describe('a page by atomic batches', () => {
  test('is one batch per stream; few messages go one by one', async () => {
    const batch = [
      ...page(40, 4, 'a'),
      ...page(30, 30, 'b').map((m) => ({ ...m, key: `b-${m.key}` })),
      sampleMessage('c'),
    ]
    expect(await play(batch)).toEqual({ calls: ['b 0..39', 'b 40..69', 's 70'], outcomes: [], unresolved: [] })
  })

  test('larger than a batch goes in rounds; the next waits until the one before is stored', async () => {
    expect((await play(page(250, 5), { maxMessages: 100 })).calls).toEqual(['b 0..99', 'b 100..199', 'b 200..249'])
    const { calls, outcomes } = await play(page(250, 5), { answer: () => () => UNKNOWN, maxMessages: 100 })
    expect(calls).toEqual(['b 0..99'])
    expect(new Set(outcomes.slice(0, 100).map((entry) => entry.split(' ')[1]))).toEqual(new Set(['unknown']))
    expect(new Set(outcomes.slice(100).map((entry) => entry.split(' ')[1]))).toEqual(new Set(['unsent']))
  })

  test('a key whose messages go to two streams waits between them', async () => {
    const batch = [...page(20, 20, 'a'), sampleMessage('b', { key: 'key-3' }), sampleMessage('b', { key: 'free' })]
    expect((await play(batch)).calls).toEqual(['b 0..19', 's 21', 's 20'])
    // What comes back to the first stream waits as well, though there is room.
    const back = [...page(20, 20, 'a'), sampleMessage('b', { key: 'key-3' }), sampleMessage('a', { key: 'key-3' })]
    expect((await play(back)).calls).toEqual(['b 0..19', 's 20', 's 21'])
    const { outcomes } = await play(batch, { answer: () => () => UNKNOWN })
    expect(outcomes.slice(-2)).toEqual(['19 unknown', '20 unsent'])
  })

  test('a batch that is refused for a known id is learned one by one, in the order of the page', async () => {
    const batch = page(20, 3)
    const { calls, outcomes } = await play(batch, {
      answer: () => 'singly',
      single: (m) => (m === batch[19] ? REFUSED : undefined),
    })
    expect(calls).toEqual(['b 0..19', 's 0..19'])
    expect(outcomes).toEqual(['19 failed'])
  })

  test('an unwell stream is sent nothing more, the others go on', async () => {
    const sick = page(30, 30, 'a')
    const well = page(30, 30, 'b').map((message, i) => ({ ...message, key: `well-${i}` }))
    const { calls, outcomes } = await play([...sick, ...well], {
      answer: ([first]) => (first?.topic === 'a' ? () => REFUSED : 'stored'),
      maxMessages: 20,
    })
    expect(calls).toEqual(['b 0..19', 'b 30..49', 's 50..59'])
    expect(outcomes).toEqual(sick.map((_, i) => `${i} failed`))
  })

  test('poison is in no batch, and holds the later messages of its key only', async () => {
    const batch = page(40, 2)
    const missing = sampleMessage('missing', { key: 'other' })
    const { calls, outcomes } = await play([missing, ...batch], {
      refuse: (m) => (m === batch[1] ? POISON : undefined),
    })
    expect(calls).toEqual(['b 1..39'])
    expect(outcomes).toEqual([
      '0 failed',
      '2 failed',
      ...batch.slice(2).flatMap((m, i) => (m.key === 'key-1' ? [`${i + 3} unsent`] : [])),
    ])
  })
})
