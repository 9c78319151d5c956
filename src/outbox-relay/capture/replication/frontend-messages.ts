/** The three messages that a stream sends, in the bytes of the protocol. */
import { POSTGRES_EPOCH_MS } from './pgoutput.ts'
import { type WalPosition, writeWalPosition } from './wal-position.ts'

/** Says goodbye. */
export const TERMINATE_MESSAGE: Buffer = Buffer.from([0x58, 0, 0, 0, 4])

/** A simple query, which is how replication commands go. */
export function queryMessage(text: string): Buffer {
  const bytes = Buffer.byteLength(text)
  const message = Buffer.alloc(bytes + 6)
  message[0] = 0x51
  message.writeUInt32BE(bytes + 5, 1)
  message.write(text, 5)
  return message
}

/** A standby status update. `acknowledged` is both what is flushed and what is applied. */
export function statusMessage(
  received: WalPosition,
  acknowledged: WalPosition,
  nowMs: number,
  replyRequested: boolean,
): Buffer {
  const message = Buffer.alloc(39)
  message[0] = 0x64
  message.writeUInt32BE(38, 1)
  message[5] = 0x72
  writeWalPosition(message, received, 6)
  writeWalPosition(message, acknowledged, 14)
  writeWalPosition(message, acknowledged, 22)
  message.writeBigInt64BE(BigInt(Math.floor((nowMs - POSTGRES_EPOCH_MS) * 1000)), 30)
  message[38] = replyRequested ? 1 : 0
  return message
}
