import { describe, expect, test } from 'vitest'
import type { Verdict } from '../../src/brokers/nats/error-class.ts'
import { PublishRun } from '../../src/brokers/nats/publish-run.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

const POISON: Verdict = { class: 'poison', error: new Error('poison'), outcome: 'failed' }
const RETRY: Verdict = { class: 'retry', error: new Error('unwell'), outcome: 'failed' }
const UNKNOWN: Verdict = { class: 'retry', error: new Error('no answer'), outcome: 'unknown' }

interface Limits {
  readonly windowBytes?: number
  readonly windowMessages?: number
}

/** A run whose sends are written down, with a clock that is set by hand. */
function play(batch: readonly OutgoingMessage[], { windowBytes = 1 << 20, windowMessages = 100 }: Limits = {}) {
  const sent: number[] = []
  const time = { now: 0 }
  const run = new PublishRun({
    batch,
    now: () => time.now,
    send: (_, index) => {
      sent.push(index)
      return undefined
    },
    windowBytes,
    windowMessages,
  })
  run.pump()
  return { run, sent, time }
}

function keyed(...keys: (string | null)[]): OutgoingMessage[] {
  return keys.map((key) => sampleMessage('t', { key }))
}

async function outcomes(run: PublishRun): Promise<string[]> {
  return (await run.done).map((entry) => `${entry.index} ${entry.outcome} ${entry.class}`)
}

describe('one batch on its way through the window', () => {
  test('a key has at most one message in flight, the next goes when it is stored; keyless ones do not wait', async () => {
    const { run, sent } = play(keyed('a', 'a', 'b', null, 'a', null))
    expect(sent).toEqual([0, 2, 3, 5])
    run.stored(0)
    expect(sent).toEqual([0, 2, 3, 5, 1])
    for (const index of [2, 3, 5, 1, 4]) run.stored(index)
    expect(await run.done).toEqual([])
  })

  test('at every step of 200 random runs no key has two in flight and no bound is passed; all that is stored is in order', async () => {
    for (let seed = 1; seed <= 200; seed++) {
      const random = randomOf(seed)
      const keys = 1 + Math.floor(random() * 8)
      const batch = Array.from({ length: 60 }, () =>
        sampleMessage('t', {
          key: random() < 0.2 ? null : `key-${Math.floor(random() * keys)}`,
          payload: Buffer.alloc(Math.floor(random() * 50)),
        }),
      )
      const flying = new Set<number>()
      const stored: number[] = []
      const refused = new Set<string>()
      const run = new PublishRun({
        batch,
        now: () => 0,
        send: (message, index) => {
          flying.add(index)
          const bytes = [...flying].reduce((sum, at) => sum + (batch[at]?.payload.length ?? 0), 0)
          expect(flying.size).toBeLessThanOrEqual(7)
          expect(flying.size === 1 || bytes <= 120).toBe(true)
          const { key } = message
          expect([...flying].filter((at) => key !== null && batch[at]?.key === key).length).toBeLessThanOrEqual(1)
          expect(key !== null && refused.has(key), 'nothing after a refused message of its key').toBe(false)
          return undefined
        },
        windowBytes: 120,
        windowMessages: 7,
      })
      run.pump()
      while (flying.size > 0) {
        const index = [...flying][Math.floor(random() * flying.size)] as number
        flying.delete(index)
        if (random() < 0.1) {
          const { key } = batch[index] as OutgoingMessage
          if (key !== null) refused.add(key)
          run.refused(index, () => POISON)
        } else {
          stored.push(index)
          run.stored(index)
        }
      }
      const unresolved = await run.done
      expect(stored.length + unresolved.length).toBe(batch.length)
      const indexes = unresolved.map((entry) => entry.index)
      expect(indexes).toEqual(indexes.toSorted((a, b) => a - b))
      for (const key of new Set(batch.map((message) => message.key))) {
        if (key === null) continue
        const order = stored.filter((index) => batch[index]?.key === key)
        expect(order).toEqual(order.toSorted((a, b) => a - b))
      }
    }
  })

  test('a message that is refused holds the later ones of its key, with its error; poison holds nobody else', async () => {
    const { run, sent } = play(keyed('a', 'b', 'a', 'b', 'a'))
    run.refused(0, () => POISON)
    run.stored(1)
    run.stored(3)
    expect(sent).toEqual([0, 1, 3])
    expect(await outcomes(run)).toEqual(['0 failed poison', '2 unsent poison', '4 unsent poison'])
    expect((await run.done)[1]?.error).toBe(POISON.error)
  })

  test('a topic that is unwell is sent nothing more; the others go on', async () => {
    const batch = [
      sampleMessage('sick', { key: 'a' }),
      sampleMessage('well', { key: 'b' }),
      sampleMessage('sick', { key: 'c' }),
      sampleMessage('well', { key: 'd' }),
    ]
    const { run, sent } = play(batch, { windowMessages: 1 })
    run.refused(0, () => RETRY)
    run.stored(1)
    run.stored(3)
    expect(sent).toEqual([0, 1, 3])
    expect(await outcomes(run)).toEqual(['0 failed retry', '2 failed retry'])
  })

  test('only what is in flight for longer than the deadline becomes unknown', async () => {
    const { run, time } = play(keyed('a', 'a', null))
    time.now = 50
    run.stored(0)
    run.expire(20, () => UNKNOWN)
    run.stored(1)
    expect(await outcomes(run)).toEqual(['2 unknown retry'])
  })

  test('an answer that comes after the deadline changes nothing', async () => {
    const { run, sent } = play(keyed('a', 'a'))
    run.expire(0, () => UNKNOWN)
    run.stored(0)
    expect(sent).toEqual([0])
    expect(await outcomes(run)).toEqual(['0 unknown retry', '1 unsent retry'])
  })

  test('when the connection goes, what was sent is unknown, what waited in a lane unsent, the rest failed', async () => {
    const { run, sent } = play(keyed('a', 'a', 'b', 'c'), { windowMessages: 2 })
    run.abandon(
      () => UNKNOWN,
      () => RETRY,
    )
    expect(sent).toEqual([0, 2])
    expect(await outcomes(run)).toEqual(['0 unknown retry', '1 unsent retry', '2 unknown retry', '3 failed retry'])
  })

  test('one message larger than the byte window goes alone', async () => {
    const batch = [100, 5000, 100].map((size) => sampleMessage('t', { payload: Buffer.alloc(size) }))
    const { run, sent } = play(batch, { windowBytes: 1000 })
    expect(sent).toEqual([0])
    run.stored(0)
    expect(sent).toEqual([0, 1])
    run.stored(1)
    expect(sent).toEqual([0, 1, 2])
    run.stored(2)
    expect(await run.done).toEqual([])
  })
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
