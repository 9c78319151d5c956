/**
 * A term that streams the WAL, by one owner of all shards.
 *
 *     judge the checkpoint, slot and publication
 *       they fit                → stream
 *       they do not             → poll from the last marker, make the slot meanwhile
 *                                 → once a later look is published, write the slot's place → stream
 *     the stream does not open, or failed again and again
 *                               → poll for a while, the slot keeps its place → judge again
 *
 * Why nothing is lost on the way back: the look that streaming begins with sees every transaction that had an id when the
 * slot was there. What it does not see got its id later and commits after the slot's place, so the stream has it; what it
 * sees, polling has published, and the stream leaves it out. A stream that breaks ends the term, and the next one judges
 * anew.
 */
import { delay } from '../core/clock.ts'
import type { Capture } from './capture/capture.ts'
import type { Anchor } from './capture/polling/delta.ts'
import { warnOfLeftoverSlot } from './capture/replication/leftover-slot.ts'
import { type MadeSlot, makeSlot } from './capture/replication/slot-maker.ts'
import { slotName } from './capture/replication/slot-name.ts'
import { freeSlot, readSlot } from './capture/replication/slot.ts'
import { streamStart } from './capture/replication/stream-start.ts'
import { StreamingCapture, type StreamingCheckpoint } from './capture/replication/streaming-capture.ts'
import type { Checkpoint, CheckpointLog, ShardsCheckpoint } from './checkpoint-log.ts'
import type { Lease } from './lease.ts'
import { relayPages } from './relay-pages.ts'
import type { RelaySessions } from './sessions.ts'
import type { JoinedTermOptions } from './term.ts'

/** A polling capture that can say since when all is published. */
export interface SettlingCapture extends Capture {
  /** The point all before which is published for every shard, if every transaction up to `xid` had ended there. */
  settledPast(xid: bigint): Anchor | undefined
}

/** What it works with. */
export interface StreamTerm {
  readonly lease: Lease
  readonly log: CheckpointLog
  /** Makes a polling capture that begins at these checkpoints; what it writes keeps the place in the WAL, if one is given. */
  readonly poll: (start: readonly ShardsCheckpoint[], keep?: Checkpoint['wal']) => SettlingCapture
  readonly sessions: RelaySessions
}

/** What one relay remembers of its streams from term to term. */
export interface StreamMemory {
  /** Streams in a row that broke before they published anything. */
  broken: number
}

/** How long the old owner's connection may take to end. */
const FREE_TIMEOUT_MS = 5000

/** So many broken streams in a row, and the relay polls for a while. */
const PATIENCE = 3

/** How long it polls before it tries to stream again. */
const ASIDE_MS = 10_000

/** Relays until the signal aborts; rejects with what ended it. */
export async function relayStream(
  options: JoinedTermOptions,
  term: StreamTerm,
  memory: StreamMemory,
  signal: AbortSignal,
): Promise<void> {
  const { schema } = options
  const sql = term.sessions.writer.client
  const slot = options.slot ?? slotName(await databaseName(sql), schema)
  while (!signal.aborted) {
    // What it refuses is said before the relay calls itself at work.
    const checkpoints = await term.log.load()
    options.onState('relaying', term.lease.epoch, term.lease.shards)
    const judged = await streamStart({ checkpoints, schema, slot, sql })
    const start = judged.start ?? (await catchUp(options, term, { checkpoints, slot, why: judged.hindrance }, signal))
    if (start === undefined) return
    const why =
      memory.broken < PATIENCE
        ? await stream(options, term, { memory, slot, start }, signal)
        : 'the stream broke again and again'
    if (why === undefined) return
    memory.broken = 0
    await pollAside(options, term, { start, why }, signal)
  }
}

/** Streams until the signal aborts; returns why when the stream does not open. */
async function stream(
  options: JoinedTermOptions,
  { lease, log, sessions }: StreamTerm,
  {
    memory,
    slot,
    start,
  }: { readonly memory: StreamMemory; readonly slot: string; readonly start: StreamingCheckpoint },
  signal: AbortSignal,
): Promise<string | undefined> {
  const { clock } = options
  let capture: StreamingCapture
  // Whoever holds the slot now may be the next owner.
  lease.assertHeld()
  try {
    await freeSlot({ clock, slot, sql: sessions.writer.client, timeoutMs: FREE_TIMEOUT_MS })
    capture = await StreamingCapture.open({ ...options, log, reader: sessions.reader.client, slot, start })
  } catch (error) {
    return (error as Error).message
  }
  const misled = await misleadingStream(sessions.writer.client, slot, { capture, start })
  if (misled !== undefined) {
    await capture.end()
    return misled
  }
  // A server that shuts down ends all other connections first, and waits for this one until it has caught up.
  sessions.writer.onLost(() => void capture.end())
  options.onCapture('replication', '')
  memory.broken++
  const onPublished: typeof options.onPublished = (...told) => {
    memory.broken = 0
    options.onPublished(...told)
  }
  try {
    await relayPages({ ...options, onPublished }, capture, lease, signal)
    await capture.close()
    return undefined
  } finally {
    await capture.end()
  }
}

/** Why the stream that has opened is not the one that was judged, if it is not: nothing of it is published then. */
async function misleadingStream(
  sql: RelaySessions['writer']['client'],
  slot: string,
  { capture, start }: { readonly capture: StreamingCapture; readonly start: StreamingCheckpoint },
): Promise<string | undefined> {
  const state = await readSlot(sql, slot).catch(async (error: unknown) => {
    await capture.end()
    throw error
  })
  if (state?.activePid !== capture.processId)
    return 'the replication connection leads to another server than the other connections, or was ended at once'
  const moved = state.confirmedFlushLsn === undefined || state.confirmedFlushLsn > start.wal.place.lsn
  return moved ? `the replication slot ${slot} was moved just now` : undefined
}

/** Polls until a slot is there and all that it will not stream is published; undefined when the signal aborted first. */
async function catchUp(
  options: JoinedTermOptions,
  { lease, log, poll, sessions }: StreamTerm,
  from: { readonly checkpoints: readonly ShardsCheckpoint[]; readonly slot: string; readonly why: string },
  signal: AbortSignal,
): Promise<StreamingCheckpoint | undefined> {
  const { clock, logger, postgres, schema } = options
  const { slot, why } = from
  options.onCapture('polling', why)
  const polling = poll(from.checkpoints)
  const over = new AbortController()
  const sql = sessions.writer.client
  let made: MadeSlot | undefined
  const making = makeSlot(
    { assertHeld: () => lease.assertHeld(), clock, logger, pool: postgres, schema, slot, sql },
    AbortSignal.any([signal, over.signal]),
  ).then((slotMade) => void (made = slotMade))
  const settled = (): Anchor | undefined => (made === undefined ? undefined : polling.settledPast(made.xid))
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

/** Polls for a while, with the slot and its place kept: what polling publishes, the stream leaves out later. */
async function pollAside(
  options: JoinedTermOptions,
  { lease, log, poll, sessions }: StreamTerm,
  { start, why }: { readonly start: StreamingCheckpoint; readonly why: string },
  signal: AbortSignal,
): Promise<void> {
  options.onCapture('polling', why)
  // Where it never comes to a stream again, the slot would fill the disk in silence.
  await warnOfLeftoverSlot(sessions.writer.client, options)
  const polling = poll(await log.load(), start.wal)
  const over = new AbortController()
  let passed = false
  const passing = delay(options.clock, ASIDE_MS, AbortSignal.any([signal, over.signal])).then(
    () => void (passed = true),
  )
  try {
    await relayPages({ ...options, until: () => passed }, polling, lease, signal)
  } finally {
    over.abort()
    await passing
  }
  await polling.close()
}

async function databaseName(sql: RelaySessions['writer']['client']): Promise<string> {
  const { rows } = await sql.query('select current_database() as name')
  return (rows[0] as { name: string }).name
}
