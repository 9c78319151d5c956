import type { ErrorClass, Outcome, Unresolved } from '../broker.ts'
import type { ProduceRecord } from './produce-record.ts'

/** What became of the messages of one batch so far, and which keys are held because one of theirs was not stored. */
export class BatchOutcome {
  /** By key, the first message that was not stored. */
  readonly #held = new Map<string, Unresolved>()
  readonly #unresolved: Unresolved[] = []

  /** True when nothing went wrong. */
  get allStored(): boolean {
    return this.#unresolved.length === 0
  }

  /** The message was not stored; later ones of its key are held. */
  add(index: number, key: string | null, outcome: Outcome, errorClass: ErrorClass, error: Error): void {
    const entry = { index, outcome, class: errorClass, error }
    this.#unresolved.push(entry)
    if (key !== null && index < (this.#held.get(key)?.index ?? Infinity)) this.#held.set(key, entry)
  }

  /** True, and told, when an earlier message of the key was not stored: this one must not be sent. */
  holds(index: number, key: string | null): boolean {
    const holder = key === null || this.#held.size === 0 ? undefined : this.#held.get(key)
    if (holder === undefined || holder.index > index) return false
    this.#unresolved.push({ index, outcome: 'unsent', class: holder.class, error: holder.error })
    return true
  }

  /** The records that may be sent; the others are told as unsent. */
  sendable(records: readonly ProduceRecord[]): readonly ProduceRecord[] {
    if (this.#held.size === 0) return records
    return records.filter((record) => !this.holds(record.index, record.message.key))
  }

  /** All that was not stored, by rising index. */
  unresolved(): Unresolved[] {
    return this.#unresolved.sort((a, b) => a.index - b.index)
  }
}
