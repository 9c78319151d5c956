import { expect, test } from 'vitest'
import type { Publisher, Unresolved } from '../../src/brokers/broker.ts'
import { systemClock } from '../../src/core/clock.ts'
import { MillraceError } from '../../src/core/errors.ts'
import { silentLogger } from '../../src/core/logger.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Signals } from '../../src/core/signals.ts'
import { type DispatchOptions, dispatch } from '../../src/outbox-relay/dispatch.ts'
import { CrashCounter } from '../../src/outbox-relay/parking/index.ts'

const message = (seq: number, key: string): OutgoingMessage => ({
  id: `id-${seq}`,
  topic: 't',
  key,
  type: 'x',
  payload: Buffer.from([seq]),
  headers: {},
  timeMs: 0,
  seq: String(seq),
})

const unresolved = (index: number, more: Partial<Unresolved> = {}): Unresolved => ({
  index,
  outcome: 'failed',
  class: 'retry',
  error: new Error('not now'),
  ...more,
})

/** Nothing is parked, and what is to be parked is remembered. */
function noParking(parked: string[] = []): DispatchOptions['parking'] {
  return {
    crashes: new CrashCounter(),
    divert: async (messages) => messages,
    park: async (refused) => void parked.push(...refused.map((one) => `${one.message.seq} ${one.reason}`)),
    watching: false,
  }
}

/** Answers each publish in turn, then stores everything. */
function options(answers: readonly (readonly Unresolved[])[], more: Partial<DispatchOptions> = {}) {
  const batches: string[][] = []
  const publisher: Publisher = {
    start: async () => {},
    close: async () => {},
    publish: async (batch) => {
      batches.push(batch.map((one) => one.seq))
      return answers[batches.length - 1] ?? []
    },
  }
  const built: DispatchOptions = {
    backoff: { minDelayMs: 1, maxDelayMs: 2 },
    clock: systemClock,
    logger: silentLogger,
    assertHeld: () => {},
    onRetry: () => {},
    parking: noParking(),
    publisher,
    signals: new Signals(),
    ...more,
  }
  return { batches, built }
}

const page = [message(1, 'a'), message(2, 'b'), message(3, 'a'), message(4, 'c'), message(5, 'a')]
const never = new AbortController().signal

test('what was not stored is sent again in the page order, and what was stored is not (trap 19)', async () => {
  const { batches, built } = options([
    [unresolved(0, { outcome: 'unknown' }), unresolved(2, { outcome: 'unsent' }), unresolved(4, { outcome: 'unsent' })],
    [unresolved(1)],
  ])
  expect(await dispatch(page, built, never)).toBe(true)
  expect(batches).toEqual([['1', '2', '3', '4', '5'], ['1', '3', '5'], ['3']])
})

test('a fatal answer ends the dispatch with what to change, and nothing is sent again', async () => {
  const { batches, built } = options([[unresolved(1, { class: 'fatal', error: new Error('not authorized') })]])
  await expect(dispatch(page, built, never)).rejects.toMatchObject({
    code: 'PUBLISH_FATAL',
    message: expect.stringContaining('not authorized'),
  })
  expect(batches).toHaveLength(1)
})

test('nothing is published once the lease is no longer held, not even again', async () => {
  let held = true
  const { batches, built } = options([[unresolved(0)]], {
    assertHeld: () => {
      if (!held) throw new MillraceError('LEASE_LOST', 'lost')
    },
    onRetry: () => (held = false),
  })
  await expect(dispatch(page, built, never)).rejects.toMatchObject({ code: 'LEASE_LOST' })
  expect(batches).toHaveLength(1)
})

test('a stop in the wait before another try ends the dispatch without claiming that all is stored', async () => {
  const stop = new AbortController()
  const { batches, built } = options([[unresolved(0)]], {
    backoff: { minDelayMs: 60_000, maxDelayMs: 60_000 },
    clock: { ...systemClock, random: () => 0.99 },
    onRetry: () => stop.abort(),
  })
  expect(await dispatch(page, built, stop.signal)).toBe(false)
  expect(batches).toHaveLength(1)
})

test('the wait grows while nothing gets through, begins anew when something does, and is jittered', async () => {
  const waits: number[] = []
  const clock = {
    ...systemClock,
    random: () => 1,
    setTimer: (callback: () => void, delayMs: number) => {
      waits.push(delayMs)
      return systemClock.setTimer(callback, 0)
    },
  }
  const all = page.map((_, index) => unresolved(index))
  const { built } = options([all, all, all, [unresolved(0), unresolved(1)], [unresolved(0)]], {
    backoff: { minDelayMs: 10, maxDelayMs: 1000 },
    clock,
  })
  await dispatch(page, built, never)
  expect(waits).toEqual([10, 20, 40, 10, 10])
})

test('a refused event is parked with the later ones of its key, and the rest goes on at once (traps 16, 44)', async () => {
  const parked: string[] = []
  const clock = { ...systemClock, setTimer: () => expect.fail('nobody waits') }
  const { batches, built } = options(
    [
      [
        unresolved(0, { class: 'poison' }),
        unresolved(1, { class: 'poison', outcome: 'unsent' }),
        unresolved(2, { class: 'poison', outcome: 'unsent' }),
        unresolved(4, { class: 'poison', outcome: 'unsent' }),
      ],
    ],
    { clock, parking: noParking(parked) },
  )
  expect(await dispatch(page, built, never)).toBe(true)
  expect(parked).toEqual(['1 poison', '3 behind', '5 behind'])
  expect(batches).toEqual([['1', '2', '3', '4', '5'], ['2']])
})

test('a refused event behind one of its key whose outcome is open is not parked before that one is stored', async () => {
  const parked: string[] = []
  const { batches, built } = options(
    [
      [unresolved(0, { outcome: 'unknown' }), unresolved(2, { class: 'poison' }), unresolved(4, { outcome: 'unsent' })],
      [unresolved(1, { class: 'poison' }), unresolved(2, { class: 'poison', outcome: 'unsent' })],
    ],
    { parking: noParking(parked) },
  )
  expect(await dispatch(page, built, never)).toBe(true)
  expect(batches.slice(1)).toEqual([['1', '3', '5']])
  expect(parked).toEqual(['3 poison', '5 behind'])
})

test('what belongs to a parked key is not published', async () => {
  const parking = { ...noParking(), watching: true, divert: async (all: readonly OutgoingMessage[]) => all.slice(3) }
  const { batches, built } = options([], { parking })
  expect(await dispatch(page, built, never)).toBe(true)
  expect(batches).toEqual([['4', '5']])
})

test('a broker that asks to be left alone is left alone as long as it asks, within bounds', async () => {
  const waits: number[] = []
  const clock = {
    ...systemClock,
    setTimer: (callback: () => void, ms: number) => {
      waits.push(ms)
      return systemClock.setTimer(callback, 0)
    },
  }
  const asks = (retryAfterMs: number) => [unresolved(0, { class: 'throttle', retryAfterMs })]
  const { built } = options([asks(700), asks(3_600_000)], { clock })
  expect(await dispatch(page, built, never)).toBe(true)
  expect(waits).toEqual([700, 60_000])
})
