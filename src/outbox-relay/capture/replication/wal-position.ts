/**
 * A position in the WAL (an LSN): a bigint, so that `<`, `===` and `>` compare it as the number it is. Text is for people
 * and for SQL only: `9/0` sorts above `10/0`.
 */
export type WalPosition = bigint

const TEXT = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/

/** Reads what `pg_lsn` prints, such as `16/B374D848`; throws a RangeError on anything else. */
export function parseWalPosition(text: string): WalPosition {
  const match = TEXT.exec(text)
  if (match === null) throw new RangeError(`not a WAL position: ${text.slice(0, 50)}`)
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`)
}

/** As `pg_lsn` prints it. */
export function formatWalPosition(position: WalPosition): string {
  return `${(position >> 32n).toString(16)}/${(position & 0xffff_ffffn).toString(16)}`.toUpperCase()
}

/** Reads 8 bytes, big end first. They must be there. */
export function readWalPosition(buffer: Buffer, offset: number): WalPosition {
  return buffer.readBigUInt64BE(offset)
}

/** Writes 8 bytes, big end first. */
export function writeWalPosition(buffer: Buffer, position: WalPosition, offset: number): void {
  buffer.writeBigUInt64BE(position, offset)
}
