/** The number of shards, fixed by the migration (`shard_of`): a key belongs to one of them for good. */
export const SHARD_COUNT = 16

/** All shards. */
export const ALL_SHARDS: readonly number[] = Object.freeze(Array.from({ length: SHARD_COUNT }, (_, shard) => shard))
