import type { Unresolved } from '../brokers/broker.ts'
import { MillraceError } from '../core/errors.ts'
import type { OutgoingMessage } from '../core/message.ts'

/** The broker will take nothing of this topic until somebody changes something. */
export function fatalError(fatal: Unresolved, batch: readonly OutgoingMessage[]): MillraceError {
  const message = batch[fatal.index]
  return new MillraceError(
    'PUBLISH_FATAL',
    `the broker refuses to take events for topic ${message?.topic ?? '?'} until its configuration is changed: ${fatal.error.message}`,
    { cause: fatal.error, details: { topic: message?.topic, id: message?.id } },
  )
}
