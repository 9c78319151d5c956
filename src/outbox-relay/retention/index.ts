/**
 * Retention: how the outbox gets its space back. The records lie in a ring of partitions by the time at which their
 * transaction began (ring.ts); one that is older than the retention and published to its last record (published.ts) is
 * emptied by TRUNCATE (reclaim.ts), never by DELETE. What holds one back is told (alarms.ts). Retention (retention.ts,
 * where **the proof** is) needs no lease: any relay may sweep, and several at once do no harm (keep-retention.ts).
 */
export type { BucketState } from './bucket-state.ts'
export { type KeepRetentionOptions, keepRetention } from './keep-retention.ts'
export { Retention, type RetentionOptions, type RetentionReport, type RetentionStats } from './retention.ts'
export { MIGRATED_RING, longestRetentionMs } from './ring.ts'
