import { MillraceError } from '../core/errors.ts'
import type { Headers, Message } from '../core/message.ts'
import type { IncomingMessage } from '../brokers/broker.ts'

/** A message as a handler gets it. */
export interface HandledMessage extends Message {
  /** The slice of the topic it came on; 0 on a broker that has none. */
  readonly partition: number
  /** True when the broker says it delivered this message before. The inbox has dealt with it either way. */
  readonly redelivered: boolean
  /**
   * The payload parsed as JSON, anew with each call. The type is the caller's claim, nothing checks it.
   *
   * @throws MESSAGE_NOT_JSON
   */
  json<T = unknown>(): T
}

/** A view of what the adapter handed over; it copies nothing. */
export class MessageView implements HandledMessage {
  readonly #message: IncomingMessage

  constructor(message: IncomingMessage) {
    this.#message = message
  }

  get id(): string {
    return this.#message.id
  }

  get topic(): string {
    return this.#message.topic
  }

  get partition(): number {
    return this.#message.partition
  }

  get key(): string | null {
    return this.#message.key
  }

  get type(): string {
    return this.#message.type
  }

  get payload(): Buffer | null {
    return this.#message.payload
  }

  get headers(): Headers {
    return this.#message.headers
  }

  get timeMs(): number {
    return this.#message.timeMs
  }

  get redelivered(): boolean {
    return this.#message.redelivered
  }

  json<T = unknown>(): T {
    const { id, payload, type } = this.#message
    if (payload !== null) {
      try {
        return JSON.parse(payload.toString('utf8')) as T
      } catch {
        // The parser's own error quotes the payload.
      }
    }
    throw new MillraceError(
      'MESSAGE_NOT_JSON',
      `the payload of message ${id} (${type}) is ${payload === null ? 'absent' : 'not JSON'}; ` +
        'read message.payload instead of message.json() for messages of this type',
      { details: { bytes: payload?.length ?? 0, id, topic: this.#message.topic, type } },
    )
  }
}
