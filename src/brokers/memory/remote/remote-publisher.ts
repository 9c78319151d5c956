import type { Clock } from '../../../core/clock.ts'
import { MillraceError } from '../../../core/errors.ts'
import type { OutgoingMessage } from '../../../core/message.ts'
import type { ErrorClass, Outcome, Publisher, Unresolved } from '../../broker.ts'
import { closedError, notStartedError } from '../local-client.ts'
import { sizeOf } from '../memory-broker.ts'
import type { Address } from './address.ts'
import { Connection, readError } from './connection.ts'
import { integerOf, listOf, protocolError } from './frame.ts'
import { publishFrame } from './message-frames.ts'

/**
 * Sends a batch as frames of bounded size, one at a time: the next is sent when the answer to the one before is there,
 * so that a key never has a message behind one whose outcome is open. A lost connection, or no answer in time, leaves
 * the frame in flight `unknown` and the rest `failed`; the next publish connects anew.
 */
export class RemotePublisher implements Publisher {
  readonly #address: Address
  readonly #clock: Clock
  readonly #timeoutMs: number
  readonly #maxMessageBytes: number
  #connection: Connection | undefined
  #state: 'new' | 'started' | 'closed' = 'new'
  #inFlight: Promise<unknown> = Promise.resolve()

  constructor(address: Address, clock: Clock, timeoutMs: number, maxMessageBytes: number) {
    this.#address = address
    this.#clock = clock
    this.#timeoutMs = timeoutMs
    this.#maxMessageBytes = maxMessageBytes
  }

  async start(): Promise<void> {
    if (this.#state === 'closed') throw closedError()
    await this.#connect()
    this.#state = 'started'
  }

  publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]> {
    const published = this.#publish(batch, signal)
    this.#inFlight = published
    return published
  }

  async close(): Promise<void> {
    this.#state = 'closed'
    await this.#inFlight.catch(() => {})
    this.#connection?.end()
  }

  async #publish(batch: readonly OutgoingMessage[], signal: AbortSignal | undefined): Promise<readonly Unresolved[]> {
    if (this.#state !== 'started') throw this.#state === 'new' ? notStartedError() : closedError()
    signal?.throwIfAborted()
    const result = new BatchResult(batch)
    let rest = result.admit(this.#maxMessageBytes)
    let deadlineMs = this.#clock.monotonic() + this.#timeoutMs
    const giveUp = (): void => this.#connection?.end()
    signal?.addEventListener('abort', giveUp)
    try {
      while (rest.length > 0) {
        let sent: readonly number[] = []
        try {
          const connection = await this.#connect(deadlineMs)
          signal?.throwIfAborted()
          const requestId = connection.nextRequestId()
          const { frame, next } = publishFrame(
            requestId,
            rest.map((index) => batch[index] as OutgoingMessage),
            0,
          )
          sent = rest.slice(0, next)
          const answer = await connection.ask(requestId, frame, Math.max(1, deadlineMs - this.#clock.monotonic()))
          result.answered(sent, answer['unresolved'])
          rest = result.withoutHeld(rest.slice(next))
          deadlineMs = this.#clock.monotonic() + this.#timeoutMs
        } catch (error) {
          this.#connection?.end()
          // The whole frame is of one outcome; whatever came after it was never sent.
          for (const index of sent) result.add(index, 'unknown', 'retry', error as Error)
          for (const index of result.withoutHeld(rest.slice(sent.length))) {
            result.add(index, 'failed', 'retry', error as Error)
          }
          rest = []
        }
      }
    } finally {
      signal?.removeEventListener('abort', giveUp)
    }
    return result.unresolved()
  }

  async #connect(deadlineMs = this.#clock.monotonic() + this.#timeoutMs): Promise<Connection> {
    if (this.#connection?.open === true) return this.#connection
    const left = Math.max(1, deadlineMs - this.#clock.monotonic())
    return (this.#connection = await Connection.open(this.#address, this.#clock, left))
  }
}

/** What became of a batch so far, and which keys are held by a message that was not stored. */
class BatchResult {
  readonly #batch: readonly OutgoingMessage[]
  readonly #unresolved: Unresolved[] = []
  readonly #held = new Map<string, Unresolved>()

  constructor(batch: readonly OutgoingMessage[]) {
    this.#batch = batch
  }

  /** The indexes that may be sent: not too large, and not behind a message of their key that is. */
  admit(maxMessageBytes: number): number[] {
    const admitted: number[] = []
    this.#batch.forEach((message, index) => {
      const sizeBytes = sizeOf(message)
      if (sizeBytes <= maxMessageBytes) return void admitted.push(...this.withoutHeld([index]))
      const text = `a message of ${sizeBytes} bytes is larger than the ${maxMessageBytes} the broker takes`
      const details = { id: message.id, topic: message.topic, sizeBytes }
      if (this.withoutHeld([index]).length > 0) {
        this.add(index, 'failed', 'poison', new MillraceError('MESSAGE_REJECTED', text, { details }))
      }
    })
    return admitted
  }

  /** Takes the broker's answer for the messages that were sent. */
  answered(sent: readonly number[], answer: unknown): void {
    for (const entry of listOf(answer, readUnresolved)) {
      const index = sent[entry.index]
      if (index === undefined) throw protocolError('an answer for a message that was not sent')
      this.add(index, entry.outcome, entry.class, entry.error)
    }
  }

  add(index: number, outcome: Outcome, errorClass: ErrorClass, error: Error): void {
    const entry: Unresolved = { index, outcome, class: errorClass, error }
    this.#unresolved.push(entry)
    const key = this.#batch[index]?.key ?? null
    if (key !== null && !this.#held.has(key)) this.#held.set(key, entry)
  }

  /** Those of the indexes whose key is free; the others are noted as unsent. */
  withoutHeld(indexes: readonly number[]): number[] {
    if (this.#held.size === 0) return [...indexes]
    return indexes.filter((index) => {
      const key = this.#batch[index]?.key ?? null
      const holder = key === null ? undefined : this.#held.get(key)
      if (holder !== undefined) this.#unresolved.push({ ...holder, index, outcome: 'unsent' })
      return holder === undefined
    })
  }

  unresolved(): Unresolved[] {
    return this.#unresolved.sort((a, b) => a.index - b.index)
  }
}

function readUnresolved(entry: Readonly<Record<string, unknown>>): Unresolved {
  const { outcome, class: errorClass } = entry
  if (outcome !== 'failed' && outcome !== 'unknown' && outcome !== 'unsent') throw protocolError('an unknown outcome')
  if (errorClass !== 'retry' && errorClass !== 'throttle' && errorClass !== 'poison' && errorClass !== 'fatal') {
    throw protocolError('an unknown error class')
  }
  return { index: integerOf(entry['index']), outcome, class: errorClass, error: readError(entry['error']) }
}
