import type { JetStreamManager } from '@nats-io/jetstream'
import type { Clock } from '../../core/clock.ts'
import { codeOf } from './find-stream.ts'

/** What a publisher must know of a stream. */
export interface StreamFacts {
  readonly allowAtomic: boolean
  readonly duplicateWindowMs: number
  readonly name: string
  /** Acknowledged before it is written, whatever `sync_interval` says. */
  readonly persistAsync: boolean
  readonly replicas: number
  readonly storage: 'file' | 'memory'
}

/**
 * What the server says of a topic's stream: the facts, that there is none, or nothing (`unknown`: it did not answer, or
 * the account may not ask).
 */
export type Lookup = StreamFacts | 'missing' | 'unknown'

interface Entry {
  readonly at: number
  readonly found: Lookup
  /** When the server first said that there is none; it has said nothing else since. */
  readonly missingSince: number | undefined
}

const REFRESH_MS = 30_000
/** A lookup that found nothing is repeated sooner. */
const REPEAT_MS = 500
const MAX_TOPICS = 10_000
const CONCURRENCY = 32

/**
 * Which stream captures a topic, and its limits: asked of the server once per topic, kept, and asked again in the
 * background when it is used after half a minute. What is known stays known while the server does not answer.
 */
export class StreamDirectory {
  readonly #asking = new Map<string, Promise<Lookup>>()
  readonly #clock: Clock
  readonly #entries = new Map<string, Entry>()
  readonly #manager: JetStreamManager

  constructor(manager: JetStreamManager, clock: Clock) {
    this.#manager = manager
    this.#clock = clock
  }

  /** What is known now. What is not, or no longer fresh, is asked in the background. */
  peek(topic: string): Lookup {
    const entry = this.#entries.get(topic)
    if (entry === undefined || !this.#isFresh(entry)) {
      if (this.#asking.size < CONCURRENCY) void this.#ask(topic)
    }
    return entry?.found ?? 'unknown'
  }

  /** Resolves with what is known, or else with what the server says now. Never rejects. */
  async of(topic: string): Promise<Lookup> {
    const entry = this.#entries.get(topic)
    if (entry !== undefined && typeof entry.found === 'object') return this.peek(topic)
    return this.#ask(topic)
  }

  /** For how long the server, asked again and again, has known no stream for the topic, milliseconds; 0 when it knows one. */
  missingMs(topic: string): number {
    const entry = this.#entries.get(topic)
    this.peek(topic)
    return entry?.missingSince === undefined ? 0 : entry.at - entry.missingSince
  }

  /** What is known of the topic may be wrong. */
  forget(topic: string): void {
    this.#entries.delete(topic)
  }

  #isFresh({ at, found }: Entry): boolean {
    return this.#clock.monotonic() - at < (typeof found === 'object' ? REFRESH_MS : REPEAT_MS)
  }

  #ask(topic: string): Promise<Lookup> {
    const asking = this.#asking.get(topic)
    if (asking !== undefined) return asking
    const promise = this.#look(topic).then((found) => {
      this.#asking.delete(topic)
      return this.#note(topic, found)
    })
    this.#asking.set(topic, promise)
    return promise
  }

  #note(topic: string, found: Lookup): Lookup {
    const before = this.#entries.get(topic)
    const at = this.#clock.monotonic()
    if (before === undefined && this.#entries.size >= MAX_TOPICS) this.#entries.clear()
    if (found === 'unknown' && before !== undefined) {
      this.#entries.set(topic, { ...before, at: before.missingSince === undefined ? at : before.at })
      return before.found
    }
    const missingSince = found === 'missing' ? (before?.missingSince ?? at) : undefined
    this.#entries.set(topic, { at, found, missingSince })
    return found
  }

  async #look(topic: string): Promise<Lookup> {
    try {
      const name = await this.#manager.streams.find(topic)
      const { config } = await this.#manager.streams.info(name)
      return {
        allowAtomic: config.allow_atomic === true,
        duplicateWindowMs: Number(config.duplicate_window ?? 0) / 1e6,
        name,
        persistAsync: (config as { readonly persist_mode?: string }).persist_mode === 'async',
        replicas: config.num_replicas,
        storage: config.storage === 'memory' ? 'memory' : 'file',
      }
    } catch (error) {
      return codeOf(error) === STREAM_NOT_FOUND ? 'missing' : 'unknown'
    }
  }
}

const STREAM_NOT_FOUND = 10059
