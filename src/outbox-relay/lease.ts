/**
 * The lease: who relays the shards. One row a shard with an epoch, which rises with every new owner, and a random token,
 * because after a lossy failover two owners can hold the same epoch. A lease expires by the database's clock. Every
 * write that depends on it locks its rows and names both, so that a stopped process that wakes up writes nothing.
 *
 * A takeover need not wait for the expiry when the owner's connection is gone: the row names the owner's backend, and a
 * contender looks whether it still is there. That is a hint for speed and nothing rests on it. Behind a transaction
 * pooler the backend outlives its client, and the expiry decides.
 */
import { randomUUID } from 'node:crypto'
import type { Clock } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import { type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { ALL_SHARDS } from './shards.ts'

/** What a fenced write names. */
export interface Fence {
  readonly token: string
  readonly shards: readonly number[]
  /** The epoch of each shard, in the order of `shards`. */
  readonly epochs: readonly string[]
}

// All rows or none, locked in one order. Uses lease_pkey.
const acquireSql = (schema: string): string => `
  with free as materialized (
    select shard from ${schema}.lease l
    where expires_at < clock_timestamp()
       or not exists (select from pg_stat_activity a where a.pid = l.backend_pid
                      and coalesce(a.backend_start = l.backend_start, true)) -- null: a role that may not see it
    order by shard for update
  )
  update ${schema}.lease l
  set epoch = l.epoch + 1, token = $1, holder = $2, expires_at = clock_timestamp() + $3 * interval '1 millisecond',
      backend_pid = pg_backend_pid(),
      backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid())
  from free where l.shard = free.shard and (select count(*) from free) = (select count(*) from ${schema}.lease)
  returning l.shard, l.epoch::text as epoch`

// The rows that still are ours, locked in one order, as a takeover locks them. Uses lease_pkey. A lease belongs to the
// connection that took it: behind a transaction pooler it is lost, not shared.
const ownedSql = (schema: string): string => `
  with owned as materialized (
    select shard from ${schema}.lease
    where token = $1 and shard = any($2::smallint[]) and backend_pid = pg_backend_pid() order by shard for update
  )`

const renewSql = (schema: string): string => `${ownedSql(schema)}
  update ${schema}.lease l set expires_at = clock_timestamp() + $3 * interval '1 millisecond'
  from owned where l.shard = owned.shard`

const releaseSql = (schema: string): string => `${ownedSql(schema)}
  update ${schema}.lease l
  set expires_at = '-infinity', token = null, holder = null, backend_pid = null, backend_start = null
  from owned where l.shard = owned.shard`

/** The lease has another owner. */
export function leaseLost(): MillraceError {
  return new MillraceError(
    'LEASE_LOST',
    'the lease is lost: another relay has taken it, or a pooler stands between the relay and the database',
  )
}

/** Ownership of the shards, from `acquire` until it is released, lost or expired. */
export class Lease {
  readonly fence: Fence
  readonly #clock: Clock
  readonly #schema: string
  readonly #ttlMs: number
  #validUntil: number

  private constructor(clock: Clock, schema: string, ttlMs: number, fence: Fence, validUntil: number) {
    this.#clock = clock
    this.#schema = schema
    this.#ttlMs = ttlMs
    this.fence = fence
    this.#validUntil = validUntil
  }

  /** Takes the lease, or returns undefined when somebody else holds it. */
  static async acquire(
    sql: Sql,
    options: { readonly clock: Clock; readonly holder: string; readonly schema: string; readonly ttlMs: number },
  ): Promise<Lease | undefined> {
    const { clock, holder, ttlMs } = options
    const schema = quoteIdentifier(options.schema)
    const token = randomUUID()
    // Counted from before the statement was sent: by our clock the lease ends before it does by the database's.
    const validUntil = clock.monotonic() + ttlMs
    const { rows } = await sql.query(acquireSql(schema), [token, holder, ttlMs])
    if (rows.length === 0) return undefined
    const owned = (rows as { shard: number; epoch: string }[]).toSorted((a, b) => a.shard - b.shard)
    if (owned.length !== ALL_SHARDS.length) {
      throw new MillraceError(
        'SCHEMA_MISSING',
        `the outbox has ${owned.length} lease rows and not ${ALL_SHARDS.length}; run millrace migrate`,
      )
    }
    const fence = { token, shards: owned.map((row) => row.shard), epochs: owned.map((row) => row.epoch) }
    return new Lease(clock, schema, ttlMs, fence, validUntil)
  }

  /** The highest epoch of the shards, for logs and statistics. */
  get epoch(): string {
    return this.fence.epochs.reduce((a, b) => (BigInt(a) > BigInt(b) ? a : b))
  }

  /** Throws LEASE_LOST when the lease has expired by this process's clock. Asked before each publish. */
  assertHeld(): void {
    if (this.#clock.monotonic() < this.#validUntil) return
    throw new MillraceError(
      'LEASE_LOST',
      'the lease expired before it was renewed: the process or the database stood still',
    )
  }

  /** How long the lease still is held by this process's clock, milliseconds; 0 when it is not. */
  get remainingMs(): number {
    return Math.max(0, this.#validUntil - this.#clock.monotonic())
  }

  /** Regards the lease as lost from now on, whatever the database says: nothing more is published under it. */
  end(): void {
    this.#validUntil = Number.NEGATIVE_INFINITY
  }

  /** Extends the lease. Throws LEASE_LOST when somebody else has it, and then it is ended. */
  async renew(sql: Sql): Promise<void> {
    const validUntil = this.#clock.monotonic() + this.#ttlMs
    const { rowCount } = await sql.query(renewSql(this.#schema), [this.fence.token, this.fence.shards, this.#ttlMs])
    if (rowCount !== this.fence.shards.length) {
      this.end()
      throw leaseLost()
    }
    this.#validUntil = validUntil
  }

  /** Gives the lease back, so that the next owner need not wait. No error when it is lost already. */
  async release(sql: Sql): Promise<void> {
    this.end()
    await sql.query(releaseSql(this.#schema), [this.fence.token, this.fence.shards])
  }
}
