/**
 * Reads rows by `COPY (select …) TO STDOUT (FORMAT binary)`. A plain query through `pg` brings `bytea` as hexadecimal
 * text, twice the bytes and a decode for each row; COPY brings it as it is. Measured on 1 KB records: half of Node's
 * CPU per row and 1.5 times the rows per second of a plain cursor.
 *
 * COPY takes no parameters, so its callers put numbers they made themselves into the text, and nothing else.
 */
import type { PgClient } from '../../../postgres/sql.ts'

/** One row of a binary COPY: where each field lies in the chunk. Valid only inside the callback that receives it. */
export interface CopyRow {
  readonly chunk: Buffer
  /** Offset of each field's first byte. */
  readonly start: readonly number[]
  /** Length of each field in bytes; -1 for null. */
  readonly length: readonly number[]
}

/** `pg` runs any object of this shape in the place of a query. */
interface Submittable {
  submit(connection: { query(text: string): void }): void
}

const SIGNATURE = Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1')

class CopyQuery implements Submittable {
  readonly done: Promise<void>
  readonly #text: string
  readonly #onRow: (row: CopyRow) => void
  readonly #start: number[] = []
  readonly #length: number[] = []
  readonly #columns: number
  #first = true
  #failure: Error | undefined
  #resolve!: () => void
  #reject!: (error: Error) => void

  constructor(text: string, columns: number, onRow: (row: CopyRow) => void) {
    this.#text = text
    this.#columns = columns
    this.#onRow = onRow
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  submit(connection: { query(text: string): void }): void {
    connection.query(this.#text)
  }

  handleCopyData(message: { chunk: Buffer }): void {
    if (this.#failure !== undefined) return
    try {
      this.#row(message.chunk)
    } catch (error) {
      // The rest of the answer is still to be read off the socket; the failure is told at its end.
      this.#failure = error as Error
    }
  }

  /** The backend sends one message a row; the first begins with the header, and the last is the trailer, -1. */
  #row(chunk: Buffer): void {
    let offset = 0
    if (this.#first) {
      if (chunk.length < 19 || chunk.compare(SIGNATURE, 0, 11, 0, 11) !== 0) throw new RangeError('not a binary COPY')
      offset = 19 + chunk.readUInt32BE(15)
      this.#first = false
      if (offset === chunk.length) return
    }
    const fields = chunk.readInt16BE(offset)
    if (fields === -1) return
    if (fields !== this.#columns) throw new RangeError(`COPY row of ${fields} fields, not ${this.#columns}`)
    offset += 2
    for (let i = 0; i < fields; i++) {
      const length = chunk.readInt32BE(offset)
      offset += 4
      if (length < -1 || (length > 0 && length > chunk.length - offset))
        throw new RangeError('COPY field overruns its row')
      this.#start[i] = offset
      this.#length[i] = length
      if (length > 0) offset += length
    }
    this.#onRow({ chunk, start: this.#start, length: this.#length })
  }

  handleError(error: Error): void {
    this.#reject(error)
  }

  handleReadyForQuery(): void {
    if (this.#failure === undefined) this.#resolve()
    else this.#reject(this.#failure)
  }

  handleRowDescription(): void {}
  handleDataRow(): void {}
  handleCommandComplete(): void {}
  handlePortalSuspended(): void {}
  handleEmptyQuery(): void {}
}

/** Runs `copy (select) to stdout (format binary)` and calls back for each row, synchronously as it arrives. */
export function copyRows(
  client: PgClient,
  select: string,
  columns: number,
  onRow: (row: CopyRow) => void,
): Promise<void> {
  const query = new CopyQuery(`copy (${select}) to stdout (format binary)`, columns, onRow)
  // `pg` accepts a submittable where its types of the plain port say text.
  ;(client as unknown as { query(query: Submittable): void }).query(query)
  return query.done
}
