/**
 * Capture: how the relay reads committed records. A capture yields pages; the relay opens each page, publishes it, and
 * says so. Two ways of reading stand behind the port: polling the table, and streaming the WAL.
 */
import type { OutgoingMessage } from '../../core/message.ts'

/** The records that one capture step yields, in an order that keeps every key's commit order. */
export interface Page {
  readonly messages: readonly OutgoingMessage[]
  /** Size of the messages together: keys, headers, payloads. */
  readonly bytes: number
  /** Whose records it holds, and no others wait before them; undefined: all shards'. */
  readonly shards?: readonly number[]
}

/**
 * One reader of the outbox, for as long as one ownership of its shards lasts. The calls come in this order, and only
 * `read` may overlap with the publishing of the page before:
 *
 *     read → open → (publish) → published → …      or      read (nothing there) → idle
 */
export interface Capture {
  /** True when the next page should be read while one is published: reading it takes a round trip. */
  readonly readsAhead: boolean
  /** Reads the next page; undefined when nothing is there now. It may run while the page before is being published. */
  read(): Promise<Page | undefined>
  /** Makes it durable that this page is about to be published. Nothing of it may be published before. */
  open(page: Page): Promise<void>
  /** Every message of the page is stored by the broker. The checkpoint may pass it. */
  published(page: Page): void
  /**
   * Called when `read` found nothing: writes what has to be written while nothing happens, and resolves when it is worth
   * reading again, or soon after the signal aborts.
   */
  idle(signal: AbortSignal): Promise<void>
  /** Makes the checkpoint say all that was published. Called last, with nothing in flight. */
  close(): Promise<void>
}
