/**
 * Streaming against a model: random transactions, a moody broker and relays that stream, poll, come and go, on real
 * PostgreSQL, while connections, leases, slots and publications are taken from under them. Whatever happens, every
 * committed record is published, nothing else is, along a key the first appearances are in order, and the slot is never
 * acknowledged past what the broker has. Events in the WAL alone may be missing when the slot was lost, and only then.
 *
 * Every run has new seeds. A failure prints the seed; MILLRACE_MODEL_SEED=<seed> makes the same choices again (not the
 * same timing, so repeat it until it fails), and MILLRACE_MODEL_RUNS=<n> makes so many runs of each kind.
 */
import { randomInt } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Unresolved } from '../../src/brokers/broker.ts'
import { systemClock } from '../../src/core/clock.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { appendSql, read } from '../support/outbox-writer.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'
import { History } from './model-history.ts'
import { passes, published } from './model-random.ts'
import { type Course, TOPIC, Writer, createAggregates } from './model-writers.ts'
import { StreamingModelRelays, type Treatment } from './streaming-model-relays.ts'
import { ALONE, MixedWriter } from './streaming-model-writer.ts'

const EVENTS_PER_SEED = 4500
const WRITERS = 2
const MIXED = 2

/** After a slot was moved by hand, a relay may hold it for a moment before it sees that. */
const MOVED_GRACE_MS = 3000

/** Events in the WAL alone have keys and rules of their own. */
class StreamHistory extends History {
  readonly alone = new Set<string>()
  readonly #highest = new Map<string, number>()

  override begin(epoch: number, batch: readonly OutgoingMessage[]): void {
    super.begin(epoch, batch.filter(isRecord))
  }

  override end(epoch: number, batch: readonly OutgoingMessage[], unresolved: readonly Unresolved[]): void {
    const places = new Map<number, number>()
    for (const [index, message] of batch.entries()) if (isRecord(message)) places.set(index, places.size)
    const ofRecords = unresolved.flatMap((one) => {
      const index = places.get(one.index)
      return index === undefined ? [] : [{ ...one, index }]
    })
    super.end(epoch, batch.filter(isRecord), ofRecords)
  }

  override store(epoch: number, message: OutgoingMessage): void {
    if (isRecord(message)) return super.store(epoch, message)
    if (this.alone.has(message.id)) return
    this.alone.add(message.id)
    const { key, n } = read(message.payload)
    if (n <= (this.#highest.get(key) ?? 0))
      this.problems.push(`${key}:${n} came after ${key}:${this.#highest.get(key)}`)
    this.#highest.set(key, n)
  }
}

function isRecord({ topic }: OutgoingMessage): boolean {
  return topic !== ALONE
}

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `streaming against its model on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    const given = process.env['MILLRACE_MODEL_SEED']
    const runs = Number(process.env['MILLRACE_MODEL_RUNS'] ?? 1)
    const seeds = Array.from({ length: runs }, () => (given === undefined ? randomInt(2 ** 31) : Number(given)))

    beforeEach(async () => void (database = await createTestDatabase({ version })))
    afterEach(() => database.close())

    const cases = (['gentle', 'rough'] as const).flatMap((treatment) => seeds.map((seed) => [treatment, seed] as const))
    test.each(cases)(
      'nothing is lost, invented or inverted, and nothing acknowledged early: %s, seed %i',
      check,
      180_000,
    )

    async function check(treatment: Treatment, seed: number): Promise<void> {
      const history = new StreamHistory()
      const relays = new StreamingModelRelays(database, history, seeded(seed), treatment)
      await createAggregates(database.pool, WRITERS)
      await relays.stream()
      const course: Course = { calm: false, committed: 0, target: EVENTS_PER_SEED }
      const mixed = await mixedWriters(course, seed)
      const over = new AbortController()
      const audited = audit(relays, history, mixed, over.signal)
      const trouble = relays.trouble(over.signal)
      await Promise.all([
        ...Array.from({ length: WRITERS }, (_, i) => new Writer(database.url, i, course, seeded(seed + i + 1)).run()),
        ...mixed.map((writer) => writer.run()),
      ])
      over.abort()
      await trouble
      // Whatever of its shard was committed before it is published before it.
      for (const key of await keyOfEachShard(database)) {
        await published(history.until(await appendSql(database.pool, key, 1, TOPIC)))
      }
      await relays.stop()
      expect(await audited, `seed ${seed}: acknowledged and not published`).toEqual([])
      await compare(history, mixed, treatment)
      expect(relays.errors, `seed ${seed}: errors`).toEqual([])
      expect(relays.happened.streams, `seed ${seed}: streams`).toBeGreaterThan(0)
    }

    async function mixedWriters(course: Course, seed: number): Promise<MixedWriter[]> {
      const { rows } = await database.pool.query<{ most: number }>(
        `select current_setting('max_prepared_transactions')::int as most`,
      )
      const mayPrepare = (rows[0]?.most ?? 0) >= MIXED
      return Array.from(
        { length: MIXED },
        (_, i) => new MixedWriter(database.url, i, course, seeded(seed - i - 1), mayPrepare),
      )
    }

    /** Compares again and again how far the slot is acknowledged with what the broker has. */
    async function audit(
      relays: StreamingModelRelays,
      history: StreamHistory,
      writers: readonly MixedWriter[],
      signal: AbortSignal,
    ): Promise<string[]> {
      const wrong: string[] = []
      const checked = writers.map(() => 0)
      while (!signal.aborted) {
        await passes(3)
        // A slot that is being made is held, too, but does not stream.
        const { rows } = await database.pool.query<{ confirmed: string }>(
          `select (s.confirmed_flush_lsn - '0/0'::pg_lsn)::text as confirmed
           from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid
           where s.slot_name = $1 and r.state in ('streaming', 'catchup')`,
          [relays.slot],
        )
        const confirmed = BigInt(rows[0]?.confirmed ?? '0')
        if (systemClock.monotonic() - relays.movedAt < MOVED_GRACE_MS) continue
        for (const [i, { placed }] of writers.entries()) {
          let at = checked[i] as number
          for (; at < placed.length && (placed[at]?.lsn ?? 0n) <= confirmed; at++) {
            const { id, alone, lsn } = placed[at] as (typeof placed)[number]
            // One in the WAL alone is left out by a slot that was made after it.
            if (!alone && !history.ids.has(id)) wrong.push(`${id} at ${lsn}, confirmed ${confirmed}`)
          }
          checked[i] = at
        }
      }
      return wrong
    }

    /** A key that nothing else uses in each shard. */
    async function keyOfEachShard({ pool }: TestDatabase): Promise<readonly string[]> {
      const { rows } = await pool.query<{ key: string }>(
        `select min('last' || i) as key from generate_series(1, 500) i group by outbox.shard_of('last' || i)`,
      )
      return rows.map(({ key }) => key)
    }

    async function compare(
      history: StreamHistory,
      writers: readonly MixedWriter[],
      treatment: Treatment,
    ): Promise<void> {
      const { rows } = await database.pool.query<{ id: string }>('select id from outbox.record')
      const committed = new Set(rows.map(({ id }) => id))
      const without = (some: Iterable<string>, others: ReadonlySet<string>): string[] =>
        [...some].filter((id) => !others.has(id))
      expect(history.problems).toEqual([])
      expect(without(committed, history.ids), 'committed and not published').toEqual([])
      expect(without(history.ids, committed), 'published and not committed').toEqual([])
      const placed = writers.flatMap((writer) => writer.placed)
      const alone = new Set(placed.flatMap(({ id, alone: is }) => (is ? [id] : [])))
      expect(without(history.alone, alone), 'in the WAL alone, published and not committed').toEqual([])
      if (treatment === 'gentle')
        expect(without(alone, history.alone), 'in the WAL alone, committed and not published').toEqual([])
    }
  })
}
