import { describe, expect, test } from 'vitest'
import { ChainLimit } from '../../src/brokers/nats/chain-limit.ts'
import type { Verdict } from '../../src/brokers/nats/error-class.ts'
import { PublishRun } from '../../src/brokers/nats/publish-run.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

const THROTTLED: Verdict = { class: 'throttle', error: new Error('too many requests'), outcome: 'failed' }
const POISON: Verdict = { class: 'poison', error: new Error('poison'), outcome: 'failed' }
const UNKNOWN: Verdict = { class: 'retry', error: new Error('no answer'), outcome: 'unknown' }
const GONE: Verdict = { class: 'retry', error: new Error('not sent'), outcome: 'failed' }

function play(batch: readonly OutgoingMessage[], limit = 100) {
  const sent: string[] = []
  const chains: string[] = []
  const run = new PublishRun({
    batch,
    chained: (topic, messages, overtaken) => chains.push(`${topic} ${messages} ${overtaken}`),
    chainLimit: () => limit,
    now: () => 0,
    send: (_, index, behind) => {
      sent.push(behind === undefined ? `${index}` : `${index} behind ${batch.indexOf(behind)}`)
      return undefined
    },
    windowBytes: 1 << 20,
    windowMessages: 100,
  })
  run.pump()
  return { chains, run, sent }
}

function keyed(...keys: string[]): OutgoingMessage[] {
  return keys.map((key) => sampleMessage('t', { key }))
}

async function outcomes(run: PublishRun): Promise<string[]> {
  return (await run.done).map((entry) => `${entry.index} ${entry.outcome} ${entry.class}`)
}

describe('a chain of one key', () => {
  test('goes out at once, each message behind the one before it, and no other key in between', async () => {
    const { chains, run, sent } = play(keyed('a', 'b', 'a', 'b', 'a'))
    expect(sent).toEqual(['0', '2 behind 0', '4 behind 2', '1', '3 behind 1'])
    for (const index of [0, 1, 2, 3, 4]) run.stored(index)
    expect(await run.done).toEqual([])
    expect(chains.toSorted()).toEqual(['t 2 false', 't 3 false'])
  })

  test('is no longer than its limit; the next one waits for all of its answers', () => {
    const { run, sent } = play(keyed('a', 'a', 'a', 'a'), 2)
    expect(sent).toEqual(['0', '1 behind 0'])
    run.stored(0)
    expect(sent).toHaveLength(2)
    run.stored(1)
    expect(sent.slice(2)).toEqual(['2', '3 behind 2'])
  })

  test('ends where the topic changes: another topic may be another stream', () => {
    const batch = ['t', 't', 'u', 't'].map((topic) => sampleMessage(topic, { key: 'a' }))
    const { run, sent } = play(batch)
    expect(sent).toEqual(['0', '1 behind 0'])
    run.stored(0)
    run.stored(1)
    run.stored(2)
    expect(sent.slice(2)).toEqual(['2', '3'])
  })

  test('that was overtaken begins anew with what is not stored, and its new head expects nothing', async () => {
    const { chains, run, sent } = play(keyed('a', 'a', 'a'))
    run.stored(0)
    run.overtaken(1)
    expect(sent).toHaveLength(3)
    run.overtaken(2)
    expect(sent.slice(3)).toEqual(['1', '2 behind 1'])
    run.stored(1)
    run.stored(2)
    expect(await run.done).toEqual([])
    expect(chains).toEqual(['t 3 true', 't 2 false'])
  })

  test('of which one is refused sends nothing more: what could not stand behind it is unsent', async () => {
    const { run, sent } = play(keyed('a', 'a', 'a', 'a'), 3)
    run.stored(0)
    run.refused(1, () => POISON)
    run.overtaken(2)
    expect(sent).toHaveLength(3)
    expect(await outcomes(run)).toEqual(['1 failed poison', '2 unsent poison', '3 unsent poison'])
  })

  test('is unknown as a whole when the connection goes', async () => {
    const { run } = play(keyed('a', 'a', 'a'), 2)
    run.abandon(
      () => UNKNOWN,
      () => GONE,
    )
    expect(await outcomes(run)).toEqual(['0 unknown retry', '1 unknown retry', '2 unsent retry'])
  })
})

test('300 random histories of a stream: refusals, other writers, lost connections whose rest is read late; every key is once and in order', async () => {
  let overtakings = 0
  let late = 0
  for (let seed = 1; seed <= 300; seed++) {
    const random = randomOf(seed)
    const keys = 1 + Math.floor(random() * 4)
    const messages = Array.from({ length: 40 }, () => sampleMessage('t', { key: `key-${Math.floor(random() * keys)}` }))
    const stream: string[] = []
    let left: readonly OutgoingMessage[] = messages
    /** What a dead connection had written, which the server has yet to read. */
    let ghosts: { readonly behind: string | undefined; readonly id: string }[] = []
    /** The server's rule: known ids are duplicates, then the expectation, then it is stored. */
    const receive = (id: string, behind: string | undefined): 'stored' | 'overtaken' | 'throttled' => {
      if (random() < 0.03) return 'throttled'
      if (stream.includes(id)) return 'stored'
      if (behind !== undefined && stream.at(-1) !== behind) return 'overtaken'
      stream.push(id)
      return 'stored'
    }
    while (left.length > 0) {
      const batch = left
      let wire: { readonly behind: string | undefined; readonly id: string; readonly index: number }[] = []
      const run = new PublishRun({
        batch,
        chainLimit: () => 1 + Math.floor(random() * 10),
        now: () => 0,
        send: ({ id }, index, behind) => {
          wire.push({ behind: behind?.id, id, index })
          return undefined
        },
        windowBytes: 1 << 20,
        windowMessages: 20,
      })
      run.pump()
      while (wire.length > 0) {
        const at = random()
        if (at < 0.05) stream.push(`foreign-${stream.length}`)
        const ghost = at > 0.5 ? ghosts.shift() : undefined
        if (ghost !== undefined) {
          late += Number(!stream.includes(ghost.id) && receive(ghost.id, ghost.behind) === 'stored')
          continue
        }
        if (at > 0.47 && at < 0.49) {
          // The connection dies; of what was written the server reads a part, sooner or later.
          ghosts = [...ghosts, ...wire.slice(0, Math.floor(random() * (wire.length + 1)))]
          wire = []
          run.abandon(
            () => UNKNOWN,
            () => GONE,
          )
          break
        }
        const { behind, id, index } = wire.shift() as (typeof wire)[number]
        const answer = receive(id, behind)
        if (answer === 'stored') run.stored(index)
        else if (answer === 'throttled') run.refused(index, () => THROTTLED)
        else {
          overtakings += 1
          run.overtaken(index)
        }
      }
      left = (await run.done).map(({ index }) => batch[index] as OutgoingMessage)
    }
    for (const key of new Set(messages.map((message) => message.key))) {
      const ids = messages.filter((message) => message.key === key).map(({ id }) => id)
      expect(stream.filter((id) => ids.includes(id))).toEqual(ids)
    }
  }
  expect(overtakings).toBeGreaterThan(500)
  expect(late).toBeGreaterThan(20)
})

test('the limit halves when chains are overtaken, grows while they hold, and comes back from 1', () => {
  const limit = new ChainLimit()
  const before = limit.of('t')
  limit.answered('t', 10, true)
  expect(limit.of('t')).toBe(before / 2)
  for (let i = 0; i < 100; i++) limit.answered('t', 10, true)
  expect(limit.of('t')).toBe(1)
  expect(limit.of('other')).toBe(before)
  for (let i = 0; i < 300; i++) limit.of('t')
  expect(limit.of('t')).toBe(2)
  for (let i = 0; i < 10_000; i++) limit.answered('t', limit.of('t'), false)
  expect(limit.of('t')).toBe(1024)
})

/** A small seeded generator (mulberry32). */
function randomOf(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
