/**
 * How much may be in flight, in messages and in bytes, over all sources together, so that no source starves another.
 *
 * Half of the bound is divided evenly among the sources: each owns its reserve. The other half is a common pool, which
 * any source may borrow from. A source is full when it has used its reserve up and the pool is empty; so a blocked
 * source can hold its reserve and the pool, never the reserve of another, and a single busy source has nearly all.
 *
 * A sender cannot be refused what it has sent already; it can be paused. So a source is full at its high water, and
 * has room again when half its reserve, or half the pool, is free: the distance keeps a source from being paused and
 * resumed for every message. What is in flight never exceeds the bound by more than what one source hands over at once, per source.
 */

/** The bounds of an {@link IntakeLimit}. */
export interface IntakeBounds {
  readonly maxBytes: number
  readonly maxCount: number
}

/** What one source has in flight. */
export interface IntakeAccount {
  readonly bytes: number
  readonly count: number
  readonly closed: boolean
}

class Account implements IntakeAccount {
  bytes = 0
  count = 0
  closed = false
}

/** Counts what is in flight. */
export class IntakeLimit {
  readonly #maxBytes: number
  readonly #maxCount: number
  readonly #accounts = new Set<Account>()
  #bytes = 0
  #count = 0
  #reserveBytes: number
  #reserveCount: number
  /** What all sources together use beyond their reserves. */
  #borrowedBytes = 0
  #borrowedCount = 0

  constructor(bounds: IntakeBounds) {
    this.#maxBytes = bounds.maxBytes
    this.#maxCount = bounds.maxCount
    this.#reserveBytes = bounds.maxBytes / 2
    this.#reserveCount = bounds.maxCount / 2
  }

  get bytes(): number {
    return this.#bytes
  }

  get count(): number {
    return this.#count
  }

  /** Opens an account; every reserve becomes smaller. */
  open(): IntakeAccount {
    const account = new Account()
    this.#accounts.add(account)
    this.#divide()
    return account
  }

  /** Closes an account with what it still holds; every reserve becomes larger. */
  close(account: IntakeAccount): void {
    const own = account as Account
    if (!this.#accounts.delete(own)) return
    own.closed = true
    this.#bytes -= own.bytes
    this.#count -= own.count
    own.bytes = own.count = 0
    this.#divide()
  }

  /** One message came in. */
  add(account: IntakeAccount, bytes: number): void {
    this.#change(account as Account, 1, bytes)
  }

  /** One message is done. */
  remove(account: IntakeAccount, bytes: number): void {
    this.#change(account as Account, -1, -bytes)
  }

  /** The source has no room: pause it. */
  full(account: IntakeAccount): boolean {
    return (
      (account.count >= this.#reserveCount && this.#borrowedCount >= this.#maxCount / 2) ||
      (account.bytes >= this.#reserveBytes && this.#borrowedBytes >= this.#maxBytes / 2)
    )
  }

  /** The source has room again: resume it. */
  roomy(account: IntakeAccount): boolean {
    return (
      (account.count <= this.#reserveCount / 2 || this.#borrowedCount <= this.#maxCount / 4) &&
      (account.bytes <= this.#reserveBytes / 2 || this.#borrowedBytes <= this.#maxBytes / 4)
    )
  }

  #change(account: Account, count: number, bytes: number): void {
    if (account.closed) return
    this.#count += count
    this.#bytes += bytes
    this.#borrowedCount -= Math.max(0, account.count - this.#reserveCount)
    this.#borrowedBytes -= Math.max(0, account.bytes - this.#reserveBytes)
    account.count += count
    account.bytes += bytes
    this.#borrowedCount += Math.max(0, account.count - this.#reserveCount)
    this.#borrowedBytes += Math.max(0, account.bytes - this.#reserveBytes)
  }

  #divide(): void {
    const sources = Math.max(1, this.#accounts.size)
    // Whole numbers: the sum of what is borrowed must not drift.
    this.#reserveBytes = Math.floor(this.#maxBytes / 2 / sources)
    this.#reserveCount = Math.floor(this.#maxCount / 2 / sources)
    this.#borrowedBytes = this.#borrowedCount = 0
    for (const account of this.#accounts) {
      this.#borrowedBytes += Math.max(0, account.bytes - this.#reserveBytes)
      this.#borrowedCount += Math.max(0, account.count - this.#reserveCount)
    }
  }
}
