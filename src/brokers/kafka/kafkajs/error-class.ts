/**
 * What a kafkajs error means for the messages that were being sent, from its type, code and name, never from its text.
 *
 * kafkajs wraps what it gave up on (`KafkaJSNumberOfRetriesExceeded`, `KafkaJSNonRetriableError`): the judgement is over
 * the innermost cause. Only the last attempt's error is known; what earlier attempts met is not. So a refusal counts as
 * `failed` only when it is final by nature (poison, fatal) or was the only attempt: see `outcomeOf`.
 */
import { TLS_REFUSALS } from '../../tls-refusals.ts'
import { FATAL, judgeProtocolError, NOT_CONNECTED, POISON, REFUSED, UNKNOWN } from '../protocol-verdict.ts'
import type { Verdict } from '../protocol-verdict.ts'

export { outcomeOf } from '../protocol-verdict.ts'
export type { Verdict } from '../protocol-verdict.ts'

/** Judges an error of kafkajs (or of the socket below it). */
export function classify(error: unknown): Verdict {
  const cause = innermost(error)
  const { code, name, type } = fieldsOf(cause)

  const judgement = judgeProtocolError(type ?? '')
  if (judgement !== undefined) return { ...judgement, cause }
  // What kafkajs 2.2 has no name for: it gives the code alone.
  const unnamed = typeof code === 'number' ? judgeProtocolError(UNNAMED.get(code) ?? '') : undefined
  if (unnamed !== undefined) return { ...unnamed, cause }

  switch (name ?? '') {
    // The password is wrong, or the mechanism.
    case 'KafkaJSSASLAuthenticationError':
    // The server lacks an API, or the topic uses a compression that no codec is registered for.
    case 'KafkaJSServerDoesNotSupportApiKey':
    case 'KafkaJSNotImplemented':
      return { ...FATAL, cause }
    // No connection was made: TLS that does not verify stays so, everything else may pass.
    case 'KafkaJSConnectionError':
      if (TLS_REFUSALS.has(code)) return { ...FATAL, cause }
      return typeof code === 'string' && NOT_CONNECTED.has(code) ? { ...REFUSED, cause } : { ...UNKNOWN, cause }
    // Nobody to send to yet.
    case 'KafkaJSBrokerNotFound':
    case 'KafkaJSLockTimeout':
    case 'KafkaJSMetadataNotLoaded':
    case 'KafkaJSNoBrokerAvailableError':
    case 'KafkaJSTopicMetadataNotLoaded':
      return { ...REFUSED, cause }
    // kafkajs could not encode it (a header that is no text, say): it never left the process, and never will.
    case 'TypeError':
    case 'RangeError':
      return { ...POISON, splits: true, cause }
  }

  // A socket that died, a request without an answer, and whatever is not listed: it may have arrived.
  return { ...UNKNOWN, cause }
}

/** The error below kafkajs' wrapping. */
export function innermost(error: unknown): unknown {
  let inner = error
  for (let depth = 0; depth < 10; depth++) {
    const { cause, name } = fieldsOf(inner)
    if (cause === undefined || !WRAPPERS.has(name ?? '')) return inner
    inner = cause
  }
  return inner
}

interface Fields {
  readonly cause?: unknown
  readonly code?: unknown
  readonly name?: string
  readonly type?: string
}

function fieldsOf(error: unknown): Fields {
  return typeof error === 'object' && error !== null ? (error as Fields) : {}
}

const UNNAMED: ReadonlyMap<number, string> = new Map([
  [89, 'THROTTLING_QUOTA_EXCEEDED'],
  [90, 'PRODUCER_FENCED'],
])

const WRAPPERS = new Set(['KafkaJSError', 'KafkaJSNonRetriableError', 'KafkaJSNumberOfRetriesExceeded'])
