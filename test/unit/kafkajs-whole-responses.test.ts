import { once } from 'node:events'
import { createServer, type AddressInfo, type Server } from 'node:net'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { WholeResponses } from '../../src/brokers/kafka/kafkajs/whole-responses.ts'

function response(...body: number[]): Buffer {
  const size = Buffer.alloc(4)
  size.writeInt32BE(body.length)
  return Buffer.concat([size, Buffer.from(body)])
}

describe('the responses that kafkajs is given', () => {
  test('are whole, in order and complete, however they are cut', () => {
    const stream = Buffer.concat([
      response(1, 2, 3),
      response(),
      response(4),
      response(...Array(300).keys()),
      response(5),
    ])
    for (let step = 1; step <= stream.length; step++) {
      const given: Buffer[] = []
      let bytes = 0
      const responses = new WholeResponses((chunk) => given.push(chunk))
      for (let at = 0; at < stream.length; at += step) {
        responses.push(stream.subarray(at, at + step))
        const all = Buffer.concat(given)
        // What is given ends where a response does, and is all that is whole.
        bytes = wholeBytes(stream.subarray(0, at + step))
        expect(all.equals(stream.subarray(0, bytes))).toBe(true)
      }
      expect(bytes).toBe(stream.length)
    }
  })

  test('a size below zero is refused', () => {
    const responses = new WholeResponses(() => {})
    expect(() => responses.push(Buffer.from([0xff, 0, 0, 0]))).toThrow(RangeError)
  })
})

/** How much of the stream is whole responses. */
function wholeBytes(stream: Buffer): number {
  let at = 0
  while (at + 4 <= stream.length && at + 4 + stream.readInt32BE(at) <= stream.length) at += 4 + stream.readInt32BE(at)
  return at
}

describe('a broker that is cut off in the middle of an answer', () => {
  let server: Server
  let connections = 0
  const uncaught: unknown[] = []
  const listener = (error: unknown): void => void uncaught.push(error)

  beforeEach(() => {
    connections = 0
    uncaught.length = 0
    process.on('uncaughtException', listener)
  })
  afterEach(async () => {
    process.removeListener('uncaughtException', listener)
    await new Promise((resolve) => server.close(resolve))
  })

  const answering = async (answer: (request: Buffer) => Buffer, cutsOff = 1): Promise<string> => {
    server = createServer((socket) => {
      const first = ++connections <= cutsOff
      socket.on('error', () => {})
      socket.on('data', (request) => {
        // Half an answer, and the end of the connection.
        if (first) socket.end(Buffer.from([0, 0, 0, 8, 0, 0, 0, 0]))
        else socket.write(answer(request))
      })
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return `127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  test('leaves nothing behind: the answer of the next connection is read as what it is', async () => {
    // To ApiVersions: no error, and no request that is known here.
    const address = await answering((request) => response(...request.subarray(8, 12), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    const broker = kafkajs({ brokers: [address] })
    await expect(broker.publisher({ timeoutMs: 5000 }).start()).rejects.toThrow(/not support/)
    await broker.close()
    expect(connections).toBeGreaterThan(1)
    expect(uncaught).toEqual([])
  })

  test('nor does one whose answers are none end the process', async () => {
    const address = await answering(() => response(), 0)
    const broker = kafkajs({ brokers: [address] })
    await expect(broker.publisher({ timeoutMs: 1000 }).start()).rejects.toMatchObject({ code: 'BROKER_UNREACHABLE' })
    await broker.close()
    expect(connections).toBeGreaterThan(1)
    expect(uncaught).toEqual([])
  })
})
