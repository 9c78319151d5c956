/** Header names and values as text. Built without a prototype, so a hostile name cannot reach `Object.prototype`. */
export type Headers = Readonly<Record<string, string>>

/**
 * A message on the wire: one event on its way from the outbox to a handler. The payload is opaque bytes on every hop.
 */
export interface Message {
  /** The event's id, the same on every hop and every re-send; the inbox deduplicates by it. A uuid v7 when Millrace made it. */
  readonly id: string
  /** Where it goes: a Kafka topic, a NATS subject. */
  readonly topic: string
  /** What it is ordered by. Messages without a key have no order. */
  readonly key: string | null
  /** The event's type, such as `order.placed`. */
  readonly type: string
  /** The event itself, as bytes. `null` is a tombstone, which only a foreign producer sends. */
  readonly payload: Buffer | null
  /** The user's headers, with `traceparent` and `tracestate` where the event carries a trace. */
  readonly headers: Headers
  /** When the event was appended, milliseconds since the Unix epoch; 0 when unknown. */
  readonly timeMs: number
}

/** An outbox record on its way to the broker. */
export interface OutgoingMessage extends Message {
  readonly payload: Buffer
  /** The record's position in its outbox, decimal digits; rises along every key. */
  readonly seq: string
}
