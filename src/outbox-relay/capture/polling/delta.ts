import type { Snapshot } from './snapshot.ts'

/** A point that everything before is published: a snapshot, and a sequence value that bounds the search for what follows. */
export interface Anchor {
  readonly snapshot: Snapshot
  /** Every record whose `tx` is at or above the snapshot's xmax has a `seq` above it. */
  readonly floor: bigint
}

/** What was committed between two snapshots: the records visible in `target` and not in `base`. */
export interface Delta {
  readonly base: Anchor
  readonly target: Anchor
  /** The sequence's value read after the target's snapshot: nothing visible in it lies above. */
  readonly high: bigint
}

/** True when the delta cannot hold a record, known without a look at the table. */
export function isTriviallyEmpty(delta: Delta): boolean {
  return delta.high <= delta.base.floor && delta.base.snapshot.endedBy(delta.target.snapshot).length === 0
}
