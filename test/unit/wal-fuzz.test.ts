/** Bytes that no server sends. More of them: WAL_FUZZ_FRAMES=100000000. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { isMillraceError } from '../../src/core/errors.ts'
import { BackendFrames } from '../../src/outbox-relay/capture/replication/backend-frames.ts'
import { PgoutputDecoder } from '../../src/outbox-relay/capture/replication/pgoutput.ts'
import { readReport } from '../../src/outbox-relay/capture/replication/server-report.ts'
import type { WalSink } from '../../src/outbox-relay/capture/replication/wal-sink.ts'
import { seededRandom } from '../../src/testing/faults/seeded-random.ts'
import { begin, commit, insert, int, logicalMessage, relation, row } from '../support/wal-frames.ts'

const FRAMES = Number(process.env.WAL_FUZZ_FRAMES ?? 200_000)
const SEED = Number(process.env.WAL_FUZZ_SEED ?? 20_261_123)

const SOURCES: readonly Buffer[] = [
  begin(100n),
  commit(100n, 148n),
  relation(),
  insert(row()),
  insert(row({ key: null })),
  insert(row({ id: '0199a3f4-0c01-7abc-8def-0123456789ab', payload: '\\x00', seq: '7', headers: '{}' })),
  logicalMessage(true, 90n, 'millrace', Buffer.from('content')),
  logicalMessage(false, 90n, 'p', Buffer.alloc(0)),
]

/** Numbers on which length checks break. */
const EDGES = [
  0, 1, 2, 4, 7, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffb, 0xffff_ffff,
]

/** No record and no message is larger than the bytes it came from. */
class CountingSink implements WalSink {
  limit = 0
  #check(bytes: number): void {
    if (bytes > this.limit) throw new Error(`more was handed over than came: ${bytes} of ${this.limit}`)
  }
  onBegin(): void {}
  onCommit(): void {}
  onKeepalive(): void {}
  onRelation(): void {}
  onLogicalMessage({ content, prefix }: Parameters<WalSink['onLogicalMessage']>[0]): void {
    this.#check(content.length + prefix.length)
  }
  onMessage(message: Parameters<WalSink['onMessage']>[0]): void {
    this.#check(message.payload.length + message.topic.length + message.type.length + (message.key?.length ?? 0))
  }
}

function mutate(random: () => number, source: Buffer): Buffer {
  const below = (n: number): number => Math.floor(random() * n)
  let bytes = Buffer.from(source)
  for (let times = 1 + below(4); times > 0; times--) {
    const at = below(bytes.length)
    switch (below(6)) {
      case 0:
        bytes[at] = below(256)
        break
      case 1:
        bytes[at] = (bytes[at] as number) ^ (1 << below(8))
        break
      case 2:
        bytes = bytes.subarray(0, at)
        break
      case 3: {
        const edge = int(EDGES[below(EDGES.length)] as number, 4)
        edge.copy(bytes, at)
        break
      }
      case 4:
        bytes = Buffer.concat([bytes.subarray(0, at), Buffer.from([below(256)]), bytes.subarray(at)])
        break
      default: {
        const other = SOURCES[below(SOURCES.length)] as Buffer
        bytes = Buffer.concat([bytes.subarray(0, at), other.subarray(below(other.length))])
      }
    }
    if (bytes.length === 0) break
  }
  return bytes
}

describe('the WAL parser under mutated bytes', () => {
  // Most frames are refused, and a stack trace takes longer than all the rest.
  const { stackTraceLimit } = Error
  beforeAll(() => void (Error.stackTraceLimit = 0))
  afterAll(() => void (Error.stackTraceLimit = stackTraceLimit))

  test('decodes or throws its own error, and reads nothing beyond the frame', { timeout: FRAMES }, () => {
    const random = seededRandom(SEED)
    const sink = new CountingSink()
    const outcomes = { accepted: 0, refused: 0 }
    // The same frame with other bytes around it must come to the same end.
    const around = [Buffer.alloc(600, 0x00), Buffer.alloc(600, 0xff)]
    for (let n = 0; n < FRAMES; n++) {
      const bytes = mutate(random, SOURCES[n % SOURCES.length] as Buffer)
      const ends = around.map((room) => {
        const decoder = new PgoutputDecoder('outbox', sink)
        sink.limit = 1000
        decoder.decode(SOURCES[2] as Buffer, 0, (SOURCES[2] as Buffer).length)
        if (n % 8 !== 0) decoder.decode(SOURCES[0] as Buffer, 0, (SOURCES[0] as Buffer).length)
        bytes.copy(room, 5)
        sink.limit = bytes.length
        try {
          decoder.decode(room, 5, 5 + bytes.length)
          return 'accepted'
        } catch (error) {
          if (!isMillraceError(error))
            throw new Error(`frame ${n}, seed ${SEED}: ${bytes.toString('hex')}`, { cause: error })
          return `${error.code}: ${error.message}`
        } finally {
          room.fill(room[0] as number, 5, 5 + bytes.length)
        }
      })
      if (ends[0] !== ends[1])
        expect.unreachable(`frame ${n}, seed ${SEED}: ${bytes.toString('hex')}: ${ends.join(' / ')}`)
      outcomes[ends[0] === 'accepted' ? 'accepted' : 'refused']++
    }
    // A fuzzer that makes only rubbish, or only good frames, tests nothing.
    expect(outcomes.accepted).toBeGreaterThan(FRAMES / 100)
    expect(outcomes.refused).toBeGreaterThan(FRAMES / 4)
  })

  test('cuts a broken stream of frames, in any chunks, without more memory than came', { timeout: FRAMES }, () => {
    const random = seededRandom(SEED + 1)
    let frames = 0
    while (frames < FRAMES / 4) {
      let handed = 0
      const reader = new BackendFrames((kind, buffer, start, end) => {
        if (start > end || end > buffer.length) throw new RangeError('a window outside its buffer')
        handed += end - start + 5
        frames++
        if (kind === 0x45) readReport(buffer, start, end)
      })
      let came = 0
      try {
        for (let part = 0; part < 20; part++) {
          frames++
          const body = mutate(random, SOURCES[part % SOURCES.length] as Buffer)
          const length = random() < 0.03 ? (EDGES[Math.floor(random() * EDGES.length)] as number) : body.length + 4
          const bytes = Buffer.concat([Buffer.from(random() < 0.5 ? 'd' : 'E'), int(length, 4), body])
          for (let at = 0; at < bytes.length;) {
            const size = 1 + Math.floor(random() * 60)
            const chunk = bytes.subarray(at, at + size)
            came += chunk.length
            reader.push(chunk)
            at += size
          }
          expect(handed + reader.waitingBytes).toBe(came)
        }
      } catch (error) {
        if (!isMillraceError(error, 'WAL_MALFORMED')) throw error
      }
    }
  })
})
