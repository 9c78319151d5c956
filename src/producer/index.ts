/**
 * The producer: `append` writes events into the outbox, in one statement of the caller's own transaction, so that an
 * event is there if and only if the data is. What is wrong with an event is found before anything is written.
 */
export { createOutbox } from './outbox.ts'
export type { AppendResult, Outbox, OutboxOptions } from './outbox.ts'
export type { AnyEvents, EventCatalog, InputsOf, OutboxEvent, StandardSchema } from './event.ts'
