import { expect, test } from 'vitest'
import { openNow, refuseLeaks, track, trackLifecycle } from '../support/leaks.ts'

test('what a test leaves open fails it by name, and is closed', async () => {
  const before = openNow()
  let closed = 0
  const release = track('a pool that was closed', async () => {})
  track('database test_1', async () => ++closed)
  release()
  await expect(refuseLeaks(before)).rejects.toThrow('Left open: database test_1. Close each where it is made.')
  expect(closed).toBe(1)
  await refuseLeaks(before)
})

test('what was open before the test is not its leak', async () => {
  const release = track('a database of the whole file', async () => {})
  const before = openNow()
  await refuseLeaks(before)
  release()
})

test.each(['cleanly', 'with an error'])('a lifecycle that stopped %s is not a leak', async (how) => {
  const before = openNow()
  const end = Promise.withResolvers<void>()
  const relay = trackLifecycle('relay', {
    [Symbol.asyncDispose]: async () => {},
    start: async () => {},
    stats: () => ({}),
    stop: async () => end.resolve(),
    stopped: end.promise,
  })
  expect(openNow().size).toBe(before.size + 1)
  if (how === 'cleanly') await relay.stop()
  else end.reject(new Error('lost'))
  await relay.stopped.catch(() => {})
  await refuseLeaks(before)
})
