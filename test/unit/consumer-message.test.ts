import { expect, test } from 'vitest'
import type { IncomingMessage } from '../../src/brokers/broker.ts'
import { MessageView } from '../../src/consumer/handled-message.ts'

const incoming = (payload: Buffer | null): IncomingMessage => ({
  headers: { tenant: 'a' },
  id: 'id-1',
  key: 'k',
  partition: 3,
  payload,
  position: 7n,
  redelivered: false,
  sizeBytes: 10,
  timeMs: 5,
  topic: 'orders',
  type: 'order.placed',
})

test('a message parses its payload on request and copies nothing', () => {
  const payload = Buffer.from('{"total":12}')
  const message = new MessageView(incoming(payload))
  expect(message.json<{ total: number }>().total).toBe(12)
  expect(message.payload).toBe(payload)
  const { headers, id, key, partition, redelivered, timeMs, topic, type } = message
  expect({ headers, id, key, partition, redelivered, timeMs, topic, type }).toEqual({
    headers: { tenant: 'a' },
    id: 'id-1',
    key: 'k',
    partition: 3,
    redelivered: false,
    timeMs: 5,
    topic: 'orders',
    type: 'order.placed',
  })
})

test('a payload that is not JSON is an error that does not quote it', () => {
  for (const payload of [Buffer.from('secret-1234'), null]) {
    const read = (): unknown => new MessageView(incoming(payload)).json()
    expect(read).toThrow(expect.objectContaining({ code: 'MESSAGE_NOT_JSON' }))
    expect(read).not.toThrow(/secret/)
    expect(read).not.toThrow(expect.objectContaining({ cause: expect.anything() as unknown }))
  }
})
