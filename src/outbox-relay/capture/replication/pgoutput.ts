/**
 * Decodes pgoutput, the messages of logical replication: protocol version 1 or 2 with `streaming` off, tuples in binary
 * (or text, field by field). It reads in place, in a window of the caller's buffer. A record's payload is a view of that
 * buffer, which therefore must not be used again (measured: a copy of 1 KB, and its garbage, are a quarter of our time).
 *
 * Every length is checked against the window before it is used, and nothing is allocated by a length alone: what is
 * taken is there. Anything malformed throws WAL_MALFORMED.
 *
 * The transaction's state is checked too: B … C brackets, rows and transactional messages inside only.
 */
import type { OutgoingMessage } from '../../../core/message.ts'
import { headersAt, timeOfUuidAt, uuidAt } from '../record-fields.ts'
import { type RecordColumns, type RelationColumn, publicationInvalid, recordColumns } from './record-columns.ts'
import { fieldInBinary } from './text-fields.ts'
import { walMalformed } from './wal-malformed.ts'
import { type WalPosition, readWalPosition } from './wal-position.ts'
import type { WalSink } from './wal-sink.ts'

const BEGIN = 0x42
const COMMIT = 0x43
const DELETE = 0x44
const INSERT = 0x49
const MESSAGE = 0x4d
const ORIGIN = 0x4f
const RELATION = 0x52
const TRUNCATE = 0x54
const TYPE = 0x59
const UPDATE = 0x55

const TUPLE_NEW = 0x4e
const KIND_BINARY = 0x62
const KIND_NULL = 0x6e
const KIND_TEXT = 0x74
const KIND_UNCHANGED = 0x75

const ABSENT = -1
const UNCHANGED = -2

/** The moment that Postgres counts from, 2000-01-01, in milliseconds since the Unix epoch. */
export const POSTGRES_EPOCH_MS = 946_684_800_000

/** A table has at most so many columns. */
const MAX_COLUMNS = 1664

/** So many tables are remembered: ours, as often as it was made anew, and others. */
const MAX_RELATIONS = 64

/** Decodes one message at a time into the sink. */
export class PgoutputDecoder {
  readonly #schema: string
  readonly #sink: WalSink
  readonly #relations = new Map<number, RecordColumns>()
  /** Tables that are not ours: a row of one of them is an error. */
  readonly #foreign = new Map<number, { readonly name: string; readonly schema: string }>()
  #relation = -1
  #columns: RecordColumns | undefined
  /** Where each field of the tuple at hand lies; its length, ABSENT or UNCHANGED. */
  #start = new Int32Array(16)
  #length = new Int32Array(16)
  #inTransaction = false
  #commitLsn: WalPosition = 0n
  // The last transaction id and the last two names: rows that follow one another mostly repeat them.
  #txHigh = 0
  #txLow = 0
  #tx = 0n
  readonly #topic = new RepeatedText()
  readonly #type = new RepeatedText()

  /** Only rows of `schema`.record are decoded; any other table in the publication is an error. */
  constructor(schema: string, sink: WalSink) {
    this.#schema = schema
    this.#sink = sink
  }

  /** True between a begin and its commit. */
  get inTransaction(): boolean {
    return this.#inTransaction
  }

  /** Decodes the message in [start, end). */
  decode(buffer: Buffer, start: number, end: number): void {
    if (start >= end) throw walMalformed('an empty message')
    const kind = buffer[start] as number
    switch (kind) {
      case INSERT:
        return this.#insert(buffer, start + 1, end)
      case BEGIN:
        return this.#begin(buffer, start + 1, end)
      case COMMIT:
        return this.#commit(buffer, start + 1, end)
      case RELATION:
        return this.#describe(buffer, start + 1, end)
      case MESSAGE:
        return this.#logicalMessage(buffer, start + 1, end)
      case DELETE:
      case TRUNCATE:
      case UPDATE:
      case ORIGIN:
      case TYPE:
        // The publication has inserts only, one table, and built-in types; where a row was first written does not matter.
        return
      default:
        throw walMalformed('a message of unknown kind', { kind })
    }
  }

  #begin(buffer: Buffer, at: number, end: number): void {
    if (end - at !== 20) throw walMalformed('a begin of the wrong length', { length: end - at })
    if (this.#inTransaction) throw walMalformed('a begin inside a transaction')
    this.#inTransaction = true
    this.#commitLsn = readWalPosition(buffer, at)
    const timeMs = POSTGRES_EPOCH_MS + Math.floor(Number(buffer.readBigInt64BE(at + 8)) / 1000)
    this.#sink.onBegin(this.#commitLsn, buffer.readUInt32BE(at + 16), timeMs)
  }

  #commit(buffer: Buffer, at: number, end: number): void {
    if (end - at !== 25) throw walMalformed('a commit of the wrong length', { length: end - at })
    if (!this.#inTransaction) throw walMalformed('a commit outside a transaction')
    const commitLsn = readWalPosition(buffer, at + 1)
    const endLsn = readWalPosition(buffer, at + 9)
    if (commitLsn !== this.#commitLsn || endLsn < commitLsn) throw walMalformed('a commit that does not fit its begin')
    this.#inTransaction = false
    this.#sink.onCommit(endLsn, commitLsn)
  }

  #describe(buffer: Buffer, start: number, end: number): void {
    if (end - start < 4) throw walMalformed('a relation that is cut off')
    const id = buffer.readUInt32BE(start)
    let at = start + 4
    const schemaEnd = zeroIn(buffer, at, end)
    // An empty schema name stands for pg_catalog.
    const schema = buffer.toString('utf8', at, schemaEnd)
    at = schemaEnd + 1
    const nameEnd = zeroIn(buffer, at, end)
    const name = buffer.toString('utf8', at, nameEnd)
    // The replica identity, then the number of columns.
    at = nameEnd + 2
    if (end - at < 2) throw walMalformed('a relation that is cut off')
    const count = buffer.readUInt16BE(at)
    at += 2
    // A column takes ten bytes at least.
    if (count > MAX_COLUMNS || count * 10 > end - at) throw walMalformed('a relation of too many columns', { count })
    const columns: RelationColumn[] = []
    for (let i = 0; i < count; i++) {
      const columnEnd = zeroIn(buffer, at + 1, end)
      if (end - columnEnd < 9) throw walMalformed('a relation that is cut off')
      columns.push({ name: buffer.toString('utf8', at + 1, columnEnd), type: buffer.readUInt32BE(columnEnd + 1) })
      at = columnEnd + 9
    }
    if (at !== end) throw walMalformed('a relation with bytes behind it')
    if (schema !== this.#schema || name !== 'record') {
      // Before the first row of a partition the server describes the table, and then the partition.
      if (this.#foreign.size >= MAX_RELATIONS) this.#foreign.clear()
      this.#foreign.set(id, { name, schema })
      return
    }
    if (count > this.#start.length) {
      this.#start = new Int32Array(count)
      this.#length = new Int32Array(count)
    }
    const placed = recordColumns(schema, columns)
    if (this.#relations.size >= MAX_RELATIONS) this.#relations.clear()
    this.#relations.set(id, placed)
    this.#relation = id
    this.#columns = placed
    this.#sink.onRelation({ columns: columns.map((column) => column.name), id, name, schema })
  }

  /** A row of something else than the outbox, as far as the publication shows it. */
  #stranger(relation: number): Error {
    const foreign = this.#foreign.get(relation)
    if (foreign === undefined) return walMalformed('a row of a table that was not described', { relation })
    const partition = foreign.schema === this.#schema && foreign.name.startsWith('record_')
    return publicationInvalid(
      partition
        ? `the publication shows the partition ${foreign.name} and not the table: alter publication … set (publish_via_partition_root = true)`
        : `the publication holds another table than the outbox: drop that table from it, or give the relay a publication of its own`,
      { schema: foreign.schema, table: foreign.name },
    )
  }

  #logicalMessage(buffer: Buffer, start: number, end: number): void {
    if (end - start < 9) throw walMalformed('a logical message that is cut off')
    const flags = buffer[start] as number
    if (flags > 1) throw walMalformed('a logical message of unknown flags', { flags })
    const transactional = flags === 1
    if (transactional && !this.#inTransaction) throw walMalformed('a transactional message outside a transaction')
    const lsn = readWalPosition(buffer, start + 1)
    const prefixEnd = zeroIn(buffer, start + 9, end)
    const at = prefixEnd + 5
    if (at > end || buffer.readUInt32BE(prefixEnd + 1) !== end - at)
      throw walMalformed('a logical message of the wrong length')
    this.#sink.onLogicalMessage({
      content: Buffer.from(buffer.subarray(at, end)),
      lsn,
      prefix: buffer.toString('utf8', start + 9, prefixEnd),
      transactional,
    })
  }

  #insert(buffer: Buffer, at: number, end: number): void {
    if (end - at < 7) throw walMalformed('an insert that is cut off')
    const columns = this.#columnsOf(buffer.readUInt32BE(at))
    if (!this.#inTransaction) throw walMalformed('a row outside a transaction')
    if (buffer[at + 4] !== TUPLE_NEW) throw walMalformed('an insert without a new row')
    if (buffer.readUInt16BE(at + 5) !== columns.count) throw walMalformed('a row of another shape than its table')
    const textual = this.#locate(buffer, at + 7, end, columns.count)
    if (textual === undefined) this.#record(buffer, columns)
    else this.#convert(buffer, columns, textual)
  }

  #columnsOf(relation: number): RecordColumns {
    if (relation !== this.#relation || this.#columns === undefined) {
      const known = this.#relations.get(relation)
      if (known === undefined) throw this.#stranger(relation)
      this.#relation = relation
      this.#columns = known
    }
    return this.#columns
  }

  /** Finds the tuple's fields; returns which of them are text, if any are. */
  #locate(buffer: Buffer, from: number, end: number, count: number): number[] | undefined {
    const start = this.#start
    const length = this.#length
    let textual: number[] | undefined
    let at = from
    for (let i = 0; i < count; i++) {
      if (at >= end) throw walMalformed('a row that is cut off')
      const kind = buffer[at++]
      if (kind === KIND_BINARY || kind === KIND_TEXT) {
        if (end - at < 4) throw walMalformed('a row that is cut off')
        const bytes = buffer.readInt32BE(at)
        at += 4
        if (bytes < 0 || bytes > end - at) throw walMalformed('a field that overruns its row', { bytes })
        start[i] = at
        length[i] = bytes
        at += bytes
        if (kind === KIND_TEXT) (textual ??= []).push(i)
      } else if (kind === KIND_NULL) {
        length[i] = ABSENT
      } else if (kind === KIND_UNCHANGED) {
        length[i] = UNCHANGED
      } else {
        throw walMalformed('a field of unknown kind', { kind })
      }
    }
    if (at !== end) throw walMalformed('a row with bytes behind it')
    return textual
  }

  /** Writes the row anew with its text fields in binary. A server sends text only for a type without a binary form. */
  #convert(buffer: Buffer, columns: RecordColumns, textual: readonly number[]): void {
    const parts = [buffer]
    let size = buffer.length
    for (const field of textual) {
      const name = nameOf(columns, field)
      if (name === undefined) continue
      const from = this.#start[field] as number
      const binary = fieldInBinary(name, buffer.toString('utf8', from, from + (this.#length[field] as number)))
      this.#start[field] = size
      this.#length[field] = binary.length
      size += binary.length
      parts.push(binary)
    }
    this.#record(Buffer.concat(parts, size), columns)
  }

  #record(buffer: Buffer, columns: RecordColumns): void {
    const start = this.#start
    const length = this.#length
    const idAt = this.#fixed(columns.id, 16)
    const txAt = this.#fixed(columns.tx, 8)
    const seqAt = this.#fixed(columns.seq, 8)
    const shardAt = this.#fixed(columns.shard, 2)
    const payloadLength = this.#present(columns.payload)
    const payloadAt = start[columns.payload] as number
    const headersLength = this.#present(columns.headers)
    const headersStart = start[columns.headers] as number
    if (headersLength < 1 || buffer[headersStart] !== 1) throw walMalformed('headers that are not jsonb')
    const keyLength = length[columns.key] as number
    if (keyLength === UNCHANGED) throw walMalformed('an insert that leaves out a value')
    const keyAt = start[columns.key] as number
    const message: OutgoingMessage = {
      id: uuidAt(buffer, idAt),
      topic: this.#topic.read(buffer, start[columns.topic] as number, this.#present(columns.topic)),
      key: keyLength === ABSENT ? null : buffer.toString('utf8', keyAt, keyAt + keyLength),
      type: this.#type.read(buffer, start[columns.type] as number, this.#present(columns.type)),
      payload: buffer.subarray(payloadAt, payloadAt + payloadLength),
      headers: headersOf(buffer, headersStart, headersLength),
      timeMs: timeOfUuidAt(buffer, idAt),
      seq: int64Text(buffer, seqAt),
    }
    const bytes = payloadLength + headersLength - 1 + (keyLength === ABSENT ? 0 : keyLength)
    this.#sink.onMessage(message, this.#txAt(buffer, txAt), buffer.readInt16BE(shardAt), bytes)
  }

  /** The length of a field that is never null. */
  #present(field: number): number {
    const length = this.#length[field] as number
    if (length < 0) throw walMalformed('a record without a value that every record has', { field })
    return length
  }

  /** The place of a field of a known length. */
  #fixed(field: number, length: number): number {
    if (this.#length[field] !== length) throw walMalformed('a field of the wrong length', { field })
    return this.#start[field] as number
  }

  #txAt(buffer: Buffer, at: number): bigint {
    const high = buffer.readUInt32BE(at)
    const low = buffer.readUInt32BE(at + 4)
    if (high !== this.#txHigh || low !== this.#txLow) {
      this.#txHigh = high
      this.#txLow = low
      this.#tx = (BigInt(high) << 32n) | BigInt(low)
    }
    return this.#tx
  }
}

/** Text that is mostly the same from row to row: it is made once and compared byte by byte. */
class RepeatedText {
  readonly #bytes = Buffer.alloc(128)
  #length = -1
  #text = ''

  read(buffer: Buffer, start: number, length: number): string {
    if (length === this.#length) {
      const bytes = this.#bytes
      let i = 0
      while (i < length && buffer[start + i] === bytes[i]) i++
      if (i === length) return this.#text
    }
    const text = buffer.toString('utf8', start, start + length)
    if (length <= this.#bytes.length) {
      buffer.copy(this.#bytes, 0, start, start + length)
      this.#length = length
      this.#text = text
    }
    return text
  }
}

function headersOf(buffer: Buffer, start: number, length: number): OutgoingMessage['headers'] {
  try {
    return headersAt(buffer, start, length)
  } catch (cause) {
    // Its message quotes the text, which is the user's.
    throw walMalformed(`headers that are not JSON: ${(cause as Error).name}`)
  }
}

function int64Text(buffer: Buffer, at: number): string {
  const high = buffer.readInt32BE(at)
  return high >= 0 && high < 0x20_0000
    ? String(high * 0x1_0000_0000 + buffer.readUInt32BE(at + 4))
    : buffer.readBigInt64BE(at).toString()
}

/** The offset of the next zero byte, which ends a string. */
function zeroIn(buffer: Buffer, start: number, end: number): number {
  for (let at = start; at < end; at++) if (buffer[at] === 0) return at
  throw walMalformed('a name without an end')
}

function nameOf(columns: RecordColumns, field: number): Exclude<keyof RecordColumns, 'count'> | undefined {
  const found = Object.entries(columns).find(([name, at]) => name !== 'count' && at === field)
  return found?.[0] as Exclude<keyof RecordColumns, 'count'> | undefined
}
