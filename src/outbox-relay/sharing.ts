/**
 * How relays that poll divide the shards. Each looks about once a second how many it should hold: an equal part of all,
 * even within one. It takes what is free up to its share, and gives away what is above it, between two pages:
 *
 *     look → nothing to change → next page
 *          → too many: forget what was read ahead → write how far the shards are published → release their leases
 *          → too few, and some are free: take them → load their checkpoints → read them as well
 *
 * A shard that is given away has nothing in flight and its checkpoint is written, so its next owner repeats nothing.
 * Relays that join or leave move the shards between old and new shares and no others.
 */
import { type Clock, delay, withDeadline } from '../core/clock.ts'
import { PollingCapture } from './capture/polling/polling-capture.ts'
import { CheckpointLog } from './checkpoint-log.ts'
import type { Lease, Share } from './lease.ts'
import { relayPages } from './relay-pages.ts'
import { type RelaySessions, serverSilent } from './sessions.ts'
import type { JoinedTermOptions } from './term.ts'

/** How often a relay looks whether the shares have changed; it bounds how long shards of a killed relay lie idle. */
const LOOK_INTERVAL_MS = 1000

/** How often one looks that waits for its share. */
const WAITING_INTERVAL_MS = 300

/** Relays its share of the shards until the signal aborts; rejects with what ended it before. */
export async function shareShards(
  options: JoinedTermOptions,
  lease: Lease,
  sessions: RelaySessions,
  signal: AbortSignal,
): Promise<void> {
  const { clock, logger, onState, schema } = options
  const writer = sessions.writer.client
  const log = new CheckpointLog(writer, schema, lease)
  const pollIntervalMs = Math.min(options.pollIntervalMs, LOOK_INTERVAL_MS / 2)
  const capture = new PollingCapture({
    ...options,
    log,
    pollIntervalMs,
    reader: sessions.reader.client,
    start: [],
  })
  const shares = new Shares(lease, clock)
  const look = (): Promise<Share> => lease.look(writer)
  while (!signal.aborted) {
    if (await shares.haveChanged(look)) {
      const surplus = lease.shards.slice(lease.shards.length - shares.surplus)
      if (surplus.length > 0) {
        await capture.remove(surplus)
        await options.parking.crashes.progress(surplus)
        await inTime(clock, lease, lease.give(writer, surplus))
        logger.info({ shards: lease.shards, given: surplus }, 'gave shards to other relays')
      }
      if (shares.wanted > 0) {
        const taken = await inTime(clock, lease, lease.claim(writer, shares.wanted))
        if (taken.length > 0) capture.add(await inTime(clock, lease, log.load(taken)))
        if (taken.length > 0) logger.info({ shards: lease.shards, taken }, 'took shards')
      }
      shares.changed()
    }
    if (lease.shards.length === 0) {
      onState('standby', '', [])
      await delay(clock, shares.dueInMs, signal)
    } else {
      onState('relaying', lease.epoch, lease.shards)
      await relayPages({ ...options, until: () => shares.haveChanged(look) }, capture, lease, signal)
      capture.rewind()
    }
  }
  await capture.close()
}

/** What the last look said, and when the next is due. */
class Shares {
  readonly #clock: Clock
  readonly #lease: Lease
  #seen: Share = { share: 0, free: 0 }
  #lookAt = Number.NEGATIVE_INFINITY

  constructor(lease: Lease, clock: Clock) {
    this.#clock = clock
    this.#lease = lease
  }

  /** How many shards are to be given away. */
  get surplus(): number {
    return Math.max(0, this.#lease.shards.length - this.#seen.share)
  }

  /** How many of the free ones are to be taken. */
  get wanted(): number {
    return Math.max(0, Math.min(this.#seen.free, this.#seen.share - this.#lease.shards.length))
  }

  get dueInMs(): number {
    return Math.max(0, this.#lookAt - this.#clock.monotonic())
  }

  /** Looks when a look is due; true while there are shards to give or to take, until `changed`. */
  async haveChanged(look: () => Promise<Share>): Promise<boolean> {
    if (this.dueInMs === 0) {
      this.#lease.assertHeld()
      this.#seen = await inTime(this.#clock, this.#lease, look())
      this.#setLook()
    }
    return this.surplus > 0 || this.wanted > 0
  }

  /** What could be given or taken was; what was not, the next look decides. */
  changed(): void {
    this.#seen = { ...this.#seen, free: 0 }
    this.#setLook()
  }

  #setLook(): void {
    const waiting = this.#lease.shards.length < this.#seen.share
    const intervalMs = waiting ? WAITING_INTERVAL_MS : LOOK_INTERVAL_MS
    this.#lookAt = this.#clock.monotonic() + intervalMs * (0.7 + 0.3 * this.#clock.random())
  }
}

/** Waits for an answer of the server no longer than the lease lasts. */
function inTime<T>(clock: Clock, lease: Lease, answer: Promise<T>): Promise<T> {
  return withDeadline(clock, answer, lease.remainingMs, serverSilent)
}
