import type { OutgoingMessage } from '../../../core/message.ts'
import type { WalPosition } from './wal-position.ts'

/** A message that `pg_logical_emit_message` wrote into the WAL. */
export interface LogicalMessage {
  /** The sender's bytes; a copy, to keep. */
  readonly content: Buffer
  readonly lsn: WalPosition
  readonly prefix: string
  /** True when it belongs to the transaction around it; false when it came on its own, whatever became of its sender's. */
  readonly transactional: boolean
}

/** The table whose rows are about to come, as the server describes it. */
export interface WalRelation {
  readonly columns: readonly string[]
  /** The table's oid: another one means that the table was made anew. */
  readonly id: number
  readonly name: string
  readonly schema: string
}

/**
 * Where decoded events go, synchronously and in the order of the WAL: for each committed transaction `onBegin`, its
 * records and messages, `onCommit`; transactions come one after the other, in commit order. A message that is not
 * transactional may come between any two. What a callback throws ends the stream with that error.
 */
export interface WalSink {
  /** A transaction begins. `commitLsn` is the commit record's position, the same as in its `onCommit`. */
  onBegin(commitLsn: WalPosition, xid: number, commitTimeMs: number): void
  /** All of the transaction has come. `endLsn` is what may be acknowledged once all of it is done. */
  onCommit(endLsn: WalPosition, commitLsn: WalPosition): void
  /**
   * The server has sent everything up to `walEnd`: once every commit before is done, this may be acknowledged. It comes
   * between records of one transaction too, and says nothing of that transaction.
   */
  onKeepalive(walEnd: WalPosition): void
  onLogicalMessage(message: LogicalMessage): void
  /**
   * A record of the outbox, with the transaction that wrote it and the size of key, payload and headers in bytes. It may be
   * kept; its payload is a view of the chunk it was read in, up to 64 KiB, so copy what is kept for long.
   */
  onMessage(message: OutgoingMessage, tx: bigint, shard: number, bytes: number): void
  onRelation(relation: WalRelation): void
}
