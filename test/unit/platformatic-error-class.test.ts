import {
  AuthenticationError,
  MultipleErrors,
  NetworkError,
  ResponseError,
  TimeoutError,
  UserError,
} from '@platformatic/kafka'
import { describe, expect, test } from 'vitest'
import { answerOf, classify, ProtocolRefusal, verdictOf } from '../../src/brokers/kafka/platformatic/error-class.ts'
import { MillraceError } from '../../src/core/errors.ts'

const socket = (code: string): Error => Object.assign(new Error('ignored'), { code })
const connecting = (code: string): Error => new NetworkError('ignored', { cause: socket(code) })

describe('an error code in an answer of Kafka', () => {
  // The class, and whether it says that the batch was not appended.
  test.each([
    ['MESSAGE_TOO_LARGE', 'poison', true],
    ['INVALID_RECORD', 'poison', true],
    ['INVALID_TOPIC_EXCEPTION', 'poison', true],
    ['POLICY_VIOLATION', 'poison', true],
    ['UNKNOWN_TOPIC_OR_PARTITION', 'retry', true],
    ['UNKNOWN_TOPIC_ID', 'retry', true],
    ['TOPIC_AUTHORIZATION_FAILED', 'fatal', true],
    ['CLUSTER_AUTHORIZATION_FAILED', 'fatal', true],
    ['GROUP_AUTHORIZATION_FAILED', 'fatal', true],
    ['INCONSISTENT_GROUP_PROTOCOL', 'fatal', true],
    // A leader deposed while it waited for its replicas says so of what it has appended.
    ['NOT_LEADER_OR_FOLLOWER', 'retry', false],
    ['LEADER_NOT_AVAILABLE', 'retry', true],
    ['NOT_ENOUGH_REPLICAS', 'retry', true],
    ['OUT_OF_ORDER_SEQUENCE_NUMBER', 'retry', true],
    ['THROTTLING_QUOTA_EXCEEDED', 'throttle', true],
    ['NOT_ENOUGH_REPLICAS_AFTER_APPEND', 'retry', false],
    ['REQUEST_TIMED_OUT', 'retry', false],
    ['KAFKA_STORAGE_ERROR', 'retry', false],
    ['DUPLICATE_SEQUENCE_NUMBER', 'retry', false],
    ['A_CODE_OF_THE_FUTURE', 'retry', false],
  ])('%s is %s, refused %s', (apiId, errorClass, refused) => {
    const refusal = new ProtocolRefusal(apiId, 'text')
    expect(verdictOf(refusal)).toMatchObject({ cause: refusal, class: errorClass, refused })
  })

  test.each(['MESSAGE_TOO_LARGE', 'INVALID_RECORD'])('%s is found by splitting', (apiId) => {
    expect(verdictOf(new ProtocolRefusal(apiId)).splits).toBe(true)
  })

  test.each(['OUT_OF_ORDER_SEQUENCE_NUMBER', 'UNKNOWN_PRODUCER_ID', 'INVALID_PRODUCER_EPOCH'])(
    '%s asks for a new producer',
    (apiId) => expect(verdictOf(new ProtocolRefusal(apiId)).renew).toBe(true),
  )
})

describe('what came instead of an answer', () => {
  test.each([
    ['nobody listening', connecting('ECONNREFUSED'), 'retry', true],
    ['no such host', connecting('ENOTFOUND'), 'retry', true],
    ['several brokers, none listening', new MultipleErrors('x', [connecting('ECONNREFUSED')]), 'retry', true],
    ['a connection that died', new NetworkError('Connection closed'), 'retry', false],
    ['a connection that was reset', connecting('ECONNRESET'), 'retry', false],
    ['a request without an answer', new TimeoutError('Request timed out'), 'retry', false],
    ['our own deadline', new MillraceError('BROKER_UNREACHABLE', 'too late'), 'retry', false],
    ['a wrong password', new NetworkError('x', { cause: new AuthenticationError('x') }), 'fatal', true],
    ['a certificate nobody vouches for', connecting('SELF_SIGNED_CERT_IN_CHAIN'), 'fatal', true],
    ['a listener that wants TLS', new UserError('Broker requires TLS.'), 'fatal', true],
    ['a broker too old', new MillraceError('SERVER_TOO_OLD', 'x'), 'fatal', true],
    ['what cannot be encoded', new TypeError('x'), 'poison', true],
    ['an error code', new ResponseError(0, 9, { '/': [29, null] }, {}), 'fatal', true],
    ['what nobody has listed', new Error('x'), 'retry', false],
    ['what is no error', undefined, 'retry', false],
  ])('%s', (_, error, errorClass, refused) => {
    expect(classify(error)).toMatchObject({ class: errorClass, refused })
  })

  test('an answer with error codes is an answer, and no other error is', () => {
    const answer = { responses: [] }
    expect(answerOf(new ResponseError(0, 9, { '/': [6, null] }, answer))).toBe(answer)
    expect(answerOf(new NetworkError('x'))).toBeUndefined()
    expect(answerOf(undefined)).toBeUndefined()
  })
})
