/** The longest chain that is ever sent. */
const MAX = 1024
/** Where a topic begins: long enough for ten keys to fill a page, short enough to cost little when it is shared. */
const START = 64

/**
 * How many messages of one key may be in flight behind one another, by topic. It doubles while chains hold and halves
 * when another writer of the stream gets between: what is overtaken is sent twice. On a stream that several relays fill
 * at once it comes down to 1, one message of a key at a time, and is tried again after every few hundred messages.
 */
export class ChainLimit {
  readonly #topics = new Map<string, { credit: number; limit: number }>()

  /** How long a chain to the topic may be now. */
  of(topic: string): number {
    const entry = this.#topics.get(topic)
    if (entry === undefined) return START
    // A limit of 1 makes no chains that could earn credit; so asking does.
    if (entry.limit === 1) this.#earn(entry, 1)
    return entry.limit
  }

  /** A chain was answered. */
  answered(topic: string, messages: number, overtaken: boolean): void {
    let entry = this.#topics.get(topic)
    if (entry === undefined) {
      if (this.#topics.size >= 10_000) this.#topics.clear()
      this.#topics.set(topic, (entry = { credit: 0, limit: START }))
    }
    if (overtaken) {
      entry.limit = Math.max(1, entry.limit >> 1)
      entry.credit = 0
    } else {
      this.#earn(entry, messages)
    }
  }

  #earn(entry: { credit: number; limit: number }, messages: number): void {
    entry.credit += messages
    if (entry.credit < Math.max(256, entry.limit * 4)) return
    entry.credit = 0
    entry.limit = Math.min(MAX, entry.limit * 2)
  }
}
