/**
 * A broker that stores nothing and remembers what it was given, for tests of the relay alone. What a real broker does
 * with it is the conformance suite's matter.
 */
import type { Broker, Publisher, Unresolved } from '../../src/brokers/broker.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'

export interface RecordingBroker extends Broker {
  /** What was stored, in order. */
  readonly stored: OutgoingMessage[]
  /** Decides over each batch; by default everything is stored. */
  answer: (batch: readonly OutgoingMessage[]) => readonly Unresolved[] | Promise<readonly Unresolved[]>
  /** Keep only ids and keys: for many or large messages. */
  onStored: ((message: OutgoingMessage) => void) | undefined
  /** Resolves when so many different events are stored. */
  until(count: number): Promise<void>
}

export function recordingBroker(): RecordingBroker {
  const stored: OutgoingMessage[] = []
  const waiting = new Set<{ count: number; resolve: () => void }>()
  const ids = new Set<string>()
  const notSupported = (): never => {
    throw new Error('the recording broker only publishes')
  }
  const broker: RecordingBroker = {
    system: 'recording',
    capabilities: { awaitedRevoke: false, dedupeWindowMs: 0, partitions: false, maxMessageBytes: undefined },
    stored,
    answer: () => [],
    onStored: undefined,
    until: (count) =>
      new Promise((resolve) => {
        if (ids.size >= count) resolve()
        else waiting.add({ count, resolve })
      }),
    publisher: (): Publisher => ({
      start: async () => {},
      close: async () => {},
      async publish(batch) {
        const unresolved = await broker.answer(batch)
        const missing = new Set(unresolved.filter((one) => one.outcome !== 'unknown').map((one) => one.index))
        for (const [index, message] of batch.entries()) {
          if (missing.has(index)) continue
          ids.add(message.id)
          if (broker.onStored === undefined) stored.push(message)
          else broker.onStored(message)
        }
        for (const one of waiting) {
          if (ids.size < one.count) continue
          waiting.delete(one)
          one.resolve()
        }
        return unresolved
      },
    }),
    subscription: notSupported,
    admin: { createTopic: notSupported, deleteTopic: notSupported },
    close: async () => {},
  }
  return broker
}
