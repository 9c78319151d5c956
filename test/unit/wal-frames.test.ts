import { describe, expect, test } from 'vitest'
import { BackendFrames } from '../../src/outbox-relay/capture/replication/backend-frames.ts'
import { seededRandom } from '../../src/testing/faults/seeded-random.ts'
import { int } from '../support/wal-frames.ts'

const frame = (kind: string, body: Buffer): Buffer => Buffer.concat([Buffer.from(kind), int(body.length + 4, 4), body])

function reading(): { readonly frames: BackendFrames; readonly seen: string[] } {
  const seen: string[] = []
  const frames = new BackendFrames((kind, buffer, start, end) => {
    seen.push(`${String.fromCharCode(kind)}${buffer.toString('latin1', start, end)}`)
  })
  return { frames, seen }
}

describe("the server's messages", () => {
  test('are the same however the bytes are cut into chunks', () => {
    const bodies = ['', 'a', 'bc', 'd'.repeat(5000), '', 'e'.repeat(70_000), 'f']
    const bytes = Buffer.concat(bodies.map((body) => frame('d', Buffer.from(body))))
    const expected = bodies.map((body) => `d${body}`)
    for (const size of [1, 2, 3, 4, 5, 6, 7, 100, 4096, 65_536, bytes.length]) {
      const { frames, seen } = reading()
      for (let at = 0; at < bytes.length; at += size) frames.push(bytes.subarray(at, at + size))
      expect(seen, `chunks of ${size}`).toEqual(expected)
      expect(frames.waitingBytes).toBe(0)
    }
    const random = seededRandom(7)
    for (let run = 0; run < 200; run++) {
      const { frames, seen } = reading()
      for (let at = 0; at < bytes.length;) {
        const size = 1 + Math.floor(random() * random() * 20_000)
        // A buffer of its own, spoiled afterwards, as one that a socket uses again.
        const chunk = Buffer.from(bytes.subarray(at, at + size))
        frames.push(chunk)
        chunk.fill(0)
        at += size
      }
      expect(seen).toEqual(expected)
    }
  })

  test('stop between any two of them, and go on with the next', () => {
    const seen: string[] = []
    const frames = new BackendFrames((_kind, buffer, start, end) => {
      seen.push(buffer.toString('latin1', start, end))
      frames.stop()
    })
    const bytes = Buffer.concat(['a', 'b', 'c', 'd'].map((body) => frame('d', Buffer.from(body))))
    frames.push(bytes.subarray(0, 15))
    expect(seen).toEqual(['a'])
    // What was under way when it stopped.
    frames.push(bytes.subarray(15))
    expect(seen).toEqual(['a'])
    for (const soFar of ['ab', 'abc', 'abcd', 'abcd']) {
      frames.resume()
      expect(seen.join('')).toBe(soFar)
    }
    expect(frames.waitingBytes).toBe(0)
  })

  test('a length that promises a gigabyte allocates nothing for it', () => {
    const { frames } = reading()
    const before = process.memoryUsage().arrayBuffers
    frames.push(Buffer.concat([Buffer.from('d'), int(0x4000_0000, 4), Buffer.alloc(10)]))
    frames.push(Buffer.alloc(10))
    expect(frames.waitingBytes).toBe(25)
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1_000_000)
  })

  test.each([0, 1, 3, 0x4000_0001, 0xffff_ffff])('a length of %i is malformed, whole or in pieces', (length) => {
    const bytes = Buffer.concat([Buffer.from('d'), int(length, 4), Buffer.alloc(3)])
    for (const size of [1, 8]) {
      const { frames, seen } = reading()
      const push = (): void => {
        for (let at = 0; at < bytes.length; at += size) frames.push(bytes.subarray(at, at + size))
      }
      expect(push).toThrow(expect.objectContaining({ code: 'WAL_MALFORMED' }))
      expect(seen).toEqual([])
    }
  })

  test('after the end nothing is handed over and nothing is held', () => {
    const { frames, seen } = reading()
    frames.push(Buffer.from('d\0\0'))
    frames.end()
    frames.push(frame('d', Buffer.from('late')))
    expect(seen).toEqual([])
  })
})
