import { expect, test } from 'vitest'
import { incomingMessage } from '../../src/brokers/kafka/kafkajs/incoming.ts'

const FOREIGN = { attributes: 0, headers: {}, key: null, offset: '7', timestamp: '1790000000123', value: null }

test('a message that Millrace did not write gets an id from where it stands, no type, and the time of the record', () => {
  const message = incomingMessage('orders', 3, FOREIGN)
  expect(message).toMatchObject({
    id: 'orders/3/7/1790000000123',
    key: null,
    payload: null,
    position: 7n,
    timeMs: 1790000000123,
    type: '',
  })
})

test('headers come as buffers, lists of buffers, or without a value', () => {
  const headers = { last: [Buffer.from('a'), Buffer.from('b')], none: undefined, text: Buffer.from('blå') }
  expect({ ...incomingMessage('t', 0, { ...FOREIGN, headers }).headers }).toEqual({ last: 'b', none: '', text: 'blå' })
})

test('a key that is no UTF-8 is read, not refused', () => {
  const { key, sizeBytes } = incomingMessage('t', 0, { ...FOREIGN, key: Buffer.from([0xff, 0x41]) })
  expect(key).toBe('\uFFFDA')
  expect(sizeBytes).toBe(2)
})

test('a hostile header name stays a header', () => {
  const raw = Object.defineProperty({}, '__proto__', { enumerable: true, value: Buffer.from('x') }) as Record<
    string,
    Buffer
  >
  const { headers } = incomingMessage('t', 0, { ...FOREIGN, headers: raw })
  expect(Object.getPrototypeOf(headers)).toBe(null)
  expect(Object.keys(headers)).toEqual(['__proto__'])
})
