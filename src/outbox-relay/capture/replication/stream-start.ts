/** Whether the stream may go on from the checkpoint. Anything that does not fit leads back to polling, never past a gap. */
import type { Sql } from '../../../postgres/sql.ts'
import type { ShardsCheckpoint } from '../../checkpoint-log.ts'
import { readFingerprint } from './publication.ts'
import { readSlot } from './slot.ts'
import type { StreamingCheckpoint } from './streaming-capture.ts'
import { formatWalPosition } from './wal-position.ts'

/** What the judgement needs. */
export interface StreamStartOptions {
  readonly checkpoints: readonly ShardsCheckpoint[]
  readonly schema: string
  readonly slot: string
  readonly sql: Sql
}

/** Where the stream goes on, or why it may not. */
export type StreamStart =
  | { readonly start: StreamingCheckpoint; readonly hindrance?: undefined }
  | { readonly start?: undefined; readonly hindrance: string }

/** Reads slot and publication and compares them with the checkpoint. */
export async function streamStart({ checkpoints, schema, slot, sql }: StreamStartOptions): Promise<StreamStart> {
  const checkpoint = checkpoints.length === 1 ? checkpoints[0]?.checkpoint : undefined
  const { base, wal } = checkpoint ?? {}
  if (base === undefined || wal === undefined) {
    return { hindrance: 'the checkpoint has no place in the WAL yet' }
  }
  if ((await readFingerprint(sql, schema)) !== wal.publication) {
    return { hindrance: 'the publication is missing, or was changed since the last checkpoint' }
  }
  const state = await readSlot(sql, slot)
  if (state === undefined) return { hindrance: `the replication slot ${slot} is missing` }
  if (state.lost)
    return { hindrance: `the replication slot ${slot} is lost: ${state.invalidationReason ?? 'its WAL is gone'}` }
  const { confirmedFlushLsn: confirmed, database, plugin } = state
  if (plugin !== 'pgoutput' || confirmed === undefined || !(await isOurs(sql, database))) {
    return { hindrance: `the replication slot ${slot} is not the relay's` }
  }
  // The relay never acknowledges what it has not written first.
  if (confirmed > wal.place.lsn) {
    const places = `${formatWalPosition(confirmed)} and not at ${formatWalPosition(wal.place.lsn)} or before`
    return { hindrance: `the replication slot ${slot} stands at ${places}: it was made anew, or moved` }
  }
  return { start: { base, wal } }
}

async function isOurs(sql: Sql, database: string | undefined): Promise<boolean> {
  const { rows } = await sql.query('select current_database() as name')
  return (rows[0] as { name: string }).name === database
}
