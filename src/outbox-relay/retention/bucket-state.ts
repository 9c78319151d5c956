import type { ShardGroup } from './published.ts'
import type { Turn } from './ring.ts'

/** What a sweep found of a bucket, and did. */
export interface BucketState {
  readonly bucket: number
  /**
   * `young`: not due yet. `empty`: due, and nothing in it. `freed`: emptied by this sweep. Kept although it is due:
   * `unpublished`: shards have not published all of it. `locked`: a transaction or a backup holds it. `late`: published,
   * but the next lap is about to begin; it is freed one lap later. `changed`, `elsewhere`: looked at again next time.
   */
  readonly state: 'young' | 'empty' | 'freed' | 'unpublished' | 'locked' | 'late' | 'changed' | 'elsewhere'
  /** How long ago the latest window of the bucket ended, milliseconds; negative while it lasts. */
  readonly ageMs: number
  /** How long until the ring comes round to it, milliseconds. */
  readonly comesRoundInMs: number
  /** The shards that keep it, when it is `unpublished`. */
  readonly heldBy: readonly ShardGroup[]
  readonly turn: Turn
}
