/**
 * What the cluster says of the topics: the largest record batch each takes (the topic's `max.message.bytes`, which is the
 * broker's `message.max.bytes` unless the topic has its own), and which of them do not exist.
 *
 * A topic is asked for before its first message is sent, and again in the background every few minutes, for an operator
 * may raise the limit. A client that may not ask (DESCRIBE_CONFIGS on the topic) goes by what it was told, or by Kafka's
 * default, and learns from refusals. Nothing here keeps a page from being sent: an answer that does not come is not
 * waited for.
 */
import { systemClock, withDeadline } from '../../core/clock.ts'

/** What the cluster says of one topic: its limit in bytes, `missing`, or `hidden` when it may not be asked. */
export type TopicAnswer = number | 'hidden' | 'missing'

/** Asks the cluster. Topics without an answer are left out; it rejects when nobody answers. */
export type AskTopics = (topics: readonly string[]) => Promise<ReadonlyMap<string, TopicAnswer>>

interface Known {
  readonly askedAt: number
  /** Undefined while only refusals told us something, or nothing did. */
  readonly batchBytes: number | undefined
  readonly askAgainAt: number
}

/** Kafka's own default of `message.max.bytes`. */
export const DEFAULT_BATCH_BYTES = 1_048_588

const ASK_MS = 3_000
const FRESH_MS = 300_000
const RETRY_MS = 10_000
const SURE_MS = 1_000
const MAX_TOPICS = 10_000

export class TopicLimits {
  readonly #ask: AskTopics
  readonly #asking = new Set<string>()
  readonly #ceiling: number
  readonly #known = new Map<string, Known>()
  readonly #unknown: number

  /** @param ceiling no batch is larger, whatever the cluster allows; undefined for none */
  constructor(ask: AskTopics, ceiling: number | undefined) {
    this.#ask = ask
    this.#ceiling = ceiling ?? Infinity
    this.#unknown = Math.min(this.#ceiling, ceiling ?? DEFAULT_BATCH_BYTES)
  }

  /** The largest record batch the topic takes, as far as it is known. */
  of(topic: string): number {
    return Math.min(this.#known.get(topic)?.batchBytes ?? this.#unknown, this.#ceiling)
  }

  /** Whether `learn` has something to wait for. */
  isNew(topic: string): boolean {
    return !this.#known.has(topic)
  }

  /** Asks for topics that are new, waiting for the answer if it comes soon. Resolves with those that do not exist. */
  async learn(topics: readonly string[], withinMs: number): Promise<ReadonlySet<string>> {
    if (topics.length === 0) return NONE
    const waitMs = Math.min(withinMs, ASK_MS)
    try {
      return this.#note(topics, await withDeadline(systemClock, this.#ask(topics), waitMs, () => new Error('late')))
    } catch {
      this.#note(topics, new Map())
      return NONE
    }
  }

  /**
   * Whether a batch of this size is too large for the topic. The cluster is asked again before that is said, unless it was
   * asked within the last second: the limit may have been raised for this very message.
   */
  async refuses(topic: string, bytes: number, withinMs: number): Promise<boolean> {
    if (bytes <= this.of(topic)) return false
    const askedAt = this.#known.get(topic)?.askedAt ?? -Infinity
    if (bytes <= this.#ceiling && systemClock.monotonic() - askedAt > SURE_MS) await this.learn([topic], withinMs)
    return bytes > this.of(topic)
  }

  /** Asks again for the topic, in the background, when what is known of it is old. */
  refresh(topic: string): void {
    const known = this.#known.get(topic)
    if (known === undefined || this.#asking.has(topic) || systemClock.monotonic() < known.askAgainAt) return
    this.#asking.add(topic)
    void this.learn([topic], ASK_MS).finally(() => this.#asking.delete(topic))
  }

  /** The broker has refused a batch of this size as too large: the next is half of it at most. */
  refused(topic: string, bytes: number): void {
    const half = Math.min(this.of(topic), bytes >> 1)
    // What the cluster said of the topic is no longer so.
    this.#set(topic, { askAgainAt: 0, askedAt: -Infinity, batchBytes: half })
  }

  /** The topic may not be there any more. */
  forget(topic: string): void {
    this.#known.delete(topic)
  }

  #note(topics: readonly string[], answers: ReadonlyMap<string, TopicAnswer>): ReadonlySet<string> {
    const now = systemClock.monotonic()
    let missing: Set<string> | undefined
    for (const topic of topics) {
      const answer = answers.get(topic)
      if (answer === 'missing') {
        this.#known.delete(topic)
        ;(missing ??= new Set()).add(topic)
      } else if (typeof answer === 'number') {
        this.#set(topic, { askAgainAt: now + FRESH_MS, askedAt: now, batchBytes: answer })
      } else {
        const batchBytes = this.#known.get(topic)?.batchBytes
        this.#set(topic, { askAgainAt: now + (answer === 'hidden' ? FRESH_MS : RETRY_MS), askedAt: now, batchBytes })
      }
    }
    return missing ?? NONE
  }

  #set(topic: string, known: Known): void {
    if (this.#known.size >= MAX_TOPICS && !this.#known.has(topic)) {
      const oldest = this.#known.keys().next().value
      if (oldest !== undefined) this.#known.delete(oldest)
    }
    this.#known.set(topic, known)
  }
}

const NONE: ReadonlySet<string> = new Set()
