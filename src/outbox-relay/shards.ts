/** The number of shards, fixed by the migration (`shard_of`): a key belongs to one of them for good. */
export const SHARD_COUNT = 16

/** All shards. */
export const ALL_SHARDS: readonly number[] = Object.freeze(Array.from({ length: SHARD_COUNT }, (_, shard) => shard))

/** How many shards the member at a place (from 0) of so many members should hold: together all, each even within one. */
export function shareOf(rank: number, members: number): number {
  const among = Math.max(members, rank + 1)
  return Math.floor(SHARD_COUNT / among) + (rank < SHARD_COUNT % among ? 1 : 0)
}
