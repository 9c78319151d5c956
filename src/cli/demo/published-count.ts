import type { Pool } from 'pg'
import { delay, systemClock } from '../../core/clock.ts'

// The relay's own words: all that the base sees is published and, inside an open delta, all up to "after". It reads the
// whole outbox, which only a demo may.
const COUNT = `
select count(*)::int as published
from (select base, target, after from outbox.checkpoint order by n desc limit 1) at, outbox.record r
where pg_visible_in_snapshot(r.tx, at.base)
   or pg_visible_in_snapshot(r.tx, at.target) and r.seq <= at.after`

const INTERVAL_MS = 250
/** At most this part of the time is spent counting. */
const SHARE = 0.05

/** How many events the relay knows to be published, by its checkpoint in the shop's database; it trails by a page. */
export class PublishedCount {
  value = 0
  readonly #pool: Pool
  readonly #stop = new AbortController()
  #counting: Promise<void> | undefined

  constructor(pool: Pool) {
    this.#pool = pool
  }

  /** Counts again and again until it is stopped. */
  start(): void {
    this.#counting ??= this.#count()
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await this.#counting
  }

  async #count(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const begun = systemClock.monotonic()
      try {
        const { rows } = await this.#pool.query<{ published: number }>(COUNT)
        this.value = rows[0]?.published ?? 0
      } catch {
        // It is for the eye only; whoever needs the database meets the same trouble.
      }
      const tookMs = systemClock.monotonic() - begun
      await delay(systemClock, Math.max(INTERVAL_MS, tookMs / SHARE), this.#stop.signal)
    }
  }
}
