/**
 * The broker of the capture's model test: the recording broker with mishaps. What it answers is what the port allows
 * (src/brokers/broker.ts): a message fails, or its outcome is unknown and it is stored or not, and then nothing later of
 * its key is stored; or one broker-side batch is unknown as a whole, with several messages of a key.
 */
import type { Broker, Outcome, Unresolved } from '../../src/brokers/broker.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import type { History } from './model-history.ts'
import { type Random, passes } from './model-random.ts'

/** What may go wrong with a broker. */
export interface ModelBrokerOptions {
  /** The number of the term that the relay of this broker publishes in; it rises. */
  readonly epoch: () => number
  readonly history: History
  /** False when nothing may go wrong any more. */
  readonly moody: () => boolean
  /** Called now and then before a batch is stored. */
  readonly inspect: (batch: readonly OutgoingMessage[]) => Promise<void>
  readonly random: Random
}

interface Fate {
  readonly outcome: Outcome
  readonly stored: boolean
}

export function modelBroker({ epoch, history, moody, inspect, random }: ModelBrokerOptions): Broker {
  const inner = recordingBroker()
  const { chance, below } = random
  return {
    ...inner,
    publisher(options) {
      const publisher = inner.publisher(options)
      return {
        start: () => publisher.start(),
        close: () => publisher.close(),
        async publish(batch) {
          const term = epoch()
          history.begin(term, batch)
          if (chance(0.2)) await inspect(batch)
          if (moody() && chance(0.3)) await passes(below(chance(0.1) ? 60 : 6))
          const fates = moody() && chance(0.08) ? mishap(batch, random) : new Map<number, Fate>()
          inner.onStored = (message) => history.store(term, message)
          // In two parts, so that two publishers mix.
          const half = chance(0.5) ? below(batch.length) : 0
          for (const [from, to] of [
            [0, half],
            [half, batch.length],
          ] as const) {
            inner.answer = (part) => unresolvedOf(part, from, (index) => !fates.get(index)?.stored && fates.has(index))
            if (to > from) await publisher.publish(batch.slice(from, to))
            if (from < half && moody()) await passes(below(3))
          }
          const unresolved = [...fates].map(([index, fate]) => unresolvedAt(index, fate.outcome))
          history.end(term, batch, unresolved)
          return unresolved
        },
      }
    },
  }
}

/** What of a part is not stored, as the recording broker takes it. */
function unresolvedOf(part: readonly unknown[], from: number, isMissing: (index: number) => boolean): Unresolved[] {
  return part.flatMap((_, i) => (isMissing(from + i) ? [unresolvedAt(i, 'failed')] : []))
}

function unresolvedAt(index: number, outcome: Outcome): Unresolved {
  return { index, outcome, class: 'retry', error: new Error('a mishap of the model') }
}

/** What becomes of the messages that are not acknowledged, by rising index. */
function mishap(batch: readonly OutgoingMessage[], { chance, below }: Random): Map<number, Fate> {
  const fates = new Map<number, Fate>()
  const held = new Set<string>()
  // The messages of some keys travel in one broker-side batch, whose answer is lost.
  const lost = chance(0.3) ? { stored: chance(0.5), remainder: below(3) } : undefined
  const often = chance(0.3) ? 0.5 : 0.02
  for (const [index, { key }] of batch.entries()) {
    const lane = String(key)
    if (held.has(lane)) {
      fates.set(index, { outcome: 'unsent', stored: false })
    } else if (lost !== undefined && lane.length % 3 === lost.remainder) {
      fates.set(index, { outcome: 'unknown', stored: lost.stored })
    } else if (chance(often)) {
      held.add(lane)
      const outcome = chance(0.5) ? 'failed' : 'unknown'
      fates.set(index, { outcome, stored: outcome === 'unknown' && chance(0.5) })
    }
  }
  return fates
}
