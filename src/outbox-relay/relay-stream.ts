/**
 * A term that streams the WAL, by one owner of all shards.
 *
 *     judge the checkpoint, slot and publication
 *       they fit                → stream
 *       they do not             → poll from the last marker, make the slot meanwhile
 *                                 → once a later look is published, write the slot's place → stream
 *
 * Why nothing is lost on the way back: what the first look after the slot was made does not see commits after the slot's
 * place, so the stream has it; what it sees, polling has published, and the stream leaves it out.
 *
 * A stream that fails ends the term, and the next one judges anew.
 */
import type { Capture } from './capture/capture.ts'
import type { Anchor } from './capture/polling/delta.ts'
import { type MadeSlot, makeSlot } from './capture/replication/slot-maker.ts'
import { slotName } from './capture/replication/slot-name.ts'
import { freeSlot } from './capture/replication/slot.ts'
import { streamStart } from './capture/replication/stream-start.ts'
import { StreamingCapture, type StreamingCheckpoint } from './capture/replication/streaming-capture.ts'
import type { CheckpointLog, ShardsCheckpoint } from './checkpoint-log.ts'
import type { Lease } from './lease.ts'
import { relayPages } from './relay-pages.ts'
import type { RelaySessions } from './sessions.ts'
import type { TermOptions } from './term.ts'

/** A polling capture that can say since when all is published. */
export interface SettlingCapture extends Capture {
  /** The point all before which is published for every shard, if it is one that was taken after `atMs`. */
  settledSince(atMs: number): Anchor | undefined
}

/** What it works with. */
export interface StreamTerm {
  readonly lease: Lease
  readonly log: CheckpointLog
  /** Makes a polling capture that begins at these checkpoints. */
  readonly poll: (start: readonly ShardsCheckpoint[]) => SettlingCapture
  readonly sessions: RelaySessions
}

/** How long the old owner's connection may take to end. */
const FREE_TIMEOUT_MS = 5000

/** Relays until the signal aborts; rejects with what ended it. */
export async function relayStream(options: TermOptions, term: StreamTerm, signal: AbortSignal): Promise<void> {
  const { clock, logger, schema } = options
  const sql = term.sessions.writer.client
  const slot = options.slot ?? slotName(await databaseName(sql), schema)
  const checkpoints = await term.log.load()
  const judged = await streamStart({ checkpoints, schema, slot, sql })
  const start = judged.start ?? (await catchUp(options, term, { checkpoints, slot, why: judged.hindrance }, signal))
  if (start === undefined) return
  await freeSlot({ clock, slot, sql, timeoutMs: FREE_TIMEOUT_MS })
  const reader = term.sessions.reader.client
  const capture = await StreamingCapture.open({ ...options, log: term.log, reader, slot, start })
  // A server that shuts down ends all other connections first, and waits for this one until it has caught up.
  term.sessions.writer.onLost(() => void capture.end())
  options.onCapture('replication', '')
  logger.info({ slot }, 'streaming the WAL')
  try {
    await relayPages(options, capture, term.lease, signal)
    await capture.close()
  } finally {
    await capture.end()
  }
}

/** Polls until a slot is there and all that it will not stream is published; undefined when the signal aborted first. */
async function catchUp(
  options: TermOptions,
  { lease, log, poll, sessions }: StreamTerm,
  from: { readonly checkpoints: readonly ShardsCheckpoint[]; readonly slot: string; readonly why: string },
  signal: AbortSignal,
): Promise<StreamingCheckpoint | undefined> {
  const { clock, logger, postgres, schema } = options
  const { slot, why } = from
  options.onCapture('polling', why)
  logger.warn({ slot, why }, 'polling from the last checkpoint while the replication slot is made')
  const polling = poll(from.checkpoints)
  const over = new AbortController()
  const sql = sessions.writer.client
  let made: MadeSlot | undefined
  const making = makeSlot(
    { clock, logger, pool: postgres, schema, slot, sql },
    AbortSignal.any([signal, over.signal]),
  ).then((slotMade) => void (made = slotMade))
  const settled = (): Anchor | undefined => (made === undefined ? undefined : polling.settledSince(made.atMs))
  try {
    await relayPages({ ...options, until: () => settled() !== undefined }, polling, lease, signal)
  } finally {
    over.abort()
    await making
  }
  const base = settled()
  await polling.close()
  if (made === undefined || base === undefined) return undefined
  const start: StreamingCheckpoint = { base, wal: { place: made.place, publication: made.publication } }
  await log.write(start)
  return start
}

async function databaseName(sql: RelaySessions['writer']['client']): Promise<string> {
  const { rows } = await sql.query('select current_database() as name')
  return (rows[0] as { name: string }).name
}
