/** The verdict of the kill tests: what a broker holds against what the database committed. */
import type pg from 'pg'
import { expect } from 'vitest'
import type { Found } from './kill-readers.ts'

/** What was found beyond what was expected. */
export interface Verdict {
  readonly events: number
  /** Messages that were there before. */
  readonly repeats: number
  /** Most often that one key was gone back on. */
  readonly restarts: number
}

/** Expects every committed event, no other, and along each key first appearances in the order of the versions. */
export async function judge(pool: pg.Pool, partitions: ReadonlyMap<number, readonly Found[]>): Promise<Verdict> {
  const { rows } = await pool.query<{ id: string }>('select id from outbox.record')
  const committed = new Set(rows.map(({ id }) => id))
  const found = [...partitions.values()].flat()
  const ids = new Set(found.map(({ id }) => id))
  expect(
    [...committed].filter((id) => !ids.has(id)),
    'committed and not in the broker',
  ).toEqual([])
  expect(
    [...ids].filter((id) => !committed.has(id)),
    'in the broker and not committed',
  ).toEqual([])
  const problems: string[] = []
  const placeOf = new Map<string, number>()
  let restarts = 0
  for (const [partition, messages] of partitions) {
    for (const [key, ofKey] of Map.groupBy(messages, (message) => message.key)) {
      if (placeOf.has(key)) problems.push(`${key} is in the partitions ${placeOf.get(key)} and ${partition}`)
      placeOf.set(key, partition)
      restarts = Math.max(restarts, follow(key, ofKey, problems))
    }
  }
  expect(problems).toEqual([])
  return { events: committed.size, repeats: found.length - ids.size, restarts }
}

/** Follows one key; returns how often it was gone back on. */
function follow(key: string, messages: readonly Found[], problems: string[]): number {
  let highest = 0
  let restarts = 0
  let before = 0
  for (const { n } of messages) {
    if (n > highest + 1) problems.push(`${key}: ${n} appears first, and the highest before is ${highest}`)
    if (n <= before) restarts++
    highest = Math.max(highest, n)
    before = n
  }
  return restarts
}

/** Expects that each repeat is one of a run that goes on from where it began, one after the other: a tail sent again. */
export function expectTails(partitions: ReadonlyMap<number, readonly Found[]>): void {
  for (const messages of partitions.values()) {
    for (const [key, ofKey] of Map.groupBy(messages, (message) => message.key)) {
      let before = 0
      for (const { n } of ofKey) {
        if (n > before + 1) expect.unreachable(`${key}: ${n} follows ${before}`)
        before = n
      }
    }
  }
}

/** How many committed events are not in the broker. */
export async function missing(pool: pg.Pool, found: ReadonlyMap<number, readonly Found[]>): Promise<number> {
  const { rows } = await pool.query<{ id: string }>('select id from outbox.record')
  const ids = new Set([...found.values()].flat().map(({ id }) => id))
  return rows.filter(({ id }) => !ids.has(id)).length
}

/** The rows of the checkpoint log that put a shard back. */
export async function wentBack(pool: pg.Pool): Promise<unknown[]> {
  const { rows } = await pool.query(`
    select * from (
      select s.shard, c.n, pg_snapshot_xmax(base) as xmax, lag(pg_snapshot_xmax(base)) over of as before
      from outbox.checkpoint c cross join unnest(c.shards) s(shard) window of as (partition by s.shard order by c.n)
    ) w where xmax < before`)
  return rows
}
