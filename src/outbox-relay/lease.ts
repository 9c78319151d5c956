/**
 * The lease: who relays which shards. One row a shard with an epoch, which rises with every new owner, and a random
 * token, because after a lossy failover two owners can hold the same epoch. A lease expires by the database's clock.
 * Every write that depends on it locks the rows of its shards and names both, so that a stopped process that wakes up
 * writes nothing.
 *
 * A relay is a member for as long as its term lasts, with one row and one token for all its shards; both expire
 * together. From the rows of the living it knows how many shards are its share.
 *
 * Neither need be waited for when the owner's connection is gone: the rows name the owner's backend, and whoever looks
 * sees whether it still is there. That is a hint for speed and nothing rests on it. Behind a transaction pooler the
 * backend outlives its client, and the expiry decides.
 *
 * Lock order: the rows of the lease by shard, then the member's own row. A claim of some shards waits for no lock.
 */
import { randomUUID } from 'node:crypto'
import type { Clock } from '../core/clock.ts'
import { MillraceError } from '../core/errors.ts'
import { type Sql, quoteIdentifier } from '../postgres/sql.ts'
import { ALL_SHARDS, shareOf } from './shards.ts'

/** What a fenced write names. */
export interface Fence {
  readonly token: string
  readonly shards: readonly number[]
  /** The epoch of each shard, in the order of `shards`. */
  readonly epochs: readonly string[]
}

/** How a relay takes part. */
export interface LeaseOptions {
  readonly clock: Clock
  readonly holder: string
  readonly schema: string
  /** False for a relay that wants all shards or none, and is not counted by those that share. Default: true. */
  readonly sharing?: boolean
  readonly ttlMs: number
}

/** What a look at the other members says. */
export interface Share {
  /** How many shards this member should hold. */
  readonly share: number
  /** How many nobody holds. */
  readonly free: number
}

/** SQL: the owner of a row (of the lease, or a member) is there no more. */
// Null: a role that may not see the start of a backend.
export const gone = (row: string): string => `
  (${row}.expires_at < clock_timestamp() or not exists (
     select from pg_stat_activity a where a.pid = ${row}.backend_pid
     and coalesce(a.backend_start = ${row}.backend_start, true)))`

const SELF_START = '(select backend_start from pg_stat_activity where pid = pg_backend_pid())'

const until = (ttl: string): string => `clock_timestamp() + ${ttl} * interval '1 millisecond'`

// Sweeps away the dead; uses member_pkey. Two that join at once do not wait for each other.
const joinSql = (schema: string): string => `
  with dead as materialized (select token from ${schema}.member m where ${gone('m')} for update skip locked),
  swept as (delete from ${schema}.member m using dead where m.token = dead.token)
  insert into ${schema}.member (token, holder, sharing, backend_pid, backend_start, expires_at)
  values ($1, $2, $3, pg_backend_pid(), ${SELF_START}, ${until('$4')})`

// Reads two tables of a few rows.
const lookSql = (schema: string): string => `
  with living as materialized (select token from ${schema}.member m where sharing and not ${gone('m')})
  select (select count(*) from living)::int as members, (select count(*) from living where token < $1)::int as rank,
         (select count(*) from ${schema}.lease l where ${gone('l')})::int as free`

const takeSql = (schema: string, free: string, where: string): string => `
  with free as materialized (select shard from ${schema}.lease l where ${gone('l')} ${free})
  update ${schema}.lease l
  set epoch = l.epoch + 1, token = $1, holder = $2, expires_at = ${until('$3')},
      backend_pid = pg_backend_pid(), backend_start = ${SELF_START}
  from free where l.shard = free.shard ${where}
  returning l.shard, l.epoch::text as epoch`

// Some rows: a row that somebody is at is left to them, or for the next look. Uses lease_pkey. None that we believe to
// hold: it may have had another owner since, and what we know of its checkpoint is from before; the renewal finds out.
const claimSql = (schema: string): string =>
  takeSql(schema, 'and shard <> all($5::smallint[]) order by shard limit $4 for update skip locked', '')

// All rows or none, locked in one order. Uses lease_pkey.
const claimAllSql = (schema: string): string =>
  takeSql(
    schema,
    'order by shard for update',
    `and (select count(*) from free) = (select count(*) from ${schema}.lease)`,
  )

// The rows that still are ours, locked in one order, as a takeover locks them. Uses lease_pkey. A lease belongs to the
// connection that took it: behind a transaction pooler it is lost, not shared.
const ownedSql = (schema: string): string => `
  with owned as materialized (
    select shard from ${schema}.lease
    where token = $1 and shard = any($2::smallint[]) and backend_pid = pg_backend_pid() order by shard for update
  )`

const renewSql = (schema: string): string => `${ownedSql(schema)},
  renewed as (
    update ${schema}.lease l set expires_at = ${until('$3')} from owned where l.shard = owned.shard returning l.shard
  ), kept as (
    update ${schema}.member m set expires_at = ${until('$3')}
    where token = $1 and backend_pid = pg_backend_pid() returning token
  )
  select (select count(*) from renewed)::int as leases, (select count(*) from kept)::int as members`

const releaseSql = (schema: string): string => `${ownedSql(schema)}
  update ${schema}.lease l
  set expires_at = '-infinity', token = null, holder = null, backend_pid = null, backend_start = null
  from owned where l.shard = owned.shard`

const leaveSql = (schema: string): string => `delete from ${schema}.member where token = $1`

/** The lease has another owner. */
export function leaseLost(): MillraceError {
  return new MillraceError(
    'LEASE_LOST',
    'the lease is lost: another relay has taken it, or a pooler stands between the relay and the database',
  )
}

interface Taken {
  readonly shard: number
  readonly epoch: string
}

/** One member and its shards, from `join` until it has left, or has lost a shard, or has expired. */
export class Lease {
  readonly #options: LeaseOptions
  readonly #schema: string
  readonly #token = randomUUID()
  #fence: Fence = { token: this.#token, shards: [], epochs: [] }
  #validUntil = 0

  private constructor(options: LeaseOptions) {
    this.#options = options
    this.#schema = quoteIdentifier(options.schema)
  }

  /** Becomes a member that holds no shard yet. All that follows must go over the same connection. */
  static async join(sql: Sql, options: LeaseOptions): Promise<Lease> {
    const lease = new Lease(options)
    const { clock, holder, sharing = true, ttlMs } = options
    // Counted from before the statement was sent: by our clock the lease ends before it does by the database's.
    const validUntil = clock.monotonic() + ttlMs
    await sql.query(joinSql(lease.#schema), [lease.#token, holder, sharing, ttlMs])
    lease.#validUntil = validUntil
    return lease
  }

  /** Takes all shards, or returns undefined when somebody else holds one. */
  static async acquire(sql: Sql, options: LeaseOptions): Promise<Lease | undefined> {
    const lease = await Lease.join(sql, { ...options, sharing: false })
    if (await lease.claimAll(sql)) return lease
    await lease.release(sql)
    return undefined
  }

  /** The shards that are held now, with their epochs. */
  get fence(): Fence {
    return this.#fence
  }

  /** The shards that are held now, ascending. */
  get shards(): readonly number[] {
    return this.#fence.shards
  }

  /** The highest epoch of the shards, for logs and statistics; '' when there are none. */
  get epoch(): string {
    return this.#fence.epochs.reduce((a, b) => (a !== '' && BigInt(a) > BigInt(b) ? a : b), '')
  }

  /** The fence of some of the shards. Throws LEASE_LOST when one of them is not held. */
  fenceOf(shards: readonly number[]): Fence {
    const { token, epochs } = this.#fence
    if (shards === this.#fence.shards) return this.#fence
    return {
      token,
      shards,
      epochs: shards.map((shard) => {
        const epoch = epochs[this.#fence.shards.indexOf(shard)]
        if (epoch === undefined) throw leaseLost()
        return epoch
      }),
    }
  }

  /** Throws LEASE_LOST when the lease has expired by this process's clock. Asked before each publish. */
  assertHeld(): void {
    if (this.#options.clock.monotonic() < this.#validUntil) return
    throw new MillraceError(
      'LEASE_LOST',
      'the lease expired before it was renewed: the process or the database stood still',
    )
  }

  /** How long the lease still is held by this process's clock, milliseconds; 0 when it is not. */
  get remainingMs(): number {
    return Math.max(0, this.#validUntil - this.#options.clock.monotonic())
  }

  /** Regards the lease as lost from now on, whatever the database says: nothing more is published under it. */
  end(): void {
    this.#validUntil = Number.NEGATIVE_INFINITY
  }

  /** Looks at the other members. */
  async look(sql: Sql): Promise<Share> {
    const { rows } = await sql.query(lookSql(this.#schema), [this.#token])
    const { members, rank, free } = rows[0] as { members: number; rank: number; free: number }
    return { share: shareOf(rank, members), free }
  }

  /** Takes up to `count` shards that nobody holds; returns which. */
  async claim(sql: Sql, count: number): Promise<readonly number[]> {
    const { holder, ttlMs } = this.#options
    const { rows } = await sql.query(claimSql(this.#schema), [this.#token, holder, ttlMs, count, this.#fence.shards])
    return this.#take(rows as Taken[])
  }

  /** Takes all shards; false, and nothing is taken, when somebody else holds one. */
  async claimAll(sql: Sql): Promise<boolean> {
    const { holder, ttlMs } = this.#options
    const { rows } = await sql.query(claimAllSql(this.#schema), [this.#token, holder, ttlMs])
    if (rows.length === 0) return false
    if (rows.length !== ALL_SHARDS.length) {
      throw new MillraceError(
        'SCHEMA_MISSING',
        `the outbox has ${rows.length} lease rows and not ${ALL_SHARDS.length}; run millrace migrate`,
      )
    }
    this.#take(rows as Taken[])
    return true
  }

  /** Extends the lease. Throws LEASE_LOST when somebody else has a shard of it, and then it is ended. */
  async renew(sql: Sql): Promise<void> {
    const { clock, ttlMs } = this.#options
    const validUntil = clock.monotonic() + ttlMs
    const { shards } = this.#fence
    const { rows } = await sql.query(renewSql(this.#schema), [this.#token, shards, ttlMs])
    const { leases, members } = rows[0] as { leases: number; members: number }
    if (leases !== shards.length || members !== 1) {
      this.end()
      throw leaseLost()
    }
    // Not once it was ended meanwhile.
    if (this.#validUntil !== Number.NEGATIVE_INFINITY) this.#validUntil = validUntil
  }

  /** Gives some shards back, so that the next owner need not wait. No error when they are lost already. */
  async give(sql: Sql, shards: readonly number[]): Promise<void> {
    const kept = this.#fence.shards.filter((shard) => !shards.includes(shard))
    // First of all they are ours no more.
    this.#fence = this.fenceOf(kept)
    await sql.query(releaseSql(this.#schema), [this.#token, shards])
  }

  /** Gives all shards back and leaves. No error when they are lost already. */
  async release(sql: Sql): Promise<void> {
    this.end()
    if (this.#fence.shards.length > 0) await sql.query(releaseSql(this.#schema), [this.#token, this.#fence.shards])
    await sql.query(leaveSql(this.#schema), [this.#token])
  }

  #take(taken: readonly Taken[]): readonly number[] {
    const epochs = new Map(this.#fence.shards.map((shard, i) => [shard, this.#fence.epochs[i] as string]))
    for (const { shard, epoch } of taken) epochs.set(shard, epoch)
    const shards = [...epochs.keys()].toSorted((a, b) => a - b)
    this.#fence = { token: this.#token, shards, epochs: shards.map((shard) => epochs.get(shard) as string) }
    return taken.map(({ shard }) => shard).toSorted((a, b) => a - b)
  }
}
