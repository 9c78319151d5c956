/**
 * Ways to publish events that are at hand: what the relay is compared with. Same events, same pages, the same server,
 * no outbox.
 */
import { newId } from '../../src/core/ids.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'

/** The events of a page, as the relay has them by default. */
export const PAGE = 500

/** Somebody who publishes. */
export interface PublishingWay {
  /** Publishes so many events and resolves when all are acknowledged. */
  publish(count: number): Promise<void>
  close(): Promise<void>
}

const PAYLOAD = Buffer.alloc(1000, 'Z')
const TRACE = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'

/** An event as in the backlogs, with an id of its own. */
export function event(topic: string, seq: number, keys: number): OutgoingMessage {
  return {
    headers: { traceparent: TRACE },
    id: newId(),
    key: `customer-${seq % keys}`,
    payload: PAYLOAD,
    seq: String(seq),
    timeMs: 1_790_000_000_000 + (seq >> 4),
    topic,
    type: 'order.placed',
  }
}

/** A page of them. */
export function pageOf(topic: string, from: number, keys: number): OutgoingMessage[] {
  return Array.from({ length: PAGE }, (_, i) => event(topic, from + i, keys))
}
