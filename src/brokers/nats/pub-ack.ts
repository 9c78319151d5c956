import type { JetStreamFault } from './error-class.ts'

const STORED = Buffer.from('{"stream":"')
const SEQ = Buffer.from('"seq":')
const ZERO = 0x30
const ERROR = Buffer.from('"error"')

/**
 * Reads the answer to a publish: `stored`, the server's fault, or `undefined` for what is no answer of JetStream (a
 * plain subscriber of the subject replied).
 *
 * The answer to a stored message is looked at and not parsed: it begins with its stream, has a `"seq"` and no
 * `"error"`. A
 * duplicate says `"duplicate": true` and is stored, too. All else is parsed.
 *
 * A stream counts from 1. A replicated one may call a message a duplicate of what it has only noted, under the number 0:
 * that is no answer.
 */
export function readPubAck(data: Uint8Array): 'stored' | JetStreamFault | undefined {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.length)
  const begins = bytes.subarray(0, STORED.length).equals(STORED)
  const seqAt = begins ? bytes.indexOf(SEQ, STORED.length) : -1
  const first = seqAt < 0 ? undefined : bytes[seqAt + SEQ.length]
  if (first !== undefined && first > ZERO && first <= ZERO + 9 && !bytes.includes(ERROR)) return 'stored'
  let answer: unknown
  try {
    answer = JSON.parse(bytes.toString())
  } catch {
    return undefined
  }
  if (typeof answer !== 'object' || answer === null) return undefined
  const { error, seq, stream } = answer as Record<string, unknown>
  if (typeof error === 'object' && error !== null) return error
  return typeof stream === 'string' && typeof seq === 'number' && seq > 0 ? 'stored' : undefined
}
