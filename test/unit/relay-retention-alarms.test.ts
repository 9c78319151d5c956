/** When a bucket that is kept is told of, how loud, and how often. */
import { expect, test } from 'vitest'
import { systemClock } from '../../src/core/clock.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { Alarms } from '../../src/outbox-relay/retention/alarms.ts'
import type { BucketState } from '../../src/outbox-relay/retention/index.ts'
import { type Ring, turnOf } from '../../src/outbox-relay/retention/ring.ts'
import { rememberingLogger } from '../support/retention-stage.ts'

const RING: Ring = { partitions: Array.from({ length: 8 }, (_, n) => `record_${n}`), windowSeconds: 14_400 }
const HOUR = 3600
const START = 14_400 * 8 * 15_000

function stage() {
  const logger = rememberingLogger()
  const errors: Error[] = []
  let seconds = START
  const clock = { ...systemClock, monotonic: () => seconds * 1000 }
  const alarms = new Alarms({ clock, logger, onError: (error) => errors.push(error) })
  /** Bucket 0, so many seconds after its window began, as a sweep finds it then. */
  const look = (after: number, state: BucketState['state'], shards: readonly number[] = []): string[] => {
    seconds = START + after
    const before = logger.lines.length
    const turn = turnOf(RING, 0, 24 * HOUR * 1000, seconds)
    const base = Snapshot.NOTHING
    const heldBy = shards.length === 0 ? [] : [{ shards, base, writtenMsAgo: 1000 }]
    const ageMs = (seconds - turn.endedAt) * 1000
    alarms.observe([{ bucket: 0, state, heldBy, turn, ageMs, comesRoundInMs: (turn.nextAt - seconds) * 1000 }])
    return logger.lines.slice(before).map(({ level, text }) => `${level} ${text}`)
  }
  return { alarms, errors, look }
}

test('one look may meet a transaction that was committed just now: the second in a row is told, then every ten minutes', () => {
  const { alarms, errors, look } = stage()
  const due = 28 * HOUR
  expect(look(due, 'unpublished', [3])).toEqual([])
  expect(look(due + 60, 'empty')).toEqual([])
  expect(look(due + 120, 'unpublished', [3])).toEqual([])
  expect(look(due + 180, 'unpublished', [3])).toEqual([
    expect.stringMatching(/^warn bucket 0 .*shard 3 has not passed/),
  ])
  expect(look(due + 240, 'unpublished', [3])).toEqual([])
  expect(look(due + 300, 'unpublished', [3, 4])).toEqual([expect.stringMatching(/shards 3, 4/)])
  expect(look(due + 840, 'unpublished', [3, 4])).toEqual([])
  expect(look(due + 900, 'unpublished', [3, 4])).toHaveLength(1)
  expect(alarms.raised).toBe(3)
  expect(errors).toMatchObject([1, 2, 3].map(() => ({ code: 'RETENTION_STALLED' })))
})

test('it grows louder before the ring comes round, says so once when it has, and begins anew when the bucket is due again', () => {
  const { look } = stage()
  look(28 * HOUR, 'unpublished', [3])
  expect(look(28 * HOUR + 60, 'unpublished', [3])[0]).toMatch(/^warn/)
  expect(look(31 * HOUR, 'unpublished', [3])[0]).toMatch(/^error bucket 0/)
  expect(look(32 * HOUR + 60, 'young')).toEqual([expect.stringMatching(/^error .*the ring has come round/)])
  expect(look(33 * HOUR, 'young')).toEqual([])
  expect(look(40 * HOUR, 'young')).toEqual([])
  expect(look(60 * HOUR, 'unpublished', [3])[0]).toMatch(/^warn/)
  expect(look(60 * HOUR + 60, 'freed')).toEqual([])
  expect(look(64 * HOUR + 60, 'young')).toEqual([])
})

test('a lock alone is no alarm while there is time, and is one when there is none left', () => {
  const { look } = stage()
  look(28 * HOUR, 'locked')
  expect(look(28 * HOUR + 60, 'locked')).toEqual([])
  expect(look(31 * HOUR, 'locked')).toEqual([expect.stringMatching(/^error .*pg_locks/)])
  expect(look(31.9 * HOUR, 'late')).toEqual([expect.stringMatching(/^error .*one lap later/)])
})
