import { describe, expect, test } from 'vitest'
import { encodeHeaders } from '../../src/brokers/nats/encode-message.ts'
import { classifyFault } from '../../src/brokers/nats/error-class.ts'
import { decodeText, encodeKey } from '../../src/brokers/nats/header-text.ts'
import { durableName, isSubject, streamName } from '../../src/brokers/nats/names.ts'
import { readPubAck } from '../../src/brokers/nats/pub-ack.ts'
import { sampleMessage } from '../../src/testing/conformance/sample-message.ts'

describe('headers of NATS', () => {
  test.each(['', ' ', 'a', ' a ', 'a\r\nb: c', '\0', '100%', '%0a', 'ключ', '\u00a0x\ufeff', 'a b  c', '\t'])(
    'the key %j survives one trimmed line, and is read back',
    (key) => {
      const value = encodeKey(key)
      expect(value.trim()).toBe(value)
      expect(value).not.toMatch(/[\r\n\0]/)
      expect(decodeText(value)).toBe(key)
    },
  )

  test('a key that needs no encoding travels as it is', () => {
    for (const key of ['order-1', 'a:b;c', 'naïve 鍵', '.*>$']) expect(encodeKey(key)).toBe(key)
  })

  test('a value of a foreign producer that is not well encoded is taken as it is', () => {
    expect(decodeText('100%')).toBe('100%')
  })

  test('a header that commands the server, or has no name NATS knows, is refused', () => {
    for (const name of ['Nats-Rollup', 'nats-msg-id', 'a b', 'a:b', 'ключ', '', 'a\r\nb']) {
      expect(() => encodeHeaders(sampleMessage('t', { headers: { [name]: 'x' } })), name).toThrow(RangeError)
    }
  })

  test('no value can begin a header of its own', () => {
    const block = String(
      encodeHeaders(sampleMessage('t', { headers: { a: 'x\r\nNats-Rollup: all' }, key: 'k\r\nb: c' })),
    )
    expect(block).not.toMatch(/^(Nats-Rollup|b):/m)
    expect(block).toContain('millrace-encoded: a\r\n')
    expect(block.split('\r\n\r\n')).toHaveLength(2)
  })

  test('the event id is what the server deduplicates by', () => {
    const message = sampleMessage('t')
    expect(String(encodeHeaders(message))).toContain(`\r\nNats-Msg-Id: ${message.id}\r\n\r\n`)
  })
})

describe('answers of JetStream', () => {
  const read = (text: string) => readPubAck(Buffer.from(text))

  test('stored, and stored before, are stored; also on a stream with an awkward name', () => {
    expect(read('{"stream":"orders", "seq":7}')).toBe('stored')
    expect(read('{"stream":"orders","domain":"hub","seq":7,"duplicate": true}')).toBe('stored')
    expect(read('{"stream":"error", "seq":7}')).toBe('stored')
    expect(read('{"seq":7,"stream":"orders"}')).toBe('stored')
    expect(read('{"stream":"orders", "seq": 7}')).toBe('stored')
  })

  test('an error is an error wherever it stands', () => {
    const error = { code: 503, err_code: 10077, description: 'maximum messages exceeded' }
    expect(read(JSON.stringify({ error, stream: 'orders', seq: 0 }))).toEqual(error)
    expect(read(JSON.stringify({ stream: 'orders', seq: 0, error }))).toEqual(error)
  })

  test('a duplicate of what has no place on the stream is not stored', () => {
    expect(read('{"stream":"orders", "seq":0,"duplicate": true}')).toBeUndefined()
    expect(read('{"stream":"orders","seq": 0,"duplicate": true}')).toBeUndefined()
    expect(read('{"stream":"orders", "seq":10,"duplicate": true}')).toBe('stored')
    expect(read('{"stream":"orders", "seq":90}')).toBe('stored')
  })

  test('what a plain subscriber of the subject replies is no answer', () => {
    for (const text of ['ok', '+OK', '{}', '[]', 'null', '{"stream":1}', '']) expect(read(text), text).toBeUndefined()
  })

  test.each([
    [10054, 400, 'poison', 'failed'],
    [10097, 400, 'poison', 'failed'],
    [10158, 409, 'retry', 'unknown'],
    [10167, 429, 'throttle', 'failed'],
    [0, 429, 'throttle', 'failed'],
    [10039, 503, 'fatal', 'failed'],
    [10109, 400, 'fatal', 'failed'],
    [10077, 503, 'retry', 'failed'],
    [10023, 503, 'retry', 'failed'],
    [10008, 503, 'retry', 'failed'],
    [99999, 500, 'retry', 'failed'],
  ])('the fault %i (%i) is %s and %s, whatever its text says', (errCode, code, errorClass, outcome) => {
    const verdict = classifyFault({ code, description: 'some words', err_code: errCode }, 'orders', 'id-1')
    expect([verdict.class, verdict.outcome]).toEqual([errorClass, outcome])
    expect(verdict.error.message).toContain('id-1')
  })
})

describe('names of NATS', () => {
  test('a topic is a subject without wildcards, and none of the server', () => {
    for (const topic of ['orders', 'orders.placed', 'a-b_c.1', 'ключ']) expect(isSubject(topic), topic).toBe(true)
    for (const topic of ['', '.', 'a.', '.a', 'a..b', 'a b', 'a.*', 'a.>', '*', '>', 'a\r\nb', '$JS.API.x', 'a\0']) {
      expect(isSubject(topic), JSON.stringify(topic)).toBe(false)
    }
  })

  test('a stream is named as its topic where it can be; what must differ differs', () => {
    expect(streamName('orders')).toBe('orders')
    expect(streamName('orders.placed')).toMatch(/^orders_placed-[0-9a-f]{10}$/)
    expect(streamName('orders.placed')).not.toBe(streamName('orders_placed'))
    expect(durableName('a-b', 'c')).not.toBe(durableName('a', 'b-c'))
    expect(durableName('billing.eu/1', 'orders.*')).toMatch(/^[A-Za-z0-9_-]+$/)
  })
})
