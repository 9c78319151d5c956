/**
 * The checkpoint log: how far the shards are published. Each write is one inserted row, fenced by the leases of the
 * shards it names; the newest row that names a shard is that shard's checkpoint. Nothing is updated: a row updated
 * hundreds of times a second grows a chain of dead versions behind any open snapshot.
 *
 * # Two buckets, for all relays together
 *
 * A row's number `n` decides which bucket is written: each takes a stretch of numbers in turn, so relays that write at
 * different rates agree without a word. In the middle of a stretch whoever passes it empties the other bucket. That is
 * sound for any relay at any time, fenced or not, because it changes no shard's checkpoint: under a lock that excludes
 * every other write to that bucket it copies to the other one those rows that still are the newest of a shard, with
 * their numbers, and truncates. A newer row that its owner writes meanwhile has a higher number wherever it goes. So
 * the log is bounded whoever writes, and a shard that nobody holds keeps its row.
 *
 * A reader locks both buckets before its statement takes its snapshot, so it sees the copies or what was copied.
 *
 * # Certificate
 *
 * A row certifies itself (certificate.ts): it counts while its `xmin` is the xid that wrote it, in the cluster it was
 * written in. That holds through crashes, promotion and point-in-time recovery, and fails after dump and restore or a
 * logical copy, where snapshots of the old cluster mean nothing. What does not certify itself is not copied, and its
 * bucket stays.
 */
import { type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { type Anchor, type Delta } from './capture/polling/delta.ts'
import { Snapshot } from './capture/polling/snapshot.ts'
import { certified, uncertified } from './certificate.ts'
import type { WalPlace } from './capture/replication/wal-place.ts'
import { formatWalPosition, parseWalPosition } from './capture/replication/wal-position.ts'
import { type Lease, leaseLost } from './lease.ts'

/** What a checkpoint says: all that `base` sees is published and, while a delta is open, that delta up to `after`. */
export interface Checkpoint {
  readonly base: Anchor
  readonly open?: { readonly delta: Delta; readonly after: bigint }
  /** How far the stream is published, and the fingerprint of the publication it was read through; see relay-stream.ts. */
  readonly wal?: { readonly place: WalPlace; readonly publication: string } | undefined
}

/** A checkpoint, and the shards whose newest it is. */
export interface ShardsCheckpoint {
  readonly checkpoint: Checkpoint
  readonly shards: readonly number[]
}

/** Numbers in a stretch before the log moves to the other bucket: some megabytes. */
const ROWS_PER_BUCKET = 10_000

const COLUMNS = `shards, epoch, base, base_floor, target, target_floor, high, after, wal, wal_tx, wal_rows, publication`

// The newest row of each shard: scans of checkpoint_n downwards, stopped by the limit.
const newestSql = (schema: string, shards: string): string => `
  from ${shards} s cross join lateral (
    select c.*, ${certified('c')} as certified from ${schema}.checkpoint c
    where c.shards @> array[s.shard] order by c.n desc limit 1) c`

const loadSql = (schema: string): string => `
  select s.shard, c.n::text as n, c.base::text as base, c.base_floor::text as base_floor, c.target::text as target,
         c.target_floor::text as target_floor, c.high::text as high, c.after::text as after, c.wal::text as wal,
         c.wal_tx::text as wal_tx, c.wal_rows::int as wal_rows, c.publication, c.certified
  ${newestSql(schema, '(select unnest($1::smallint[]) as shard)')} order by s.shard`

// The rows of the lease that still are ours, locked, so that a takeover waits for the write or is seen by it. In one
// order, as the takeover locks them. Uses lease_pkey.
const writeSql = (schema: string): string => `
  with owned as materialized (
    select l.shard from ${schema}.lease l
    join unnest($2::smallint[], $3::bigint[]) f(shard, epoch) on l.shard = f.shard and l.epoch = f.epoch
    where l.token = $1 and l.backend_pid = pg_backend_pid() order by l.shard for share of l
  )
  insert into ${schema}.checkpoint (bucket, ${COLUMNS})
  select $4, $2::smallint[], (select max(e) from unnest($3::bigint[]) e), $5::pg_snapshot, $6, $7::pg_snapshot, $8, $9, $10,
         $11::pg_lsn, $12::pg_lsn, $13, $14
  where (select count(*) from owned) = cardinality($2::smallint[])
  returning n::text as n`

// Empties a bucket; see the head. The lock first: two that look first would wait for each other. Not now when it is not
// to be had at once, because a backup may hold it. The copies are the block's own, not those of a subtransaction, whose
// id would be their xmin and not their writer.
const emptySql = (schema: string, bucket: number, few: number): string => `
  do $do$
  begin
    set local lock_timeout = '100ms';
    lock table ${schema}.checkpoint_${bucket} in access exclusive mode;
    if not exists (select from ${schema}.checkpoint_${bucket} offset ${few}) then return; end if;
    if exists (select ${newestSql(schema, `${schema}.lease`)} where not c.certified) then return; end if;
    insert into ${schema}.checkpoint (bucket, n, written_at, ${COLUMNS}) overriding system value
    select distinct on (c.n) ${1 - bucket}, c.n, c.written_at, ${COLUMNS.replaceAll(/\w+/g, 'c.$&')}
    ${newestSql(schema, `${schema}.lease`)} where c.bucket = ${bucket};
    truncate ${schema}.checkpoint_${bucket};
  end $do$`

// An outbox that was restored without its checkpoints: records of transactions that this cluster has yet to begin.
// Probes record_tx_seq.
const foreignSql = (schema: string): string => `
  select from ${schema}.record where tx >= pg_snapshot_xmax(pg_current_snapshot()) limit 1`

interface CheckpointRow {
  readonly shard: number
  readonly n: string
  readonly base: string
  readonly base_floor: string
  readonly target: string | null
  readonly target_floor: string | null
  readonly high: string | null
  readonly after: string | null
  readonly wal: string | null
  readonly wal_tx: string | null
  readonly wal_rows: number | null
  readonly publication: string | null
  readonly certified: boolean
}

/** The log, as one relay writes it over one connection. */
export class CheckpointLog {
  readonly #lease: Pick<Lease, 'fenceOf' | 'shards'>
  readonly #name: string
  readonly #rowsPerBucket: number
  readonly #schema: string
  readonly #sql: Sql
  #bucket = 0
  /** The number from which on the other bucket is to be emptied. */
  #emptyFrom: number | undefined

  constructor(
    sql: Sql,
    schema: string,
    lease: Pick<Lease, 'fenceOf' | 'shards'>,
    rowsPerBucket: number = ROWS_PER_BUCKET,
  ) {
    this.#rowsPerBucket = rowsPerBucket
    this.#sql = sql
    this.#name = schema
    this.#schema = quoteIdentifier(schema)
    this.#lease = lease
  }

  /** Reads the checkpoints of the shards; of a new outbox, the one before its first record. */
  async load(shards: readonly number[] = this.#lease.shards): Promise<ShardsCheckpoint[]> {
    const { rows } = await this.#sql.query(loadSql(this.#schema), [shards])
    const groups = Map.groupBy(rows as CheckpointRow[], (row) => row.n)
    const loaded = [...groups.values()].map((group) => {
      const row = group[0] as CheckpointRow
      if (!row.certified) throw uncertified(this.#name)
      return { checkpoint: checkpointOf(row), shards: group.map(({ shard }) => shard) }
    })
    const found = new Set(loaded.flatMap((group) => group.shards))
    const unwritten = shards.filter((shard) => !found.has(shard))
    if (unwritten.length === 0) return loaded
    const foreign = await this.#sql.query(foreignSql(this.#schema))
    if (foreign.rows.length > 0) throw uncertified(this.#name)
    return [...loaded, { checkpoint: { base: { snapshot: Snapshot.NOTHING, floor: 0n } }, shards: unwritten }]
  }

  /**
   * Writes the checkpoint of some shards and commits it durably. Throws LEASE_LOST, having written nothing, when one of
   * them has another owner. When it rejects for another reason the outcome is unknown: load again over a new connection.
   */
  async write(checkpoint: Checkpoint, shards: readonly number[] = this.#lease.shards): Promise<void> {
    const fence = this.#lease.fenceOf(shards)
    const { base, open, wal } = checkpoint
    const { rows } = await this.#sql.query(writeSql(this.#schema), [
      fence.token,
      fence.shards,
      fence.epochs,
      this.#bucket,
      base.snapshot.text,
      base.floor.toString(),
      open?.delta.target.snapshot.text ?? null,
      open?.delta.target.floor.toString() ?? null,
      open?.delta.high.toString() ?? null,
      open?.after.toString() ?? null,
      wal === undefined ? null : formatWalPosition(wal.place.lsn),
      wal?.place.tx === undefined ? null : formatWalPosition(wal.place.tx),
      wal?.place.rows ?? null,
      wal?.publication ?? null,
    ])
    const row = rows[0] as { n: string } | undefined
    if (row === undefined) throw leaseLost()
    await this.#written(Number(row.n))
  }

  /** Goes on in the bucket that the numbers have come to, and empties the other one when it is time. */
  async #written(n: number): Promise<void> {
    const stretch = Math.floor(n / this.#rowsPerBucket)
    const middle = (stretch + 0.5) * this.#rowsPerBucket
    this.#bucket = stretch % 2
    this.#emptyFrom ??= middle
    if (n < this.#emptyFrom) return
    if (n < middle) {
      this.#emptyFrom = middle
      return
    }
    try {
      await this.#sql.query(emptySql(this.#schema, 1 - this.#bucket, Math.floor(this.#rowsPerBucket / 10)))
      this.#emptyFrom = middle + this.#rowsPerBucket
    } catch (error) {
      if ((error as { code?: string }).code !== LOCK_NOT_AVAILABLE) throw error
      this.#emptyFrom = n + this.#rowsPerBucket / 20
    }
  }
}

const LOCK_NOT_AVAILABLE = '55P03'

function checkpointOf(row: CheckpointRow): Checkpoint {
  const base: Anchor = { snapshot: Snapshot.parse(row.base), floor: BigInt(row.base_floor) }
  const wal = walOf(row)
  if (row.target === null) return { base, wal }
  const target: Anchor = { snapshot: Snapshot.parse(row.target), floor: BigInt(row.target_floor as string) }
  const delta: Delta = { base, target, high: BigInt(row.high as string) }
  return { base, open: { delta, after: BigInt(row.after as string) }, wal }
}

function walOf({ wal, wal_tx: tx, wal_rows: rows, publication }: CheckpointRow): Checkpoint['wal'] {
  if (wal === null || publication === null) return undefined
  const lsn = parseWalPosition(wal)
  const place = tx === null || rows === null ? { lsn } : { lsn, tx: parseWalPosition(tx), rows }
  return { place, publication }
}
