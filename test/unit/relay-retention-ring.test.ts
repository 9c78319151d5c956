/** When a bucket of the ring may be emptied, against a model that keeps every record's time. */
import { expect, test } from 'vitest'
import { longestRetentionMs, turnOf, type Ring } from '../../src/outbox-relay/retention/ring.ts'

const ringOf = (buckets: number, windowSeconds: number): Ring => ({
  partitions: Array.from({ length: buckets }, (_, bucket) => `record_${bucket}`),
  windowSeconds,
})

const bucketAt = (ring: Ring, seconds: number): number =>
  Math.floor(seconds / ring.windowSeconds) % ring.partitions.length

test('while a bucket is reclaimable every record that it can hold is older than the retention, of whatever lap', () => {
  const ring = ringOf(8, 16)
  for (const retentionMs of [0, 1000, 500, 16_000, 60_000, longestRetentionMs(8, 16)]) {
    const lap = 8 * 16
    for (let now = 10 * lap; now < 12 * lap; now++) {
      for (let bucket = 0; bucket < 8; bucket++) {
        const turn = turnOf(ring, bucket, retentionMs, now)
        if (now < turn.dueAt || now >= turn.closedAt) continue
        // Records of the last three laps: the youngest that went into this bucket.
        let youngest = now
        while (bucketAt(ring, youngest) !== bucket) youngest--
        expect(now - youngest, `bucket ${bucket} at ${now}`).toBeGreaterThanOrEqual(retentionMs / 1000)
        // And the clock may be set back over the end of the guard without a fresh record in it.
        expect(bucketAt(ring, now + 1)).not.toBe(bucket)
      }
    }
  }
})

test('each lap every bucket can be reclaimed for a while, even with the longest retention', () => {
  const ring = ringOf(8, 14_400)
  const retentionMs = longestRetentionMs(8, 14_400)
  expect(retentionMs).toBe(27 * 3_600_000)
  for (let bucket = 0; bucket < 8; bucket++) {
    const { closedAt, dueAt, endedAt, nextAt } = turnOf(ring, bucket, retentionMs, 1_800_000_000)
    expect(dueAt - endedAt).toBe(27 * 3600)
    expect(closedAt - dueAt).toBe(45 * 60)
    expect(nextAt - endedAt).toBe(28 * 3600)
  }
})

test('the bucket that is being written, and the one that ended just now, are not due', () => {
  const ring = ringOf(8, 14_400)
  const now = 1_800_000_000
  const current = bucketAt(ring, now)
  expect(turnOf(ring, current, 1000, now).dueAt).toBeGreaterThan(now)
  const { endedAt } = turnOf(ring, current, 1000, now)
  expect(turnOf(ring, current, 1000, endedAt).dueAt).toBe(endedAt + 1)
  expect(turnOf(ring, current, 1, endedAt).dueAt).toBe(endedAt + 1)
})
