/**
 * The fence of a parking statement: the lease's rows of the shards concerned, locked, so that a takeover waits for the
 * statement or is seen by it. Each statement here begins with `owned` (its rows) and `held` (one row when all are ours,
 * else none), and everything it writes reads from `held`. Its first three parameters are the fence.
 */
import { type Fence, leaseLost } from '../lease.ts'

/** What the fence asks of a lease; asked anew before each statement, because shards come and go. */
export interface FencedLease {
  readonly fence: Fence
  assertHeld(): void
}

// In one order, as a takeover locks them. Uses lease_pkey.
export const heldSql = (schema: string): string => `
  owned as materialized (
    select l.shard from ${schema}.lease l
    join unnest($2::smallint[], $3::bigint[]) f(shard, epoch) on l.shard = f.shard and l.epoch = f.epoch
    where l.token = $1 and l.backend_pid = pg_backend_pid() order by l.shard for share of l
  ), held as materialized (
    select true as ok where (select count(*) from owned) = cardinality($2::smallint[])
  )`

/** The first three parameters. Throws LEASE_LOST when a shard is not held. */
export function fenceParameters(lease: FencedLease, shards: Iterable<number>): unknown[] {
  const { epochs, shards: all, token } = lease.fence
  const wanted = [...new Set(shards)].toSorted((a, b) => a - b)
  const epochOf = new Map(all.map((shard, i) => [shard, epochs[i]]))
  if (wanted.some((shard) => !epochOf.has(shard))) throw leaseLost()
  return [token, wanted, wanted.map((shard) => epochOf.get(shard))]
}
