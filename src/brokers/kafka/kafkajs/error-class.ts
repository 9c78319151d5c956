/**
 * What a kafkajs error means for the messages that were being sent, from its type, code and name, never from its text.
 *
 * kafkajs wraps what it gave up on (`KafkaJSNumberOfRetriesExceeded`, `KafkaJSNonRetriableError`): the judgement is over
 * the innermost cause. Only the last attempt's error is known; what earlier attempts met is not. So a refusal counts as
 * `failed` only when it is final by nature (poison, fatal) or was the only attempt: see `outcomeOf`.
 */
import type { ErrorClass, Outcome } from '../../broker.ts'

/** What an error says. */
export interface Verdict {
  readonly class: ErrorClass
  /** The attempt that met it stored nothing. False: nobody knows. */
  readonly refused: boolean
  /** The topic is not in the cluster's metadata; the publisher decides by for how long it has been missing. */
  readonly unknownTopic: boolean
  /** The producer must be replaced before anything is sent again: its sequence or its metadata can no longer be trusted. */
  readonly renew: boolean
  /** Splitting the batch finds the message that is to blame. */
  readonly splits: boolean
  /** The error itself, without kafkajs' wrapping. */
  readonly cause: unknown
}

/** Judges an error of kafkajs (or of the socket below it). */
export function classify(error: unknown): Verdict {
  const cause = innermost(error)
  const { code, name, type } = fieldsOf(cause)

  switch (type ?? '') {
    // The record batch is above the topic's `max.message.bytes`: split it, and one message alone will never fit.
    case 'MESSAGE_TOO_LARGE':
    case 'RECORD_LIST_TOO_LARGE':
    // A record the topic does not take (a compacted topic refuses one without a key): the broker names the batch only.
    case 'INVALID_RECORD':
    // A broker-side policy refuses it, and will again.
    case 'POLICY_VIOLATION':
      return { ...POISON, splits: true, cause }
    // No topic can have this name.
    case 'INVALID_TOPIC_EXCEPTION':
      return { ...POISON, cause }
    // It may be about to be made, or its metadata may not be everywhere yet: hold at first.
    case 'UNKNOWN_TOPIC_OR_PARTITION':
      return { ...REFUSED, renew: true, unknownTopic: true, cause }
    // Somebody must grant a right, correct a password or a setting; waiting does not help.
    case 'CLUSTER_AUTHORIZATION_FAILED':
    case 'GROUP_AUTHORIZATION_FAILED':
    case 'TOPIC_AUTHORIZATION_FAILED':
    case 'TRANSACTIONAL_ID_AUTHORIZATION_FAILED':
    case 'SASL_AUTHENTICATION_FAILED':
    case 'UNSUPPORTED_SASL_MECHANISM':
    case 'SECURITY_DISABLED':
    // A server this client cannot talk to.
    case 'UNSUPPORTED_VERSION':
    case 'UNSUPPORTED_COMPRESSION_TYPE':
    case 'UNSUPPORTED_FOR_MESSAGE_FORMAT':
    // This machine's clock is off by more than the topic allows: true of every message alike.
    case 'INVALID_TIMESTAMP':
    // Group settings the broker does not allow.
    case 'INVALID_GROUP_ID':
    case 'INVALID_SESSION_TIMEOUT':
    case 'INCONSISTENT_GROUP_PROTOCOL':
    case 'GROUP_MAX_SIZE_REACHED':
      return { ...FATAL, cause }
    // The broker refused the batch before appending anything: no leader here, too few replicas, damaged on its way.
    case 'LEADER_NOT_AVAILABLE':
    case 'NOT_LEADER_FOR_PARTITION':
    case 'FENCED_LEADER_EPOCH':
    case 'UNKNOWN_LEADER_EPOCH':
    case 'REPLICA_NOT_AVAILABLE':
    case 'BROKER_NOT_AVAILABLE':
    case 'NOT_ENOUGH_REPLICAS':
    case 'CORRUPT_MESSAGE':
      return { ...REFUSED, cause }
    // The producer's sequence is broken (an earlier batch is missing, or the broker forgot the producer): this batch was
    // not appended. A new producer begins a new sequence.
    case 'OUT_OF_ORDER_SEQUENCE_NUMBER':
    case 'UNKNOWN_PRODUCER_ID':
    case 'INVALID_PRODUCER_EPOCH':
    case 'INVALID_PRODUCER_ID_MAPPING':
      return { ...REFUSED, renew: true, cause }
    // Appended on the leader, but not by as many replicas or not in the time asked for; or the disk failed on the way; or
    // the broker knows the sequence already, from a batch whose answer is lost. It may or may not be there.
    case 'REQUEST_TIMED_OUT':
    case 'NOT_ENOUGH_REPLICAS_AFTER_APPEND':
    case 'KAFKA_STORAGE_ERROR':
    case 'NETWORK_EXCEPTION':
    case 'DUPLICATE_SEQUENCE_NUMBER':
      return { ...UNKNOWN, cause }
  }

  // THROTTLING_QUOTA_EXCEEDED, which kafkajs 2.2 has no name for. (Ordinary produce quotas never get here: kafkajs waits
  // as long as the broker asks and then sends.)
  if (code === 89) return { ...REFUSED, class: 'throttle', cause }

  switch (name ?? '') {
    // The password is wrong, or the mechanism.
    case 'KafkaJSSASLAuthenticationError':
    // The server lacks an API, or the topic uses a compression that no codec is registered for.
    case 'KafkaJSServerDoesNotSupportApiKey':
    case 'KafkaJSNotImplemented':
      return { ...FATAL, cause }
    // No connection was made: TLS that does not verify stays so, everything else may pass.
    case 'KafkaJSConnectionError':
      if (typeof code === 'string' && TLS_REFUSALS.has(code)) return { ...FATAL, cause }
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

/** What became of a message that met this verdict after so many attempts. */
export function outcomeOf(verdict: Verdict, attempts: number): Exclude<Outcome, 'unsent'> {
  if (attempts === 0 || verdict.class === 'poison' || verdict.class === 'fatal') return 'failed'
  return verdict.refused && attempts === 1 ? 'failed' : 'unknown'
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

const REFUSED = { class: 'retry', refused: true, renew: false, splits: false, unknownTopic: false } as const
const UNKNOWN = { class: 'retry', refused: false, renew: true, splits: false, unknownTopic: false } as const
const POISON = { class: 'poison', refused: true, renew: false, splits: false, unknownTopic: false } as const
const FATAL = { class: 'fatal', refused: true, renew: false, splits: false, unknownTopic: false } as const

const WRAPPERS = new Set(['KafkaJSError', 'KafkaJSNonRetriableError', 'KafkaJSNumberOfRetriesExceeded'])

const NOT_CONNECTED = new Set(['ECONNREFUSED', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'ENOTFOUND'])

const TLS_REFUSALS = new Set([
  'CERT_HAS_EXPIRED',
  'CERT_NOT_YET_VALID',
  'CERT_REVOKED',
  'CERT_UNTRUSTED',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'EPROTO',
  'ERR_SSL_WRONG_VERSION_NUMBER',
  'ERR_TLS_CERT_ALTNAME_INVALID',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
])
