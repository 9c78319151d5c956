/**
 * One `publish` by atomic batches (ADR-50): all messages of one stream in one batch, which the server stores as a
 * whole, in order, with one sync, or not at all.
 *
 * A page goes in rounds. A round takes the waiting messages in the page's order into one batch per stream, up to the
 * limits, and waits for all of them. A key is in one batch of a round only: its messages to other streams, or beyond a
 * full batch, wait for the next round. So nothing of a key is sent ahead of an unresolved one of it.
 *
 * One known id rejects the whole batch, and one message that is too large does; the answer does not say which. Such a
 * batch is not stored, and its messages are published one by one, with their ids, through the window, which learns
 * what is there. That is the way of a batch whose outcome was unknown: it is sent again as a batch, and if it had been
 * stored, every one of its messages is known.
 *
 * A server stages each batch in a folder of its own, so few messages are dearer as a batch than one by one.
 */
import type { OutgoingMessage } from '../../core/message.ts'
import type { Unresolved } from '../broker.ts'
import type { Verdict } from './error-class.ts'

/** What became of a batch: stored; not stored, and why is to be learned one by one; or a verdict on every message. */
export type BatchAnswer = 'stored' | 'singly' | ((message: OutgoingMessage) => Verdict)

/** What it needs of the publisher. */
export interface AtomicPublishOptions {
  readonly batch: readonly OutgoingMessage[]
  /** Why nothing more is to be sent, if so; asked before each round. */
  readonly halted: () => ((message: OutgoingMessage) => Verdict) | undefined
  readonly maxBytes: number
  readonly maxMessages: number
  /** The verdict on a message that cannot be in any batch. */
  readonly refuse: (message: OutgoingMessage) => Verdict | undefined
  readonly sendBatch: (messages: readonly OutgoingMessage[]) => Promise<BatchAnswer>
  readonly sendSingly: (messages: readonly OutgoingMessage[]) => Promise<readonly Unresolved[]>
  /** The stream of a topic, or the verdict when there is none to publish to. */
  readonly streamOf: (topic: string) => string | ((message: OutgoingMessage) => Verdict)
}

/** Fewer messages than this go one by one: a batch costs as much as about twenty syncs. */
const MIN_BATCH = 16

interface Draft {
  bytes: number
  readonly indexes: number[]
  readonly stream: string
}

/** Publishes the batch; resolves with what was not stored, by rising index. */
export async function publishAtomically(options: AtomicPublishOptions): Promise<readonly Unresolved[]> {
  const page = new Page(options)
  let waiting: readonly number[] = options.batch.map((_, index) => index)
  while (waiting.length > 0) {
    const round = page.plan(waiting)
    waiting = round.left
    const singles: number[] = []
    await Promise.all(
      round.drafts.map(async (draft) => {
        const { indexes } = draft
        const answer = indexes.length < MIN_BATCH ? 'singly' : await options.sendBatch(page.messagesOf(indexes))
        if (answer === 'singly') singles.push(...indexes)
        else if (answer !== 'stored') page.failAll(draft, answer)
      }),
    )
    if (singles.length === 0) continue
    // By index, so that keys whose messages stood in different batches of earlier rounds stay in the page's order.
    singles.sort((a, b) => a - b)
    for (const { index, ...verdict } of await options.sendSingly(page.messagesOf(singles))) {
      page.failSingly(singles[index] as number, verdict)
    }
  }
  return page.unresolved.sort((a, b) => a.index - b.index)
}

class Page {
  readonly unresolved: Unresolved[] = []
  /** Keys of which a message is unresolved. */
  readonly #cut = new Map<string, Verdict>()
  readonly #halted = new Map<string, Verdict>()
  readonly #options: AtomicPublishOptions

  constructor(options: AtomicPublishOptions) {
    this.#options = options
  }

  messagesOf(indexes: readonly number[]): OutgoingMessage[] {
    return indexes.map((index) => this.#options.batch[index] as OutgoingMessage)
  }

  /** Drafts one batch per stream; what does not fit, or follows what does not, is left for the next round. */
  plan(waiting: readonly number[]): { readonly drafts: Draft[]; readonly left: number[] } {
    const { batch, maxBytes, maxMessages, refuse, streamOf } = this.#options
    const haltedAll = this.#options.halted()
    const drafts = new Map<string, Draft>()
    const left: number[] = []
    const held = new Set<string>()
    const placed = new Map<string, Draft>()
    for (const index of waiting) {
      const message = batch[index] as OutgoingMessage
      const { key, payload, topic } = message
      if (key !== null && this.#cut.has(key)) {
        this.fail(index, { ...(this.#cut.get(key) as Verdict), outcome: 'unsent' })
        continue
      }
      if (key !== null && held.has(key)) {
        left.push(index)
        continue
      }
      const stream = streamOf(topic)
      const verdict =
        haltedAll?.(message) ??
        refuse(message) ??
        (typeof stream === 'function' ? stream(message) : asUnsent(this.#halted.get(stream)))
      if (verdict !== undefined || typeof stream === 'function') {
        this.fail(index, verdict as Verdict)
        continue
      }
      let draft = drafts.get(stream)
      if (draft === undefined) drafts.set(stream, (draft = { bytes: 0, indexes: [], stream }))
      const full = draft.indexes.length >= maxMessages || (draft.bytes > 0 && draft.bytes + payload.length > maxBytes)
      const elsewhere = key !== null && (placed.get(key) ?? draft) !== draft
      if (full || elsewhere) {
        left.push(index)
        if (key !== null) held.add(key)
        continue
      }
      draft.indexes.push(index)
      draft.bytes += payload.length
      if (key !== null) placed.set(key, draft)
    }
    return { drafts: [...drafts.values()], left }
  }

  fail(index: number, verdict: Verdict): void {
    const { key } = this.#options.batch[index] as OutgoingMessage
    this.unresolved.push({ index, outcome: verdict.outcome, class: verdict.class, error: verdict.error })
    if (key !== null && !this.#cut.has(key)) this.#cut.set(key, { ...verdict, outcome: 'failed' })
  }

  failSingly(index: number, verdict: Verdict): void {
    this.fail(index, verdict)
    const { topic } = this.#options.batch[index] as OutgoingMessage
    const stream = this.#options.streamOf(topic)
    if (verdict.class !== 'poison' && typeof stream === 'string') this.#halted.set(stream, verdict)
  }

  failAll({ indexes, stream }: Draft, verdictOf: (message: OutgoingMessage) => Verdict): void {
    for (const index of indexes) {
      const verdict = verdictOf(this.#options.batch[index] as OutgoingMessage)
      this.fail(index, verdict)
      if (verdict.class !== 'poison' && !this.#halted.has(stream)) this.#halted.set(stream, verdict)
    }
  }
}

/** What is not sent because its stream is unwell is not there. */
function asUnsent(verdict: Verdict | undefined): Verdict | undefined {
  return verdict && { ...verdict, outcome: 'failed' }
}
