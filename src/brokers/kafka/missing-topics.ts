import { systemClock } from '../../core/clock.ts'
import type { ErrorClass } from '../broker.ts'
import type { ProduceRecord } from './produce-record.ts'
import type { Judgement } from './protocol-verdict.ts'

/** Since when topics are missing, for topics are often made in the minute in which their first message is sent. */
export class MissingTopics {
  readonly #since = new Map<string, number>()
  readonly #patienceMs: number

  constructor(patienceMs: number) {
    this.#patienceMs = patienceMs
  }

  /** True when the topic was missing before. */
  knows(topic: string): boolean {
    return this.#since.has(topic)
  }

  /** The error's class; a topic that has been missing for long is poison. */
  classOf(topic: string, verdict: Judgement): ErrorClass {
    if (!verdict.unknownTopic) return verdict.class
    const now = systemClock.monotonic()
    const since = this.#since.get(topic)
    if (since === undefined) this.#since.set(topic, now)
    return now - (since ?? now) >= this.#patienceMs ? 'poison' : 'retry'
  }

  /** These were stored, so their topics are there. */
  stored(records: readonly ProduceRecord[]): void {
    if (this.#since.size === 0) return
    for (const record of records) this.#since.delete(record.message.topic)
  }
}
