/**
 * Tells when a bucket is kept that should be free. One look may meet a transaction that has just been committed, so an
 * alarm needs two sweeps in a row. `warn` while there is time; `error` once the ring is about to come round to the
 * bucket, or has: no insert fails and nothing is lost then, but what is in it stays for one more lap.
 */
import type { Clock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { Logger } from '../../core/logger.ts'
import type { BucketState } from './bucket-state.ts'
import type { ShardGroup } from './published.ts'

/** An alarm that stands is repeated after so long. */
const REPEAT_MS = 600_000

/** The part of the time between due and the next lap that is left when an alarm becomes an error. */
const URGENT_PART = 1 / 4

interface Standing {
  /** The lap it was kept in. */
  readonly endedAt: number
  readonly sweeps: number
  readonly told: string
  readonly toldAt: number
}

/** Remembers what was kept, and tells it once and then now and again. */
export class Alarms {
  readonly #clock: Clock
  readonly #logger: Logger
  readonly #onError: ((error: Error) => void) | undefined
  readonly #standing = new Map<number, Standing>()
  raised = 0

  constructor(options: {
    readonly clock: Clock
    readonly logger: Logger
    readonly onError?: ((error: Error) => void) | undefined
  }) {
    this.#clock = options.clock
    this.#logger = options.logger
    this.#onError = options.onError
  }

  /** Looks at what a sweep found. */
  observe(buckets: readonly BucketState[]): void {
    for (const bucket of buckets) {
      const before = this.#standing.get(bucket.bucket)
      const lapped = before !== undefined && before.endedAt < bucket.turn.endedAt && before.told !== 'lapped'
      if (lapped && (bucket.state === 'young' || isKept(bucket))) this.#tellLapped(bucket, before)
      else if (isKept(bucket)) this.#keep(bucket, before)
      // A bucket of two laps stays remembered until it is due again, so that it is told once.
      else if (bucket.state !== 'young') this.#standing.delete(bucket.bucket)
    }
  }

  #keep(bucket: BucketState, before: Standing | undefined): void {
    const sweeps = (before?.sweeps ?? 0) + 1
    const { closedAt, dueAt } = bucket.turn
    const urgent = bucket.ageMs / 1000 + bucket.turn.endedAt >= closedAt - (closedAt - dueAt) * URGENT_PART
    const shards = bucket.heldBy.flatMap((group) => group.shards).join(',')
    const text = `${urgent ? 'error' : 'warn'} ${bucket.state} ${shards}`
    const now = this.#clock.monotonic()
    // A lock is a matter of a backup or of a long transaction: no alarm while there is time.
    const due = sweeps >= 2 && (urgent || bucket.state === 'unpublished')
    const tell = due && (before?.told !== text || now - before.toldAt >= REPEAT_MS)
    this.#standing.set(bucket.bucket, {
      endedAt: bucket.turn.endedAt,
      sweeps,
      told: tell ? text : (before?.told ?? ''),
      toldAt: tell ? now : (before?.toldAt ?? 0),
    })
    if (tell) this.#tell(urgent ? 'error' : 'warn', bucket, whyKept(bucket))
  }

  #tellLapped(bucket: BucketState, before: Standing): void {
    const now = this.#clock.monotonic()
    this.#standing.set(bucket.bucket, { endedAt: before.endedAt, sweeps: before.sweeps, told: 'lapped', toldAt: now })
    this.#tell(
      'error',
      bucket,
      'the ring has come round to it before it was free: it takes the new events as well, nothing is lost, and all of ' +
        'it is kept for one more lap; look for the alarm that was given before',
    )
  }

  #tell(level: 'warn' | 'error', bucket: BucketState, why: string): void {
    this.raised++
    const details = {
      bucket: bucket.bucket,
      state: bucket.state,
      shards: bucket.heldBy.flatMap((group) => group.shards),
      ageMs: Math.round(bucket.ageMs),
      comesRoundInMs: Math.round(bucket.comesRoundInMs),
    }
    const message = `bucket ${bucket.bucket} of the outbox is due and is not free: ${why}`
    this.#logger[level](details, message)
    this.#onError?.(new MillraceError('RETENTION_STALLED', message, { details }))
  }
}

function isKept({ state }: BucketState): boolean {
  return state === 'unpublished' || state === 'locked' || state === 'late'
}

function whyKept({ heldBy, state }: BucketState): string {
  if (state === 'locked') {
    return 'a transaction or a backup holds a lock on it; see pg_locks and end what should not run that long'
  }
  if (state === 'late') {
    return 'it is published, but so late that the ring is about to come round to it; it is freed one lap later'
  }
  return `${heldBy.map(whyHeld).join('; ')}. See that a relay runs for them and that the broker takes their events`
}

function whyHeld({ base, shards, without, writtenMsAgo }: ShardGroup): string {
  const which = `${shards.length === 1 ? 'shard' : 'shards'} ${shards.join(', ')}`
  const ago = writtenMsAgo === undefined ? '' : `, written ${Math.round(writtenMsAgo / 1000)} s ago`
  if (base !== undefined) return `the checkpoint of ${which} has not passed all of it${ago}`
  return without === 'none'
    ? `${which} ${shards.length === 1 ? 'has' : 'have'} no checkpoint`
    : `the checkpoint of ${which} is of another cluster${ago}`
}
