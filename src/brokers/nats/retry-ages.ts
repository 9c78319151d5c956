import type { OutgoingMessage } from '../../core/message.ts'
import type { LateRetry, Unresolved } from '../broker.ts'

/** How many messages are remembered; beyond it the oldest are forgotten, and of them there is no alarm. */
const MAX = 100_000
const MAX_IDS = 100

/** When each message whose outcome is unknown was first sent, for the alarm that it is sent again too late. */
export class RetryAges {
  /** By id, in the order of their first attempts. */
  readonly #firstSent = new Map<string, number>()
  readonly #told = new Set<string>()

  /** The messages that are about to be sent past the window, by topic; each is named once. */
  late(batch: readonly OutgoingMessage[], now: number, windowOf: (topic: string) => number): LateRetry[] {
    if (this.#firstSent.size === 0) return []
    const byTopic = new Map<string, { count: number; ids: string[]; oldestMs: number; windowMs: number }>()
    for (const { id, topic } of batch) {
      const sent = this.#firstSent.get(id)
      if (sent === undefined || this.#told.has(id)) continue
      const windowMs = windowOf(topic)
      if (now - sent <= windowMs) continue
      this.#told.add(id)
      let late = byTopic.get(topic)
      if (late === undefined) byTopic.set(topic, (late = { count: 0, ids: [], oldestMs: 0, windowMs }))
      late.count += 1
      if (late.ids.length < MAX_IDS) late.ids.push(id)
      late.oldestMs = Math.max(late.oldestMs, now - sent)
    }
    return Array.from(byTopic, ([topic, late]) => ({ ...late, topic }))
  }

  /** What became of a batch that was sent at `sentAt`. */
  settle(batch: readonly OutgoingMessage[], unresolved: readonly Unresolved[], sentAt: number): void {
    if (unresolved.length === 0 && this.#firstSent.size === 0) return
    let at = 0
    for (let index = 0; index < batch.length; index++) {
      const { id } = batch[index] as OutgoingMessage
      if (unresolved[at]?.index !== index) {
        this.#firstSent.delete(id)
        this.#told.delete(id)
      } else if (unresolved[at++]?.outcome === 'unknown' && !this.#firstSent.has(id)) {
        this.#firstSent.set(id, sentAt)
      }
    }
    for (const id of this.#firstSent.keys()) {
      if (this.#firstSent.size <= MAX) break
      this.#firstSent.delete(id)
      this.#told.delete(id)
    }
  }
}
