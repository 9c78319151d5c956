import { KafkaJSConnectionError, KafkaJSNumberOfRetriesExceeded, KafkaJSProtocolError } from 'kafkajs'
import { describe, expect, test } from 'vitest'
import { classify, innermost, outcomeOf } from '../../src/brokers/kafka/kafkajs/error-class.ts'

const protocol = (type: string, code = 0): Error =>
  new KafkaJSProtocolError({ code, message: 'ignored', type } as never)
const named = (name: string, fields: object = {}): Error => Object.assign(new Error('ignored'), { name, ...fields })
const gaveUp = (cause: Error): Error =>
  new KafkaJSNumberOfRetriesExceeded(cause as never, { retryCount: 3, retryTime: 100 })

// What happened, the class, and what became of a message after one attempt and after several.
const TABLE: readonly (readonly [what: string, error: Error, errorClass: string, once: string, again: string])[] = [
  ['a batch above the topic limit', protocol('MESSAGE_TOO_LARGE', 10), 'poison', 'failed', 'failed'],
  ['a record the topic does not take', protocol('INVALID_RECORD', 87), 'poison', 'failed', 'failed'],
  ['a name no topic can have', protocol('INVALID_TOPIC_EXCEPTION', 17), 'poison', 'failed', 'failed'],
  ['a topic that is not there (yet)', protocol('UNKNOWN_TOPIC_OR_PARTITION', 3), 'retry', 'failed', 'unknown'],
  ['no right to the topic', protocol('TOPIC_AUTHORIZATION_FAILED', 29), 'fatal', 'failed', 'failed'],
  ['no right to the cluster', protocol('CLUSTER_AUTHORIZATION_FAILED', 31), 'fatal', 'failed', 'failed'],
  ['a wrong password', named('KafkaJSSASLAuthenticationError'), 'fatal', 'failed', 'failed'],
  ['a clock far off', protocol('INVALID_TIMESTAMP', 32), 'fatal', 'failed', 'failed'],
  [
    'a leader that was deposed, perhaps after it appended',
    protocol('NOT_LEADER_FOR_PARTITION', 6),
    'retry',
    'unknown',
    'unknown',
  ],
  ['too few replicas, nothing appended', protocol('NOT_ENOUGH_REPLICAS', 19), 'retry', 'failed', 'unknown'],
  ['too few replicas, but appended', protocol('NOT_ENOUGH_REPLICAS_AFTER_APPEND', 20), 'retry', 'unknown', 'unknown'],
  ['a sequence with a hole', protocol('OUT_OF_ORDER_SEQUENCE_NUMBER', 45), 'retry', 'failed', 'unknown'],
  ['a producer that was fenced', protocol('KAFKAJS_UNKNOWN_ERROR_CODE', 90), 'retry', 'failed', 'unknown'],
  ['an epoch that is past', protocol('INVALID_PRODUCER_EPOCH', 47), 'retry', 'failed', 'unknown'],
  ['a sequence seen before', protocol('DUPLICATE_SEQUENCE_NUMBER', 46), 'retry', 'unknown', 'unknown'],
  ['no acknowledgement in time', protocol('REQUEST_TIMED_OUT', 7), 'retry', 'unknown', 'unknown'],
  ['the broker asks for less', protocol('ANYTHING', 89), 'throttle', 'failed', 'unknown'],
  ['a code nobody knows', protocol('KAFKAJS_UNKNOWN_ERROR_CODE', -99), 'retry', 'unknown', 'unknown'],
  ['a request without an answer', named('KafkaJSRequestTimeoutError'), 'retry', 'unknown', 'unknown'],
  ['a socket that died', named('KafkaJSConnectionClosedError'), 'retry', 'unknown', 'unknown'],
  ['nobody listens', new KafkaJSConnectionError('ignored', { code: 'ECONNREFUSED' }), 'retry', 'failed', 'unknown'],
  ['a reset', new KafkaJSConnectionError('ignored', { code: 'ECONNRESET' }), 'retry', 'unknown', 'unknown'],
  [
    'a certificate that does not verify',
    named('KafkaJSConnectionError', { code: 'CERT_HAS_EXPIRED' }),
    'fatal',
    'failed',
    'failed',
  ],
  ['what kafkajs cannot encode', new TypeError('ignored'), 'poison', 'failed', 'failed'],
  ['something else', new Error('ignored'), 'retry', 'unknown', 'unknown'],
]

describe('a kafkajs error is judged by type, code and name', () => {
  test.each(TABLE)('%s', (_, error, errorClass, once, again) => {
    for (const form of [error, gaveUp(error), gaveUp(gaveUp(error))]) {
      const verdict = classify(form)
      expect(verdict.class).toBe(errorClass)
      expect(outcomeOf(verdict, 1)).toBe(once)
      expect(outcomeOf(verdict, 2)).toBe(again)
      expect(outcomeOf(verdict, 0)).toBe('failed')
    }
  })

  test('a fenced producer is replaced', () => {
    expect(classify(protocol('KAFKAJS_UNKNOWN_ERROR_CODE', 90)).renew).toBe(true)
    expect(classify(protocol('INVALID_PRODUCER_EPOCH', 47)).renew).toBe(true)
  })

  test('below the wrapping, never endlessly', () => {
    const circular = named('KafkaJSError')
    Object.assign(circular, { cause: circular })
    expect(innermost(circular)).toBe(circular)
    expect(classify(undefined).class).toBe('retry')
  })
})
