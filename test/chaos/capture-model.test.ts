/**
 * The capture against a model: random transactions, a moody broker and relays that lose their connections, their lease
 * and their lives, on real PostgreSQL. Whatever happens, every committed event is published, no other is, and along a
 * key nothing is skipped or inverted.
 *
 * Every run has new seeds. A failure prints the seed; MILLRACE_MODEL_SEED=<seed> makes the same choices again (not the
 * same timing, so repeat it until it fails).
 */
import { randomInt } from 'node:crypto'
import { afterAll, beforeEach, afterEach, expect, test } from 'vitest'
import { appendSql, read } from '../support/outbox-writer.ts'
import { type TestDatabase, createTestDatabase, describeWith } from '../support/services.ts'
import { seeded } from '../unit/flow-random.ts'
import { History } from './model-history.ts'
import { passes, published } from './model-random.ts'
import { ModelRelays } from './model-relays.ts'
import { type Course, TOPIC, Writer, createAggregates } from './model-writers.ts'

// The log may have been emptied, never put back: along a shard snapshots rise, and within a delta so does the place.
const WENT_BACK_SQL = `
  select * from (
    select s.shard, c.n, c.base::text, c.target::text, c.after, pg_snapshot_xmax(c.base) as xmax,
           lag(pg_snapshot_xmax(c.base)) over of as xmax_before,
           lag(coalesce(c.target, c.base)::text) over of as target_before, lag(c.after) over of as after_before
    from outbox.checkpoint c cross join unnest(c.shards) s(shard) window of as (partition by s.shard order by c.n)
  ) w where xmax < xmax_before or (target = target_before and after < after_before)`

const RECORDS_PER_SEED = 13_500
const SEEDS = 3
const WRITERS = 6

for (const version of [18, 15] as const) {
  describeWith(`postgres${version}`, `the capture against its model on PostgreSQL ${version}`, () => {
    let database: TestDatabase
    let records = 0
    const given = process.env['MILLRACE_MODEL_SEED']
    const seeds = given === undefined ? Array.from({ length: SEEDS }, () => randomInt(2 ** 31)) : [Number(given)]

    beforeEach(async () => void (database = await createTestDatabase({ version })))
    afterEach(() => database.close())
    afterAll(() => {
      if (given === undefined) expect(records).toBeGreaterThanOrEqual(2 * SEEDS * RECORDS_PER_SEED)
    })

    const cases = [2, 4].flatMap((most) => seeds.map((seed) => [most, seed] as const))
    test.each(cases)(
      'every committed event is published, no other is, and no key is inverted: %i relays, seed %i',
      async (most, seed) => {
        const history = new History()
        const relays = new ModelRelays(database, history, seeded(seed), most)
        await createAggregates(database.pool, WRITERS)
        const over = new AbortController()
        const trouble = relays.trouble(over.signal)
        await write(database.url, seed)
        over.abort()
        await trouble
        // Whatever of its shard was committed before it is published before it: it has the last seq.
        for (const key of await keyOfEachShard(database)) {
          await published(history.until(await appendSql(database.pool, key, 1, TOPIC)))
        }
        await relays.stop()
        records += await compare(database, history)
        expect(relays.errors, `seed ${seed}: errors`).toEqual([])
        const { cut, stolen, stopped } = relays.happened
        expect(Math.min(cut, stolen, stopped), `seed ${seed}: cuts, thefts and stops`).toBeGreaterThan(0)
      },
      120_000,
    )

    /** A key that nothing else uses in each shard. */
    async function keyOfEachShard({ pool }: TestDatabase): Promise<readonly string[]> {
      const { rows } = await pool.query<{ key: string }>(
        `select min('last' || i) as key from generate_series(1, 500) i group by outbox.shard_of('last' || i)`,
      )
      return rows.map(({ key }) => key)
    }

    /** Runs the writers, in bursts and calm phases, until they have committed enough. */
    async function write(url: string, seed: number): Promise<void> {
      const course: Course = { calm: false, committed: 0, target: RECORDS_PER_SEED }
      const writing = Promise.all(
        Array.from({ length: WRITERS }, (_, i) => new Writer(url, i, course, seeded(seed + i + 1)).run()),
      )
      const phases = seeded(seed - 1)
      while (course.committed < course.target) {
        course.calm = !course.calm
        await passes(200 + phases.below(400))
      }
      await writing
    }

    /** Judges what was published by what is committed; returns how much that is. */
    async function compare({ pool }: TestDatabase, history: History): Promise<number> {
      const { rows } = await pool.query<{ id: string; payload: Buffer }>(
        'select id, payload from outbox.record order by seq',
      )
      const versions = new Map<string, number>()
      for (const { payload } of rows) {
        const { key, n } = read(payload)
        if (n !== (versions.get(key) ?? 0) + 1) expect.unreachable(`the model itself is wrong: ${key}:${n}`)
        versions.set(key, n)
      }
      const committed = new Set(rows.map(({ id }) => id))
      expect(history.problems).toEqual([])
      expect(
        [...committed].filter((id) => !history.ids.has(id)),
        'committed and not published',
      ).toEqual([])
      expect(
        [...history.ids].filter((id) => !committed.has(id)),
        'published and not committed',
      ).toEqual([])
      const { rows: back } = await pool.query(WENT_BACK_SQL)
      expect(back, 'checkpoints that put a shard back').toEqual([])
      return rows.length
    }
  })
}
