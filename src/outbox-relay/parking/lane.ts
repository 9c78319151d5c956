import { createHash } from 'node:crypto'
import type { OutgoingMessage } from '../../core/message.ts'
import { SHARD_COUNT } from '../shards.ts'

/** What decides over a record's lane. */
export type LaneOf = Pick<OutgoingMessage, 'id' | 'key'>

/** The lane of a key, or of one event without a key: 16 bytes of a digest, as a uuid. A key may be too long for an index. */
export function laneOf({ id, key }: LaneOf): string {
  const text = key === null ? `id:${id}` : `key:${key}`
  const hex = createHash('sha256').update(text).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
}

/** The shard of a record, as `shard_of` in the migration computes it. */
export function shardOf({ id, key }: LaneOf): number {
  const digest = createHash('sha256')
    .update(key ?? id)
    .digest()
  return (digest[1] as number) % SHARD_COUNT
}
