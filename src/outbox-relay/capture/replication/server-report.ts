/** What the server says of errors and notices, and what it means for a stream or a slot. */
import { MillraceError, isMillraceError } from '../../../core/errors.ts'

/** An ErrorResponse or a NoticeResponse. */
export interface ServerReport {
  readonly detail: string | undefined
  readonly hint: string | undefined
  readonly message: string
  /** Never translated, unlike the message. */
  readonly sqlstate: string
}

/**
 * What is wrong with the slot, by SQLSTATE:
 * - `missing` (42704): no slot of this name.
 * - `in-use` (55006): another walsender holds it.
 * - `lost` (55000): it is invalidated, or of another kind or database, or `wal_level` is too low; `readSlot` says which.
 * - `forbidden` (42501, 28000, 28P01): the role may not replicate, or pg_hba.conf lets it not in.
 * - `full` (53300, 53400): no walsender or no slot is free.
 */
export type SlotTrouble = 'forbidden' | 'full' | 'in-use' | 'lost' | 'missing'

const TROUBLES: Readonly<Record<string, SlotTrouble>> = {
  '28000': 'forbidden',
  '28P01': 'forbidden',
  '42501': 'forbidden',
  '42704': 'missing',
  '53300': 'full',
  '53400': 'full',
  '55000': 'lost',
  '55006': 'in-use',
}

const FIXES: Readonly<Record<SlotTrouble, string>> = {
  forbidden: 'grant it: alter role … replication, and let it in by pg_hba.conf',
  full: 'raise max_wal_senders and max_replication_slots, or drop slots that nobody uses',
  'in-use': 'another relay, or an old connection of this one, still reads it; it is tried again',
  lost: 'look at it in pg_replication_slots; it is made anew from the last marker',
  missing: 'it is made anew from the last marker',
}

const UNDEFINED_OBJECT = '42704'
const WRONG_STATE = '55000'

/** Reads the fields of an ErrorResponse or NoticeResponse in [start, end). */
export function readReport(buffer: Buffer, start: number, end: number): ServerReport {
  const fields: Record<string, string> = Object.create(null) as Record<string, string>
  let at = start
  while (at < end && buffer[at] !== 0) {
    const zero = buffer.indexOf(0, at + 1)
    const stop = zero === -1 || zero > end ? end : zero
    fields[String.fromCharCode(buffer[at] as number)] = buffer.toString('utf8', at + 1, stop)
    at = stop + 1
  }
  return { detail: fields.D, hint: fields.H, message: fields.M ?? 'no message', sqlstate: fields.C ?? '' }
}

/** The error when the server refused to stream, or to make or drop a slot. */
export function refused(report: ServerReport, slot: string): MillraceError {
  if (isShutdown(report.sqlstate)) return connectionEnded(report)
  const trouble = TROUBLES[report.sqlstate]
  const fix = trouble === undefined ? '' : `: ${FIXES[trouble]}`
  return new MillraceError(
    'REPLICATION_FAILED',
    `replication slot ${slot}: the server says "${textOf(report)}"${fix}`,
    {
      details: { slot, sqlstate: report.sqlstate, trouble },
    },
  )
}

/** The error when the server ended a stream that was running. */
export function streamBroken(report: ServerReport, slot: string): MillraceError {
  // PostgreSQL up to 17 looks the publication up when the first row comes, and that is the only name it looks up.
  if (report.sqlstate === UNDEFINED_OBJECT) return publicationMissing(report)
  return refused(report, slot)
}

/** Any notice ends a stream: PostgreSQL 18 goes on without the publication, and skips its rows, with a notice only. */
export function noticeIsFatal(report: ServerReport, slot: string): MillraceError {
  if (report.sqlstate === WRONG_STATE || report.sqlstate === UNDEFINED_OBJECT) return publicationMissing(report)
  return new MillraceError(
    'REPLICATION_FAILED',
    `replication slot ${slot}: the server warns "${textOf(report)}"; a stream that is warned of is not trusted, and is opened anew`,
    { details: { slot, sqlstate: report.sqlstate } },
  )
}

/** What is wrong with the slot, if that is what the error says. */
export function slotTrouble(error: unknown): SlotTrouble | undefined {
  return isMillraceError(error, 'REPLICATION_FAILED') ? (error.details.trouble as SlotTrouble | undefined) : undefined
}

function publicationMissing(report: ServerReport): MillraceError {
  return new MillraceError(
    'PUBLICATION_MISSING',
    `the publication is not there: the server says "${textOf(report)}". Create it; what was written meanwhile is read from the table`,
    { details: { sqlstate: report.sqlstate } },
  )
}

function connectionEnded(report: ServerReport): MillraceError {
  return new MillraceError('CONNECTION_LOST', `Postgres ended the replication connection: "${textOf(report)}"`, {
    details: { sqlstate: report.sqlstate },
  })
}

/** 57P01 to 57P05: shutdown, crash of another backend, starting up, database dropped, idle; and 08xxx. */
function isShutdown(sqlstate: string): boolean {
  return sqlstate.startsWith('57P') || sqlstate.startsWith('08')
}

function textOf(report: ServerReport): string {
  return report.detail === undefined ? report.message : `${report.message} (${report.detail})`
}
