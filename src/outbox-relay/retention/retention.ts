/**
 * Retention of the outbox: one sweep looks at every bucket of the ring and empties those that nobody needs any more.
 *
 * # When a bucket is emptied
 *
 * 1. Its latest window that has begun ended at least the retention ago (ring.ts: then every record in it is that old).
 * 2. Every record in it is seen by the base of every shard's newest checkpoint, and all that a base sees is published.
 *    That is so when the newest `tx` in the bucket is below the base's xmax and no record is of a transaction that the
 *    base lists as in progress.
 * 3. Both still hold under the bucket's ACCESS EXCLUSIVE lock, by a snapshot taken after the lock was had.
 *
 * # Why nothing is lost
 *
 * - Under the lock no transaction has an uncommitted record in the bucket: its insert holds a lock that ours would have
 *   waited for. What was committed before is seen by (3), because a commit becomes visible before its locks are gone.
 * - A transaction that began long ago and inserts after the TRUNCATE simply has its record in the bucket. The record is
 *   published as any other; the bucket is not empty, so it is looked at again by each later sweep.
 * - The bases were read before the lock, so that no other lock is waited for under it. An old base still tells the truth:
 *   what was published stays published. A base counts only when it certifies itself, and only of this connection's
 *   server: what a crash or a restore takes back ends the connection.
 *
 * # Why no reader misses what is gone
 *
 * TRUNCATE is not versioned: it empties the bucket for older snapshots as well. A capture asks for the records that its
 * target sees and its base does not, and its base is the checkpoint's or a later one. Whatever lay in the bucket was
 * seen by the base of every shard, so it is in no delta, neither one that is open nor one that is read again after a
 * crash. A relay that was replaced may still hold an older base; it is fenced before it can open a page, and what it
 * misses its successor has published. A reader of the WAL has the records from the WAL. A page that is being read holds the
 * bucket's lock in share mode until it is there: TRUNCATE waits for it, or gives up.
 *
 * # Who may sweep
 *
 * Anybody, at any time, several at once: nothing above asks who owns a shard. An advisory lock per bucket, tried and never
 * waited for, saves the second the work. Besides it a sweep holds one lock at a time, waits at most the lock timeout for
 * it, and waits for nothing while it has it: it is part of no deadlock.
 *
 * # Rights
 *
 * USAGE on the schema, SELECT on `checkpoint`, and on each partition `record_0` to `record_7` TRUNCATE and SELECT of the
 * column `tx`; nothing on `record` itself. It does not see a payload.
 */
import type { Clock } from '../../core/clock.ts'
import type { Logger } from '../../core/logger.ts'
import type { Signals } from '../../core/signals.ts'
import { backoffMs } from '../../flow/backoff.ts'
import type { PgClient, PgPool } from '../../postgres/sql.ts'
import type { Snapshot } from '../capture/polling/snapshot.ts'
import { refuseStandby } from '../preconditions.ts'
import { answered } from '../sessions.ts'
import { ALL_SHARDS } from '../shards.ts'
import { Alarms } from './alarms.ts'
import type { BucketState } from './bucket-state.ts'
import { type ShardGroup, lookInto, readShardGroups } from './published.ts'
import { reclaim } from './reclaim.ts'
import { NOW_SECONDS, type Ring, type Turn, longestRetentionMs, readRing, turnOf } from './ring.ts'
import { openSweepSession } from './sweep-session.ts'

/** What retention needs, and whom it tells. */
export interface RetentionOptions {
  readonly clock: Clock
  readonly logger: Logger
  /** Told of each alarm. */
  readonly onError?: ((error: Error) => void) | undefined
  /** A connection is taken from it for each sweep. */
  readonly postgres: PgPool
  /**
   * How long records are kept after the window of four hours in which their transaction began, milliseconds. Raise it to
   * be able to feed a broker again that lost what it had acknowledged; it costs the space. A ring of 8 buckets holds 27
   * hours. Default: 24 hours.
   */
  readonly retentionMs: number
  readonly schema: string
  readonly signals: Signals
}

/** What a sweep found and did, bucket by bucket. */
export interface RetentionReport {
  readonly buckets: readonly BucketState[]
}

/** What retention has done since it was made. */
export interface RetentionStats {
  readonly sweeps: number
  /** Sweeps that ended with an error. */
  readonly failures: number
  /** Buckets emptied. */
  readonly freed: number
  /** The buckets that the last sweep kept although they are due. */
  readonly kept: readonly Pick<BucketState, 'bucket' | 'state' | 'ageMs' | 'comesRoundInMs'>[]
  /** Alarms raised. */
  readonly alarms: number
}

/** The next attempt at a bucket whose lock was not to be had: each attempt holds up its inserts for the lock timeout. */
const LOCKED_BACKOFF = { minDelayMs: 2000, maxDelayMs: 900_000 }

const HELD: ReadonlySet<BucketState['state']> = new Set(['unpublished', 'locked', 'late', 'changed', 'elsewhere'])

/** Frees the buckets of one outbox; see the head of the file. */
export class Retention {
  readonly #alarms: Alarms
  readonly #locked = new Map<number, { failures: number; until: number }>()
  readonly #options: RetentionOptions
  readonly #count = { sweeps: 0, failures: 0, freed: 0 }
  #kept: readonly BucketState[] = []
  #sweeping: Promise<RetentionReport> | undefined

  constructor(options: RetentionOptions) {
    this.#options = options
    this.#alarms = new Alarms(options)
  }

  /** Looks at every bucket once. One at a time: a second call gets the report of the first. Aborting closes its connection. */
  sweep(signal: AbortSignal = new AbortController().signal): Promise<RetentionReport> {
    return (this.#sweeping ??= this.#sweep(signal).finally(() => (this.#sweeping = undefined)))
  }

  stats(): RetentionStats {
    const kept = this.#kept.map(({ bucket, state, ageMs, comesRoundInMs }) => ({
      bucket,
      state,
      ageMs,
      comesRoundInMs,
    }))
    return { ...this.#count, kept, alarms: this.#alarms.raised }
  }

  async #sweep(signal: AbortSignal): Promise<RetentionReport> {
    const { clock, postgres } = this.#options
    try {
      const session = await openSweepSession(postgres, clock, signal)
      try {
        const buckets = await this.#buckets(session.client)
        this.#count.sweeps++
        this.#kept = buckets.filter(({ state }) => HELD.has(state))
        this.#alarms.observe(buckets)
        return { buckets }
      } finally {
        session.close()
      }
    } catch (error) {
      if (!signal.aborted) this.#count.failures++
      throw error
    }
  }

  async #buckets(client: PgClient): Promise<BucketState[]> {
    const { clock, retentionMs, schema } = this.#options
    await answered(clock, refuseStandby(client))
    const ring = await answered(clock, readRing(client, schema))
    const longest = longestRetentionMs(ring.partitions.length, ring.windowSeconds)
    const { rows } = await answered(clock, client.query(`select ${NOW_SECONDS}::float8 as now`))
    const { now } = rows[0] as { now: number }
    const turns = ring.partitions.map((_, bucket) => turnOf(ring, bucket, Math.min(retentionMs, longest), now))
    const states: BucketState[] = []
    // The bases are read once there is a bucket to ask for.
    let groups: ShardGroup[] | undefined
    for (const [bucket, turn] of turns.entries()) {
      let found: Pick<BucketState, 'state' | 'heldBy'> = { state: 'young', heldBy: [] }
      if (now >= turn.dueAt) {
        groups ??= await answered(clock, readShardGroups(client, schema, ALL_SHARDS))
        found = await this.#visit(client, ring, bucket, turn, groups, now)
      }
      states.push({
        ...found,
        bucket,
        turn,
        ageMs: (now - turn.endedAt) * 1000,
        comesRoundInMs: (turn.nextAt - now) * 1000,
      })
    }
    return states
  }

  /** Looks into a bucket that is due, and empties it when it can. */
  async #visit(
    client: PgClient,
    ring: Ring,
    bucket: number,
    turn: Turn,
    groups: readonly ShardGroup[],
    now: number,
  ): Promise<Pick<BucketState, 'state' | 'heldBy'>> {
    const { clock, logger, signals } = this.#options
    const partition = ring.partitions[bucket] as string
    const bases = groups.flatMap(({ base }): Snapshot[] => (base === undefined ? [] : [base]))
    const { empty, unseenBy } = await answered(clock, lookInto(client, partition, bases))
    const heldBy = groups.filter(({ base }) => base === undefined || unseenBy.has(base))
    if (empty) {
      this.#locked.delete(bucket)
      return { state: 'empty', heldBy: [] }
    }
    if (heldBy.length > 0) return { state: 'unpublished', heldBy }
    if (now >= turn.closedAt) return { state: 'late', heldBy: [] }
    const locked = this.#locked.get(bucket)
    if (locked !== undefined && clock.monotonic() < locked.until) return { state: 'locked', heldBy: [] }
    await signals.reach('retention:reclaim', bucket)
    const state = await answered(clock, reclaim(client, partition, turn, bases))
    if (state === 'locked') {
      const failures = (locked?.failures ?? 0) + 1
      this.#locked.set(bucket, { failures, until: clock.monotonic() + backoffMs(failures, LOCKED_BACKOFF, clock) })
      logger.debug({ bucket, failures }, 'a bucket that is due is locked; it is tried again later')
    } else {
      this.#locked.delete(bucket)
    }
    if (state === 'freed') {
      this.#count.freed++
      logger.info({ bucket, ageMs: (now - turn.endedAt) * 1000 }, 'a bucket of the outbox was emptied')
      signals.emit('retention:freed', bucket)
    }
    return { state, heldBy: [] }
  }
}
