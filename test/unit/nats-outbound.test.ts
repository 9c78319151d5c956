import type { MsgHdrs, NatsConnection } from '@nats-io/transport-node'
import { expect, test } from 'vitest'
import { Outbound } from '../../src/brokers/nats/outbound.ts'

const HEADERS = 'NATS/1.0\r\na: b\r\n\r\n'

/** A connection that notes what it is given. */
class Connection {
  closed = false
  up = true
  /** By nats.js' own way. */
  readonly published: { readonly subject: string; readonly headers: string }[] = []
  #waiting: Uint8Array[] = []
  readonly sent: Buffer[] = []
  readonly protocol: object | undefined

  constructor(protocol: 'known' | 'changed' = 'known') {
    const flushPending = (): void => {
      this.sent.push(Buffer.concat(this.#waiting))
      this.#waiting = []
    }
    const sendCommand = (command: Uint8Array): void => void this.#waiting.push(command)
    this.protocol = protocol === 'known' ? { flushPending, sendCommand } : { sendCommand }
  }

  isClosed(): boolean {
    return this.closed
  }

  publish(subject: string, _payload: Uint8Array, { headers }: { readonly headers: MsgHdrs }): void {
    if (this.closed) throw new Error('closed')
    const encoded = (headers as unknown as { encode(): Uint8Array }).encode()
    this.published.push({ subject, headers: Buffer.from(encoded).toString() })
  }

  get bytes(): string {
    return Buffer.concat(this.sent).toString()
  }
}

function outboundOf(connection: Connection): Outbound {
  return new Outbound(connection as unknown as NatsConnection, {} as MsgHdrs, () => connection.up)
}

test('publishes of one turn go out together, in order, as the protocol has them', async () => {
  const connection = new Connection()
  const outbound = outboundOf(connection)
  outbound.publish('orders', HEADERS, Buffer.from('first'), 'inbox.1')
  outbound.publish('orders', HEADERS, Buffer.from(''), undefined)
  expect(connection.sent).toHaveLength(0)
  await Promise.resolve()
  expect(connection.sent).toHaveLength(1)
  expect(connection.bytes).toBe(`HPUB orders inbox.1 18 23\r\n${HEADERS}first\r\nHPUB orders 18 18\r\n${HEADERS}\r\n`)
  await Promise.resolve()
  expect(connection.sent).toHaveLength(1)
})

test('lengths count bytes: subject, headers and payload may be any text', async () => {
  const connection = new Connection()
  const headers = 'NATS/1.0\r\nключ: 鍵🗝\r\n\r\n'
  const [head, all] = [Buffer.byteLength(headers), Buffer.byteLength(headers) + 6]
  outboundOf(connection).publish('заказы', headers, Buffer.from('тор'), 'inbox.1')
  await Promise.resolve()
  expect(connection.bytes).toBe(`HPUB заказы inbox.1 ${head} ${all}\r\n${headers}тор\r\n`)
})

test('many frames keep the order, and what was handed over is not written to again', async () => {
  const connection = new Connection()
  const outbound = outboundOf(connection)
  let expected = ''
  for (let n = 0; n < 3000; n++) {
    const payload = String(n).padStart((n * 37) % 2000, '.')
    const bytes = HEADERS.length + payload.length
    expected += `HPUB orders inbox.${n} 18 ${bytes}\r\n${HEADERS}${payload}\r\n`
    outbound.publish('orders', HEADERS, Buffer.from(payload), `inbox.${n}`)
    if (n % 100 === 0) await Promise.resolve()
  }
  await Promise.resolve()
  expect(connection.bytes).toBe(expected)
})

test('a large message goes by the way of nats.js, behind those before it', async () => {
  const connection = new Connection()
  const outbound = outboundOf(connection)
  outbound.publish('orders', HEADERS, Buffer.from('small'), 'inbox.1')
  outbound.publish('large', HEADERS, Buffer.alloc(40_000), 'inbox.2')
  expect(connection.bytes).toContain('small')
  expect(connection.published).toEqual([{ subject: 'large', headers: HEADERS }])
  await Promise.resolve()
  expect(connection.sent).toHaveLength(1)
})

test('what was written for a server that is gone is dropped, and not sent to the next one', async () => {
  const connection = new Connection()
  const outbound = outboundOf(connection)
  outbound.publish('orders', HEADERS, Buffer.from('before'), 'inbox.1')
  connection.up = false
  await Promise.resolve()
  connection.up = true
  outbound.publish('orders', HEADERS, Buffer.from('after'), 'inbox.2')
  await Promise.resolve()
  expect(connection.bytes).toContain('after')
  expect(connection.bytes).not.toContain('before')
})

test('a closed connection says so at once', () => {
  const connection = new Connection()
  const outbound = outboundOf(connection)
  connection.closed = true
  expect(() => outbound.publish('orders', HEADERS, Buffer.from('x'), 'inbox.1')).toThrow('closed')
})

test('with another nats.js inside, every message goes by its documented way', async () => {
  const connection = new Connection('changed')
  const outbound = outboundOf(connection)
  outbound.publish('orders', HEADERS, Buffer.from('x'), 'inbox.1')
  outbound.publish('orders', HEADERS, Buffer.from('y'), 'inbox.2')
  await Promise.resolve()
  expect(connection.published).toHaveLength(2)
  expect(connection.sent).toHaveLength(0)
})
