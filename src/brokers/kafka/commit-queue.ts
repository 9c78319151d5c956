import type { Partition } from '../broker.ts'
import { notOurs } from './group-error.ts'
import type { OwnedPartition, OwnedPartitions } from './owned-partitions.ts'

type Position = Partition & { readonly position: bigint }

/** An offset to commit: the position of the last message that is done, plus one. */
export type CommitOffset = Partition & { readonly offset: bigint }

/**
 * The commits of a member, one after the other. A position that was not handed over is refused, and so is a partition
 * that is not ours any more, also when that happened while the commit was on its way: the coordinator asks for the
 * member and the generation only. An earlier position takes nothing back.
 */
export class CommitQueue {
  readonly #owned: OwnedPartitions
  readonly #send: (offsets: readonly CommitOffset[], check: () => void) => Promise<void>
  #last: Promise<unknown> = Promise.resolve()

  /** `send` resolves when the broker has them; `check`, to be called before it sends again, throws when one went. */
  constructor(owned: OwnedPartitions, send: (offsets: readonly CommitOffset[], check: () => void) => Promise<void>) {
    this.#owned = owned
    this.#send = send
  }

  commit(positions: readonly Position[]): Promise<void> {
    const owned: OwnedPartition[] = []
    for (const position of positions) {
      const one = this.#owned.get(position)
      if (one?.next === undefined || position.position >= one.next) return Promise.reject(notOurs(position))
      owned.push(one)
    }
    const commit = this.#last.then(() => this.#commitNow(positions, owned))
    this.#last = commit.catch(() => {})
    return commit
  }

  /** Resolves when every commit that was asked for is answered. */
  async settled(): Promise<void> {
    await this.#last
  }

  async #commitNow(positions: readonly Position[], owned: readonly OwnedPartition[]): Promise<void> {
    this.#check(owned)
    const due = owned.flatMap((one, i) => {
      const { position } = positions[i] as Position
      return position >= one.committed ? [{ offset: position + 1n, owned: one }] : []
    })
    if (due.length === 0) return
    const offsets = due.map(({ offset, owned: { partition, topic } }) => ({ offset, partition, topic }))
    const check = (): void => this.#check(due.map((one) => one.owned))
    await this.#send(offsets, check)
    for (const { offset, owned: one } of due) {
      this.#check([one])
      if (offset > one.committed) one.committed = offset
    }
  }

  #check(owned: readonly OwnedPartition[]): void {
    for (const one of owned) if (this.#owned.get(one) !== one) throw notOurs(one)
  }
}
