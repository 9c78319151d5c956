import type { Broker, ErrorClass, Publisher, PublisherOptions, Unresolved } from '../../brokers/broker.ts'
import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import { OptionCheck } from '../../core/options.ts'
import { seededRandom } from './seeded-random.ts'

/**
 * What happens to one publish.
 *
 * - `pass`: nothing unusual.
 * - `refuse`: nothing is sent; every message failed.
 * - `refuse-one`: one message is not sent, and none of its key behind it; the others are.
 * - `lose-answer`: everything is sent; every message's outcome is unknown.
 */
export type Mishap = 'pass' | 'refuse' | 'refuse-one' | 'lose-answer'

/** How {@link flaky} behaves. */
export interface FlakyOptions {
  /** The class of what is refused. Default: 'retry'. */
  readonly class?: ErrorClass
  /** The probability that an answer is lost, 0 to 1. Default: 0. */
  readonly loseAnswer?: number
  /** Messages that can never be sent: each fails as poison, every time. Default: none. */
  readonly poison?: (message: OutgoingMessage) => boolean
  /** The probability that a publish is refused, 0 to 1. Default: 0. */
  readonly refuse?: number
  /** The probability that one message of a publish is refused, 0 to 1. Default: 0. */
  readonly refuseOne?: number
  /** What happens to the first publishes, one by one; after it the probabilities count. Default: empty. */
  readonly script?: readonly Mishap[]
  /** The same seed gives the same mishaps for the same publishes. Default: 1. */
  readonly seed?: number
}

/** A broker whose publishes sometimes fail. */
export interface FlakyBroker extends Broker {
  /** How often each happened, over all publishers. */
  readonly mishaps: Readonly<Record<Mishap, number>>
}

/**
 * Wraps a broker so that its publishes fail, or are stored with the answer lost, by a script or by chance: what a relay
 * must survive without losing an event or turning a key around. What is sent goes to the broker in the order given.
 */
export function flaky(broker: Broker, options: FlakyOptions = {}): FlakyBroker {
  const known = ['class', 'loseAnswer', 'poison', 'refuse', 'refuseOne', 'script', 'seed']
  const check = new OptionCheck('flaky', options, known)
  for (const name of ['loseAnswer', 'refuse', 'refuseOne']) {
    check.satisfies(name, (value) => typeof value === 'number' && value >= 0 && value <= 1, 'a number from 0 to 1')
  }
  check.integer('seed', -(2 ** 31), 2 ** 31 - 1)
  check.done()
  const plan = new Plan(options)
  return {
    system: broker.system,
    capabilities: broker.capabilities,
    admin: broker.admin,
    mishaps: plan.counts,
    publisher: (publisherOptions?: PublisherOptions) =>
      new FlakyPublisher(broker.publisher(publisherOptions), plan, options),
    subscription: (subscriptionOptions) => broker.subscription(subscriptionOptions),
    close: () => broker.close(),
  }
}

/** Which mishap is next. */
class Plan {
  readonly counts: Record<Mishap, number> = { pass: 0, refuse: 0, 'refuse-one': 0, 'lose-answer': 0 }
  readonly random: () => number
  readonly #script: Mishap[]
  readonly #options: FlakyOptions

  constructor(options: FlakyOptions) {
    this.#options = options
    this.#script = [...(options.script ?? [])]
    this.random = seededRandom(options.seed ?? 1)
  }

  next(): Mishap {
    const mishap = this.#script.shift() ?? this.#byChance()
    this.counts[mishap]++
    return mishap
  }

  #byChance(): Mishap {
    const { refuse = 0, refuseOne = 0, loseAnswer = 0 } = this.#options
    const drawn = this.random()
    if (drawn < refuse) return 'refuse'
    if (drawn < refuse + refuseOne) return 'refuse-one'
    return drawn < refuse + refuseOne + loseAnswer ? 'lose-answer' : 'pass'
  }
}

class FlakyPublisher implements Publisher {
  readonly #inner: Publisher
  readonly #plan: Plan
  readonly #class: ErrorClass
  readonly #poison: (message: OutgoingMessage) => boolean

  constructor(inner: Publisher, plan: Plan, options: FlakyOptions) {
    this.#inner = inner
    this.#plan = plan
    this.#class = options.class ?? 'retry'
    this.#poison = options.poison ?? (() => false)
  }

  start(): Promise<void> {
    return this.#inner.start()
  }

  close(): Promise<void> {
    return this.#inner.close()
  }

  async publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]> {
    const mishap = batch.length === 0 ? 'pass' : this.#plan.next()
    if (mishap === 'refuse') {
      // The inner publisher still says what it says of a publisher that is not started, or of an aborted signal.
      await this.#inner.publish([], signal)
      return batch.map((_, index) => ({ index, outcome: 'failed', class: this.#class, error: refused() }))
    }
    const chosen = mishap === 'refuse-one' ? Math.floor(this.#plan.random() * batch.length) : -1
    const { sent, unresolved } = this.#split(batch, chosen)
    const answers = await this.#inner.publish(
      sent.map((index) => batch[index] as OutgoingMessage),
      signal,
    )
    if (mishap === 'lose-answer') {
      const error = new MillraceError('CONNECTION_LOST', 'the answer was lost, as planned')
      for (const index of sent) unresolved.push({ index, outcome: 'unknown', class: 'retry', error })
    } else {
      for (const answer of answers) unresolved.push({ ...answer, index: sent[answer.index] as number })
    }
    return unresolved.sort((a, b) => a.index - b.index)
  }

  /** Which messages are sent, and what becomes of the others. */
  #split(batch: readonly OutgoingMessage[], chosen: number): { sent: number[]; unresolved: Unresolved[] } {
    const sent: number[] = []
    const unresolved: Unresolved[] = []
    const held = new Map<string, Unresolved>()
    batch.forEach((message, index) => {
      const holder = message.key === null ? undefined : held.get(message.key)
      const poison = this.#poison(message)
      if (holder !== undefined) {
        unresolved.push({ ...holder, index, outcome: 'unsent' })
      } else if (poison || index === chosen) {
        const entry: Unresolved = { index, outcome: 'failed', class: poison ? 'poison' : this.#class, error: refused() }
        unresolved.push(entry)
        if (message.key !== null) held.set(message.key, entry)
      } else {
        sent.push(index)
      }
    })
    return { sent, unresolved }
  }
}

function refused(): MillraceError {
  return new MillraceError('PUBLISH_REFUSED', 'refused, as planned')
}
