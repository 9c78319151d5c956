/**
 * The checkpoint log: how far the shards are published. Each write is one inserted row, fenced by the lease; the newest
 * row that names a shard is its checkpoint. Nothing is updated: a row updated hundreds of times a second grows a chain
 * of dead versions behind any open snapshot. The rows lie in two buckets; when one is full the other is truncated and
 * written next.
 *
 * A row certifies itself: it holds the xid that wrote it, and counts only while its `xmin` is that xid. That holds
 * through crashes, promotion and point-in-time recovery, and fails after dump and restore or a logical copy, where
 * snapshots of the old cluster mean nothing.
 */
import { MillraceError } from '../core/errors.ts'
import { type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { type Anchor, type Delta } from './capture/polling/delta.ts'
import { Snapshot } from './capture/polling/snapshot.ts'
import { type Fence, leaseLost } from './lease.ts'

/** What a checkpoint says: all that `base` sees is published and, while a delta is open, that delta up to `after`. */
export interface Checkpoint {
  readonly base: Anchor
  readonly open?: { readonly delta: Delta; readonly after: bigint }
}

/** Rows in a bucket before the log moves to the other one: some megabytes. */
const ROWS_PER_BUCKET = 10_000

// One scan of checkpoint_n downwards, stopped by the limit.
const loadSql = (schema: string): string => `
  select bucket, base::text as base, base_floor::text as base_floor, target::text as target,
         target_floor::text as target_floor, high::text as high, after::text as after,
         (xmin = writer::xid) as certified
  from ${schema}.checkpoint where shards @> $1::smallint[] order by n desc limit 1`

// The rows of the lease that still are ours, locked, so that a takeover waits for the write or is seen by it. In one
// order, as the takeover locks them. Uses lease_pkey.
const ownedSql = (schema: string, token: string, shards: string, epochs: string): string => `
  select l.shard from ${schema}.lease l
  join unnest(${shards}::smallint[], ${epochs}::bigint[]) f(shard, epoch) on l.shard = f.shard and l.epoch = f.epoch
  where l.token = ${token} and l.backend_pid = pg_backend_pid() order by l.shard for share of l`

const writeSql = (schema: string): string => `
  with owned as materialized (${ownedSql(schema, '$1', '$2', '$3')})
  insert into ${schema}.checkpoint (bucket, shards, epoch, base, base_floor, target, target_floor, high, after)
  select $4, $2::smallint[], (select max(e) from unnest($3::bigint[]) e), $5::pg_snapshot, $6, $7::pg_snapshot, $8, $9, $10
  where (select count(*) from owned) = cardinality($2::smallint[])`

// Truncates a bucket: only under the lease, only when the other one holds a checkpoint of every shard, and not now when
// the lock is not to be had at once, because a backup may hold it. A do block takes no parameters: the owned rows are
// named by a uuid that we made and by digits.
const emptySql = (schema: string, bucket: number, owned: string, shards: number): string => `
  do $do$
  declare held integer;
  begin
    select count(*) into held from (${owned}) owned;
    if held <> ${shards} then return; end if;
    if exists (select from ${schema}.lease l where not exists (
      select from ${schema}.checkpoint_${1 - bucket} c where l.shard = any (c.shards))) then return; end if;
    set local lock_timeout = '100ms';
    truncate ${schema}.checkpoint_${bucket};
  exception when lock_not_available then null;
  end $do$`

// An outbox that was restored without its checkpoints: records of transactions that this cluster has yet to begin.
// Probes record_tx_seq.
const foreignSql = (schema: string): string => `
  select from ${schema}.record where tx >= pg_snapshot_xmax(pg_current_snapshot()) limit 1`

interface CheckpointRow {
  readonly bucket: number
  readonly base: string
  readonly base_floor: string
  readonly target: string | null
  readonly target_floor: string | null
  readonly high: string | null
  readonly after: string | null
  readonly certified: boolean
}

/** The log, as one owner of the shards writes it over one connection. */
export class CheckpointLog {
  readonly #fence: Fence
  readonly #rowsPerBucket: number
  readonly #schema: string
  readonly #sql: Sql
  #bucket = 0
  #rows = 0

  constructor(sql: Sql, schema: string, fence: Fence, rowsPerBucket: number = ROWS_PER_BUCKET) {
    this.#rowsPerBucket = rowsPerBucket
    this.#sql = sql
    this.#schema = quoteIdentifier(schema)
    this.#fence = fence
  }

  /** Reads the checkpoint of the fence's shards; of a new outbox, the one before its first record. */
  async load(): Promise<Checkpoint> {
    const { rows } = await this.#sql.query(loadSql(this.#schema), [this.#fence.shards])
    const row = (rows as CheckpointRow[])[0]
    if (row === undefined) {
      const foreign = await this.#sql.query(foreignSql(this.#schema))
      if (foreign.rows.length > 0) throw uncertified(this.#schema)
      return { base: { snapshot: Snapshot.NOTHING, floor: 0n } }
    }
    if (!row.certified) throw uncertified(this.#schema)
    this.#bucket = row.bucket
    // How full the bucket is does not matter much; assume half.
    this.#rows = this.#rowsPerBucket / 2
    const base: Anchor = { snapshot: Snapshot.parse(row.base), floor: BigInt(row.base_floor) }
    if (row.target === null) return { base }
    const target: Anchor = { snapshot: Snapshot.parse(row.target), floor: BigInt(row.target_floor as string) }
    const delta: Delta = { base, target, high: BigInt(row.high as string) }
    return { base, open: { delta, after: BigInt(row.after as string) } }
  }

  /**
   * Writes the checkpoint and commits it durably. Throws LEASE_LOST, having written nothing, when the lease has another
   * owner. When it rejects for another reason the outcome is unknown: load again over a new connection.
   */
  async write(checkpoint: Checkpoint): Promise<void> {
    if (this.#rows >= this.#rowsPerBucket) await this.#switchBucket()
    const { base, open } = checkpoint
    const { rowCount } = await this.#sql.query(writeSql(this.#schema), [
      this.#fence.token,
      this.#fence.shards,
      this.#fence.epochs,
      this.#bucket,
      base.snapshot.text,
      base.floor.toString(),
      open?.delta.target.snapshot.text ?? null,
      open?.delta.target.floor.toString() ?? null,
      open?.delta.high.toString() ?? null,
      open?.after.toString() ?? null,
    ])
    if (rowCount !== 1) throw leaseLost()
    this.#rows++
  }

  /** Empties the other bucket and goes on there; the newest row counts wherever it is. */
  async #switchBucket(): Promise<void> {
    const { token, shards, epochs } = this.#fence
    const other = 1 - this.#bucket
    const owned = ownedSql(this.#schema, `'${token}'`, `'{${shards.join(',')}}'`, `'{${epochs.join(',')}}'`)
    await this.#sql.query(emptySql(this.#schema, other, owned, shards.length))
    this.#bucket = other
    this.#rows = 0
  }
}

function uncertified(schema: string): MillraceError {
  return new MillraceError(
    'CHECKPOINT_UNCERTIFIED',
    `the outbox ${schema} was not written by this database: it came with a dump or a logical copy, and ` +
      `its transaction ids mean nothing here. To publish again everything the outbox holds (consumers drop what they know), ` +
      `run in one transaction: truncate ${schema}.checkpoint; update ${schema}.record set tx = pg_current_xact_id();`,
  )
}
