import type { JetStreamFault } from './error-class.ts'

const STORED = Buffer.from('{"stream":"')
const SEQ = Buffer.from('seq":')
const ERROR = Buffer.from('error"')
const QUOTE = 0x22
const ZERO = 0x30

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
  if (saysStored(data)) return 'stored'
  let answer: unknown
  try {
    answer = JSON.parse(Buffer.from(data.buffer, data.byteOffset, data.length).toString())
  } catch {
    return undefined
  }
  if (typeof answer !== 'object' || answer === null) return undefined
  const { error, seq, stream } = answer as Record<string, unknown>
  if (typeof error === 'object' && error !== null) return error
  return typeof stream === 'string' && typeof seq === 'number' && seq > 0 ? 'stored' : undefined
}

/** Byte by byte: an answer is shorter than it takes to call a search of Node's. */
function saysStored(data: Uint8Array): boolean {
  if (!stands(STORED, data, 0)) return false
  let numbered = false
  for (let at = STORED.length - 1; at < data.length; at++) {
    if (data[at] !== QUOTE) continue
    if (stands(ERROR, data, at + 1)) return false
    if (numbered || !stands(SEQ, data, at + 1)) continue
    const digit = data[at + 1 + SEQ.length] ?? 0
    if (digit <= ZERO || digit > ZERO + 9) return false
    numbered = true
  }
  return numbered
}

function stands(text: Uint8Array, data: Uint8Array, at: number): boolean {
  for (let i = 0; i < text.length; i++) if (data[at + i] !== text[i]) return false
  return true
}
