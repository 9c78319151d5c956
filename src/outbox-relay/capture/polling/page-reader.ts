/** Reads one page of a delta: the select, the decoding, and the cut that bounds the page in bytes. */
import type { OutgoingMessage } from '../../../core/message.ts'
import type { PgClient } from '../../../postgres/sql.ts'
import { headersAt, timeOfUuidAt, uuidAt } from '../record-fields.ts'
import { type CopyRow, copyRows } from './copy-rows.ts'
import { PAGE_COLUMNS, type PageRequest, pageSelect, wideRowsSelect } from './page-query.ts'

/** The bounds of a page. */
export interface PageBounds {
  readonly maxMessages: number
  readonly maxBytes: number
}

/** The messages of a page, and where the next one begins. */
export interface PageRows {
  readonly messages: readonly OutgoingMessage[]
  readonly bytes: number
  /** The last `seq` of the page. */
  readonly lastSeq: bigint
  /** False when the delta holds nothing after this page. */
  readonly more: boolean
}

/** Reads the next page of the delta; undefined when it holds nothing more. */
export async function readPage(
  client: PgClient,
  schema: string,
  request: Omit<PageRequest, 'limit' | 'inlineBytes'>,
  bounds: PageBounds,
): Promise<PageRows | undefined> {
  const limit = bounds.maxMessages
  const inlineBytes = Math.floor(bounds.maxBytes / limit)
  const rows: Row[] = []
  let bytes = 0
  let cut = false
  let wide: bigint[] | undefined
  const select = pageSelect(schema, { ...request, limit, inlineBytes })
  await copyRows(client, select, PAGE_COLUMNS.length, (copied) => {
    if (cut) return
    const row = decode(copied)
    if (rows.length > 0 && bytes + row.size > bounds.maxBytes) {
      cut = true
      return
    }
    bytes += row.size
    rows.push(row)
    if (row.message === undefined) (wide ??= []).push(row.seq)
  })
  if (rows.length === 0) return undefined
  if (wide !== undefined) await fetchWide(client, schema, rows, wide)
  const last = rows[rows.length - 1] as Row
  return {
    messages: rows.map((row) => row.message as OutgoingMessage),
    bytes,
    lastSeq: last.seq,
    more: cut || rows.length === limit,
  }
}

interface Row {
  readonly seq: bigint
  readonly size: number
  /** Undefined while its wide fields have not been fetched. */
  message: OutgoingMessage | undefined
}

/** Fetches the rows that were too wide for the page. Their sizes are within the page's bytes already. */
async function fetchWide(
  client: PgClient,
  schema: string,
  rows: readonly Row[],
  wide: readonly bigint[],
): Promise<void> {
  const found = new Map<bigint, OutgoingMessage>()
  await copyRows(client, wideRowsSelect(schema, wide), PAGE_COLUMNS.length, (copied) => {
    const row = decode(copied)
    if (row.message !== undefined) found.set(row.seq, row.message)
  })
  for (const row of rows) row.message ??= found.get(row.seq)
  const missing = rows.find((row) => row.message === undefined)
  if (missing !== undefined)
    throw new Error(`the outbox record ${missing.seq} was there and is gone: it was deleted by hand`)
}

const SEQ = 0
const ROW_SIZE = 1
const ID = 2
const TOPIC = 3
const TYPE = 4
const KEY = 5
const PAYLOAD = 6
const HEADERS = 7

/** Copies a row out of the socket's buffer, which is used again once this returns. */
function decode({ chunk, start, length }: CopyRow): Row {
  const text = (field: number): string => chunk.toString('utf8', at(start, field), at(start, field) + at(length, field))
  const seq = chunk.readBigInt64BE(at(start, SEQ))
  const size = chunk.readInt32BE(at(start, ROW_SIZE))
  if (at(length, PAYLOAD) === -1) return { seq, size, message: undefined }
  const payloadAt = at(start, PAYLOAD)
  const message: OutgoingMessage = {
    id: uuidAt(chunk, at(start, ID)),
    topic: text(TOPIC),
    key: at(length, KEY) === -1 ? null : text(KEY),
    type: text(TYPE),
    payload: Buffer.from(chunk.subarray(payloadAt, payloadAt + at(length, PAYLOAD))),
    headers: headersAt(chunk, at(start, HEADERS), at(length, HEADERS)),
    timeMs: timeOfUuidAt(chunk, at(start, ID)),
    seq: seq.toString(),
  }
  return { seq, size, message }
}

function at(offsets: readonly number[], field: number): number {
  return offsets[field] as number
}
