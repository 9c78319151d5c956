/**
 * The message on the wire. Millrace's own headers stand under one prefix; `traceparent`, `tracestate` and the user's
 * headers stand bare, so any plain client can read them. The names are a contract: they change only with a changelog
 * entry.
 */
import type { Headers, Message, OutgoingMessage } from './message.ts'

/** The prefix that belongs to Millrace. A user's header may not begin with it. */
export const HEADER_PREFIX = 'millrace-'

/** The headers Millrace adds to each message. */
export const HEADER = {
  /** Event id. */
  id: 'millrace-id',
  /** Event type. */
  type: 'millrace-type',
  /** Key, on brokers that have none of their own. */
  key: 'millrace-key',
  /** Append time, ISO 8601 with milliseconds, UTC. */
  time: 'millrace-time',
  /** Position in the outbox it came from. */
  seq: 'millrace-seq',
} as const

/** Calls `set` for every header of the message, Millrace's first. The key is left to the adapter. */
export function writeHeaders(message: OutgoingMessage, set: (name: string, value: string) => void): void {
  set(HEADER.id, message.id)
  set(HEADER.type, message.type)
  if (message.timeMs > 0) set(HEADER.time, isoTime(message.timeMs))
  set(HEADER.seq, message.seq)
  for (const name in message.headers) set(name, message.headers[name] as string)
}

let isoSecond = -1
let isoPrefix = ''

/** As `Date.toISOString`, which is the dearest part of a header: of messages of one second only the digits differ. */
function isoTime(timeMs: number): string {
  const second = Math.floor(timeMs / 1000)
  if (second !== isoSecond) {
    isoPrefix = new Date(second * 1000).toISOString().slice(0, 20)
    isoSecond = second
  }
  return `${isoPrefix}${String(timeMs - second * 1000).padStart(3, '0')}Z`
}

/** What {@link readHeaders} finds. `id` and `type` are undefined on a message that Millrace did not write. */
export interface WireHeaders extends Pick<Message, 'headers' | 'timeMs'> {
  readonly id: string | undefined
  readonly type: string | undefined
  readonly key: string | undefined
}

/** Splits the headers of a received message into Millrace's own and the user's. Names are matched exactly. */
export function readHeaders(entries: Iterable<readonly [name: string, value: string]>): WireHeaders {
  const headers: Record<string, string> = Object.create(null) as Record<string, string>
  let id: string | undefined
  let type: string | undefined
  let key: string | undefined
  let timeMs = 0
  for (const [name, value] of entries) {
    if (name === HEADER.id) id = value
    else if (name === HEADER.type) type = value
    else if (name === HEADER.key) key = value
    else if (name === HEADER.time) timeMs = Date.parse(value) || 0
    else if (!name.startsWith(HEADER_PREFIX)) headers[name] = value
  }
  return { id, type, key, timeMs, headers: headers as Headers }
}
