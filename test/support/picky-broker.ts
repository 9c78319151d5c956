/** A recording broker that refuses what a test tells it to, as the port has it: the event, and the later ones of its key. */
import type { Unresolved } from '../../src/brokers/broker.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { type RecordingBroker, recordingBroker } from './recording-broker.ts'

export interface PickyBroker extends RecordingBroker {
  /** Says whether it refuses the event for good. By default it refuses none. */
  refuses: (message: OutgoingMessage) => boolean
}

export function pickyBroker(): PickyBroker {
  const broker: PickyBroker = Object.assign(recordingBroker(), { refuses: () => false })
  broker.answer = (batch) => refusedOf(batch, (message) => broker.refuses(message))
  return broker
}

/** What a broker answers that refuses these events. */
export function refusedOf(
  batch: readonly OutgoingMessage[],
  refuses: (message: OutgoingMessage) => boolean,
): readonly Unresolved[] {
  const error = new Error('the event is refused')
  const held = new Set<string>()
  return batch.flatMap((message, index): Unresolved[] => {
    if (message.key !== null && held.has(message.key)) return [{ index, outcome: 'unsent', class: 'poison', error }]
    if (!refuses(message)) return []
    if (message.key !== null) held.add(message.key)
    return [{ index, outcome: 'failed', class: 'poison', error }]
  })
}
