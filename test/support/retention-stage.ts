/** What the tests of the outbox's retention share: sweeps, records of any bucket, checkpoints by hand. */
import pg from 'pg'
import { systemClock } from '../../src/core/clock.ts'
import type { Logger } from '../../src/core/logger.ts'
import { Signals } from '../../src/core/signals.ts'
import { type BucketState, Retention, type RetentionOptions } from '../../src/outbox-relay/retention/index.ts'

/** A line of the log: its level, fields and text. */
export interface LogLine {
  readonly level: string
  readonly fields: Record<string, unknown>
  readonly text: string
}

/** A logger that remembers. */
export function rememberingLogger(): Logger & { readonly lines: LogLine[] } {
  const lines: LogLine[] = []
  const at =
    (level: string) =>
    (fields: object, text: string): void =>
      void lines.push({ level, fields: fields as Record<string, unknown>, text })
  return { lines, debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
}

/** Eight hours: with it a bucket whose window began 16 to 20 hours ago is due, and far from its next lap. */
export const EIGHT_HOURS_MS = 8 * 3_600_000

export function retentionOf(pool: pg.Pool, options: Partial<RetentionOptions> = {}): Retention {
  return new Retention({
    clock: systemClock,
    logger: rememberingLogger(),
    postgres: pool,
    retentionMs: EIGHT_HOURS_MS,
    schema: 'outbox',
    signals: new Signals(),
    ...options,
  })
}

/** The bucket whose window was so many windows ago; 4 is due by `EIGHT_HOURS_MS`, 1 is not. */
export async function bucketAgo(pool: pg.Pool, windows: number): Promise<number> {
  const { rows } = await pool.query(`select ((date_part('epoch', now())::bigint / 14400 - $1) % 8)::int as bucket`, [
    windows,
  ])
  return rows[0].bucket
}

/** Appends as a transaction does that began in the window of the bucket. */
export async function appendInto(
  client: pg.Client | pg.PoolClient | pg.Pool,
  bucket: number,
  key: string,
  n: number,
): Promise<void> {
  await client.query(
    `insert into outbox.record (bucket, shard, id, topic, key, type, payload)
     values ($1, outbox.shard_of($2), outbox.new_id(), 'orders', $2, 'order.changed', $3)`,
    [bucket, key, Buffer.from(JSON.stringify({ key, n }))],
  )
}

/** Writes, for these shards, the checkpoint of a relay that has published everything so far. */
export async function checkpointHere(client: pg.Client | pg.PoolClient | pg.Pool, shards: string): Promise<void> {
  await client.query(
    `insert into outbox.checkpoint (bucket, shards, epoch, base, base_floor)
     select 0, array_agg(s)::smallint[], 1, pg_current_snapshot(), 0 from unnest($1::smallint[]) s`,
    [shards],
  )
}

/** All shards. */
export const ALL = `{${Array.from({ length: 16 }, (_, shard) => shard).join(',')}}`

/** How many records the bucket holds. */
export async function countIn(pool: pg.Pool, bucket: number): Promise<number> {
  const { rows } = await pool.query('select count(*)::int as n from outbox.record where bucket = $1', [bucket])
  return rows[0].n
}

/** Sweeps once and says what became of the bucket. */
export async function sweptState(retention: Retention, bucket: number): Promise<BucketState> {
  const { buckets } = await retention.sweep()
  return buckets[bucket] as BucketState
}

/** Sweeps until the bucket has that state. */
export async function sweepUntil(retention: Retention, bucket: number, state: BucketState['state']): Promise<void> {
  const begun = performance.now()
  let last: string | undefined
  while (performance.now() - begun < 60_000) {
    last = (await sweptState(retention, bucket)).state
    if (last === state) return
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`bucket ${bucket} is ${last} and not ${state}`)
}

/** Makes the ring small, so that it comes round while a test looks on: 8 windows of so many seconds. */
export async function shortenWindows(pool: pg.Pool, seconds: number): Promise<void> {
  await pool.query(
    `alter table outbox.record alter column bucket
     set default (date_part('epoch', transaction_timestamp())::bigint / ${seconds} % 8)::smallint`,
  )
}
