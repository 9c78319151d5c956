/** The errors of a Kafka publisher, with the fix in their text. */
import { MillraceError } from '../../core/errors.ts'
import type { ErrorClass } from '../broker.ts'
import type { KafkaSettings } from './kafka-options.ts'
import type { ProduceRecord } from './produce-record.ts'
import type { Verdict } from './protocol-verdict.ts'

/** Why this record was not stored. */
export function publishError(record: ProduceRecord, errorClass: ErrorClass, verdict: Verdict): MillraceError {
  const { id, topic } = record.message
  const why = reasonOf(verdict)
  const details = { bytes: record.sizeBytes, id, partition: record.partition, topic }
  const options = { cause: verdict.cause, details }
  switch (errorClass) {
    case 'fatal':
      return new MillraceError('PUBLISH_FATAL', `Kafka lets nothing into topic ${topic}: ${why}`, options)
    case 'poison':
      return new MillraceError(
        'MESSAGE_REJECTED',
        `Kafka will never store message ${id} in topic ${topic}: ${why}`,
        options,
      )
    case 'retry':
    case 'throttle':
      return new MillraceError(
        'PUBLISH_REFUSED',
        `Kafka did not store message ${id} in topic ${topic}: ${why}`,
        options,
      )
  }
}

function reasonOf({ cause, unknownTopic }: Verdict): string {
  if (unknownTopic) return 'the topic does not exist; create it, or correct the name in the event'
  return cause instanceof Error ? cause.message : 'the brokers changed places before it was stored'
}

/** The record can never fit. */
export function tooLarge(record: ProduceRecord, largest: number): MillraceError {
  const { id, topic } = record.message
  return new MillraceError(
    'MESSAGE_REJECTED',
    `Message ${id} takes ${record.sizeBytes} bytes in topic ${topic}, above the limit of ${largest}: make it smaller, ` +
      `or raise the topic's max.message.bytes and the adapter's maxMessageBytes together.`,
    { details: { bytes: record.sizeBytes, id, topic } },
  )
}

/** The publisher could not be started. */
export function notStarted(verdict: Verdict, settings: KafkaSettings): MillraceError {
  const { cause } = verdict
  const why = cause instanceof Error ? cause.message : String(cause)
  return verdict.class === 'fatal'
    ? new MillraceError('PUBLISH_FATAL', `Kafka at ${settings.brokers.join(', ')} refuses this client: ${why}`, {
        cause,
      })
    : new MillraceError('BROKER_UNREACHABLE', `No Kafka broker answers at ${settings.brokers.join(', ')}: ${why}`, {
        cause,
      })
}

/** It was closed before. */
export function publisherClosed(): MillraceError {
  return new MillraceError('LIFECYCLE_STOPPED', 'The publisher is closed; make a new one.')
}

/** It was never started. */
export function publisherNotStarted(): MillraceError {
  return new MillraceError('LIFECYCLE_NOT_STARTED', 'Call start() of the publisher before publish().')
}
