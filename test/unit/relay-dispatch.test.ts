import { expect, test } from 'vitest'
import type { Publisher, Unresolved } from '../../src/brokers/broker.ts'
import { systemClock } from '../../src/core/clock.ts'
import { MillraceError } from '../../src/core/errors.ts'
import { silentLogger } from '../../src/core/logger.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Signals } from '../../src/core/signals.ts'
import { type DispatchOptions, dispatch } from '../../src/outbox-relay/dispatch.ts'

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

test('an event that is refused for good is told at level error with its id, anything else at warn', async () => {
  const told: unknown[] = []
  const logger = {
    ...silentLogger,
    error: (fields: object) => told.push(['error', fields]),
    warn: (fields: object) => told.push(['warn', fields]),
  }
  const { built } = options([[unresolved(1, { class: 'poison' })], [unresolved(0)]], { logger })
  await dispatch(page, built, never)
  expect(told).toMatchObject([
    ['error', { class: 'poison', id: 'id-2', topic: 't' }],
    ['warn', { class: 'retry', id: 'id-2' }],
  ])
})
