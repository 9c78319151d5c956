/**
 * What the brokers of the capture's model test were given, judged as it comes. Versions of a key are 1, 2, 3 …, so:
 *
 * - First appearances along a key are 1, 2, 3 …: nothing is skipped, nothing is inverted.
 * - Within one term of a relay, with the shards it holds, a key goes on exactly where the last answer left it: after the last version, or, when
 *   some were not stored, at the first of these. So a repeat is the tail of the key sent again, and nothing else is.
 * - The first of a term may be stored already, by the terms before it; of all it repeats there are no more than the pages
 *   that were not yet checkpointed.
 */
import type { Unresolved } from '../../src/brokers/broker.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { read } from '../support/outbox-writer.ts'

/**
 * A page that was stored and whose checkpoint was lost is sent again; so may be the one that the next term sent first. A
 * relay may take over from several at once, and from each more than one group of shards.
 */
const PAGES_REPEATED = 3
const MOST_PROBLEMS = 10

interface Term {
  readonly expected: Map<string, number>
  readonly seen: Set<string>
  repeats: number
}

export class History {
  /** Every id that was stored. */
  readonly ids = new Set<string>()
  readonly problems: string[] = []
  /** The largest page that any relay of the run may send. */
  largestPage = 0
  /** How many relays work at once at the most. */
  relays = 1
  repeats = 0
  #awaited: { readonly id: string; readonly resolve: () => void } | undefined
  readonly #firstBy = new Map<string, number>()
  readonly #highest = new Map<string, number>()
  readonly #terms = new Map<number, Term>()

  /** Resolves when the id is stored. */
  until(id: string): Promise<void> {
    return new Promise((resolve) => {
      if (this.ids.has(id)) resolve()
      else this.#awaited = { id, resolve }
    })
  }

  /** A publish begins: each key must go on where the term stands with it. */
  begin(epoch: number, batch: readonly OutgoingMessage[]): void {
    const { expected } = this.#term(epoch)
    const next = new Map<string, number>()
    for (const message of batch) {
      const { key, n } = read(message.payload)
      const due = next.get(key) ?? expected.get(key)
      if (due !== undefined && n !== due) this.#problem(`epoch ${epoch} sends ${key}:${n} where ${key}:${due} is due`)
      next.set(key, n + 1)
    }
  }

  /** The publish was answered. */
  end(epoch: number, batch: readonly OutgoingMessage[], unresolved: readonly Unresolved[]): void {
    const { expected } = this.#term(epoch)
    for (const message of batch) {
      const { key, n } = read(message.payload)
      expected.set(key, n + 1)
    }
    for (const { index } of unresolved.toReversed()) {
      const { key, n } = read((batch[index] as OutgoingMessage).payload)
      expected.set(key, n)
    }
  }

  /** A message is in the broker. */
  store(epoch: number, message: OutgoingMessage): void {
    const { key, n } = read(message.payload)
    const highest = this.#highest.get(key) ?? 0
    if (n > highest + 1) this.#problem(`epoch ${epoch} stored ${key}:${n} first, after ${key}:${highest}`)
    if (n > highest) this.#highest.set(key, n)
    const first = this.#firstBy.get(message.id)
    if (first === undefined) this.#firstBy.set(message.id, epoch)
    else if (first < epoch) this.#repeated(epoch, message.id)
    this.ids.add(message.id)
    if (this.#awaited?.id === message.id) this.#awaited.resolve()
  }

  #repeated(epoch: number, id: string): void {
    const term = this.#term(epoch)
    if (term.seen.has(id)) return
    term.seen.add(id)
    this.repeats++
    const pages = PAGES_REPEATED * this.relays
    if (++term.repeats === pages * this.largestPage + 1) {
      this.#problem(`term ${epoch} repeats more than ${pages} pages of ${this.largestPage}`)
    }
  }

  #term(epoch: number): Term {
    let term = this.#terms.get(epoch)
    if (term === undefined) this.#terms.set(epoch, (term = { expected: new Map(), seen: new Set(), repeats: 0 }))
    return term
  }

  #problem(problem: string): void {
    if (this.problems.length < MOST_PROBLEMS) this.problems.push(problem)
  }
}
