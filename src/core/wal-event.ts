/**
 * The frame of events that live in the WAL alone (`appendWalOnly`): what the producer writes with
 * `pg_logical_emit_message` and the relay reads from the stream.
 *
 *     frame  = version (1 byte, 1) event*
 *     event  = length of meta (4 bytes, big end first), meta (JSON, UTF-8), length of payload (4 bytes), payload
 *     meta   = { id, topic, key, type, headers }
 */
import { MillraceError } from './errors.ts'
import { isUuid, timeOfId } from './ids.ts'
import type { Headers, OutgoingMessage } from './message.ts'

/** The prefix of the logical messages, before the name of the outbox's schema. */
export const WAL_EVENT_PREFIX = 'millrace-event:'

/** What a frame holds of one event. */
export interface WalEvent {
  readonly id: string
  readonly topic: string
  readonly key: string | null
  readonly type: string
  readonly payload: Buffer
  /** A JSON object of strings. */
  readonly headers: string
}

/** An event of a frame, and its size. */
export interface DecodedWalEvent {
  readonly bytes: number
  readonly message: OutgoingMessage
}

const VERSION = 1

/** Puts events into one frame. */
export function encodeWalEvents(events: readonly WalEvent[]): Buffer {
  const parts: Buffer[] = [Buffer.of(VERSION)]
  for (const { id, topic, key, type, headers, payload } of events) {
    const fields = JSON.stringify({ id, topic, key, type })
    const meta = Buffer.from(`${fields.slice(0, -1)},"headers":${headers}}`)
    const lengths = Buffer.alloc(8)
    lengths.writeUInt32BE(meta.length, 0)
    lengths.writeUInt32BE(payload.length, 4)
    parts.push(lengths.subarray(0, 4), meta, lengths.subarray(4), payload)
  }
  return Buffer.concat(parts)
}

/**
 * Takes a frame apart; the payloads are views of it. `position` is the transaction's place in the WAL, which stands for
 * the `seq` that such an event has not.
 *
 * @throws MillraceError WAL_MALFORMED: somebody else writes messages under the prefix.
 */
export function decodeWalEvents(frame: Buffer, position: bigint): DecodedWalEvent[] {
  const events: DecodedWalEvent[] = []
  if (frame[0] !== VERSION) throw malformed('an unknown version')
  const seq = position.toString()
  let offset = 1
  const field = (): Buffer => {
    if (frame.length - offset < 4) throw malformed('a length that is cut off')
    const length = frame.readUInt32BE(offset)
    offset += 4
    if (length > frame.length - offset) throw malformed('a field that overruns it')
    offset += length
    return frame.subarray(offset - length, offset)
  }
  while (offset < frame.length) {
    const metaBytes = field()
    const payload = field()
    const { id, topic, key, type, headers } = readMeta(metaBytes)
    const message = { id, topic, key, type, payload, headers, timeMs: timeOfId(id) ?? 0, seq }
    events.push({ message, bytes: metaBytes.length + payload.length })
  }
  return events
}

type Meta = Omit<OutgoingMessage, 'payload' | 'seq' | 'timeMs'>

function readMeta(bytes: Buffer): Meta {
  let meta: Partial<Meta> | null
  try {
    meta = JSON.parse(bytes.toString()) as typeof meta
  } catch {
    throw malformed('a meta part that is no JSON')
  }
  const { id, topic, key, type, headers } = meta ?? {}
  const named = typeof id === 'string' && isUuid(id) && isName(topic) && isName(type)
  const keyed = key === null || (typeof key === 'string' && !key.includes('\0'))
  if (!named || !keyed || !areHeaders(headers))
    throw malformed('an event without a usable id, topic, key, type or headers')
  return { id, topic, key, type, headers: Object.assign(Object.create(null) as object, headers) as Headers }
}

function isName(name: unknown): name is string {
  return typeof name === 'string' && name !== '' && !name.includes('\0')
}

function areHeaders(headers: unknown): headers is Headers {
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers)) return false
  return Object.values(headers).every((value) => typeof value === 'string')
}

function malformed(what: string): MillraceError {
  return new MillraceError(
    'WAL_MALFORMED',
    `a logical message under the prefix ${WAL_EVENT_PREFIX} has ${what}: only appendWalOnly may write such messages`,
  )
}
