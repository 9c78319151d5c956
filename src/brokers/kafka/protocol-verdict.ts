/**
 * What an error of the Kafka protocol means for the messages that were being sent, from its name, whatever client met it.
 */
import type { ErrorClass, Outcome } from '../broker.ts'

/** What an error says. */
export interface Judgement {
  readonly class: ErrorClass
  /** The attempt that met it stored nothing. False: nobody knows. */
  readonly refused: boolean
  /** The topic is not in the cluster's metadata; the publisher decides by for how long it has been missing. */
  readonly unknownTopic: boolean
  /** The producer must be replaced before anything is sent again: its sequence or its metadata can no longer be trusted. */
  readonly renew: boolean
  /** Splitting the batch finds the message that is to blame. */
  readonly splits: boolean
}

/** A judgement with what it was made of. */
export interface Verdict extends Judgement {
  /** The error itself, without the client's wrapping. */
  readonly cause: unknown
}

export const REFUSED = {
  class: 'retry',
  refused: true,
  renew: false,
  splits: false,
  unknownTopic: false,
} as const satisfies Judgement
export const UNKNOWN = {
  class: 'retry',
  refused: false,
  renew: true,
  splits: false,
  unknownTopic: false,
} as const satisfies Judgement
export const POISON = {
  class: 'poison',
  refused: true,
  renew: false,
  splits: false,
  unknownTopic: false,
} as const satisfies Judgement
export const FATAL = {
  class: 'fatal',
  refused: true,
  renew: false,
  splits: false,
  unknownTopic: false,
} as const satisfies Judgement

/** No connection was made, so nothing was sent. */
export const NOT_CONNECTED = new Set(['ECONNREFUSED', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'ENOTFOUND'])

/** Judges a protocol error by its name, such as `NOT_ENOUGH_REPLICAS`; undefined for one that says nothing of messages. */
export function judgeProtocolError(name: string): Judgement | undefined {
  switch (name) {
    // The record batch is above the topic's `max.message.bytes`: split it, and one message alone will never fit.
    case 'MESSAGE_TOO_LARGE':
    case 'RECORD_LIST_TOO_LARGE':
    // A record the topic does not take (a compacted topic refuses one without a key): the broker names the batch only.
    case 'INVALID_RECORD':
    // A broker-side policy refuses it, and will again.
    case 'POLICY_VIOLATION':
      return { ...POISON, splits: true }
    // No topic can have this name.
    case 'INVALID_TOPIC_EXCEPTION':
      return POISON
    // It may be about to be made, or its metadata may not be everywhere yet: hold at first.
    case 'UNKNOWN_TOPIC_OR_PARTITION':
    case 'UNKNOWN_TOPIC_ID':
      return { ...REFUSED, renew: true, unknownTopic: true }
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
      return FATAL
    // The broker refused the batch before appending anything: no leader here, too few replicas, damaged on its way.
    case 'LEADER_NOT_AVAILABLE':
    case 'FENCED_LEADER_EPOCH':
    case 'UNKNOWN_LEADER_EPOCH':
    case 'REPLICA_NOT_AVAILABLE':
    case 'BROKER_NOT_AVAILABLE':
    case 'NOT_ENOUGH_REPLICAS':
    case 'CORRUPT_MESSAGE':
      return REFUSED
    // Mostly refused at the door. But a leader that is deposed while it waits for its replicas says so of what it has
    // appended, and its successor may have that, too: what is sent again has the same sequence numbers.
    case 'NOT_LEADER_FOR_PARTITION':
    case 'NOT_LEADER_OR_FOLLOWER':
      return { ...REFUSED, refused: false }
    // The producer's sequence is broken (an earlier batch is missing, or the broker forgot the producer): this batch was
    // not appended. A new producer begins a new sequence.
    case 'OUT_OF_ORDER_SEQUENCE_NUMBER':
    case 'UNKNOWN_PRODUCER_ID':
    case 'INVALID_PRODUCER_ID_MAPPING':
    // Fenced: the broker knows a later epoch of the producer. A producer without a transaction shares its id with nobody,
    // so that no other relay is meant by it (those are fenced by the lease's epoch): it begins anew.
    case 'INVALID_PRODUCER_EPOCH':
    case 'PRODUCER_FENCED':
      return { ...REFUSED, renew: true }
    // Appended on the leader, but not by as many replicas or not in the time asked for; or the disk failed on the way; or
    // the broker knows the sequence already, from a batch whose answer is lost. It may or may not be there.
    case 'REQUEST_TIMED_OUT':
    case 'NOT_ENOUGH_REPLICAS_AFTER_APPEND':
    case 'KAFKA_STORAGE_ERROR':
    case 'NETWORK_EXCEPTION':
    case 'DUPLICATE_SEQUENCE_NUMBER':
      return UNKNOWN
    // The broker asks for less. (Ordinary produce quotas never get here: it answers late and names a delay.)
    case 'THROTTLING_QUOTA_EXCEEDED':
      return { ...REFUSED, class: 'throttle' }
    default:
      return undefined
  }
}

/** What became of a message that met this verdict after so many attempts. */
export function outcomeOf(verdict: Judgement, attempts: number): Exclude<Outcome, 'unsent'> {
  if (attempts === 0 || verdict.class === 'poison' || verdict.class === 'fatal') return 'failed'
  return verdict.refused && attempts === 1 ? 'failed' : 'unknown'
}
