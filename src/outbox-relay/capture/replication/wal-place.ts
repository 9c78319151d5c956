/** How far a stream of the WAL is published. */
import type { WalPosition } from './wal-position.ts'

/** All before `lsn` is published and, of the transaction whose commit is at `tx`, the first `rows` changes. */
export interface WalPlace {
  readonly lsn: WalPosition
  readonly tx?: WalPosition
  readonly rows?: number
}
