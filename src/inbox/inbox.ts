/**
 * Why an effect happens once.
 *
 * A message's effect and its inbox row (consumer, id) are written by one transaction, and the row's key is unique. So
 * of all transactions that ever try to apply the message, at most one commits with the row, and only with the row does
 * the effect commit: **at most once**. The message's position is committed to the broker only after that transaction
 * has, durably; until then the broker delivers the message again, to whoever owns the partition: **at least once**.
 *
 * Two members at the same time (a rebalance, a stopped process that woke up): the second insert of the same key finds
 * the first's uncommitted row in the unique index and waits for that transaction to end. If it commits, the second
 * inserts nothing and its copy is a duplicate; if it rolls back or its connection dies, the second inserts and goes on.
 * Under REPEATABLE READ and above the second fails instead with 40001, is tried again, and then sees the row. Nothing
 * rests on who owns the partition, on a clock, or on the broker.
 *
 * A COMMIT whose answer never came (the connection died) is no special case: the message is tried again, and the row
 * says whether it had committed. A crash between COMMIT and the broker's commit is the same case.
 *
 * The key must meet the same index each time: `bucket`, the partition key, is a function of the id alone.
 *
 * Two things could break "durably", and are seen to: `synchronous_commit = off`, under which a crash of the server can
 * take back a transaction that was answered (`beginText` turns it on for the effect transaction); and an error that a
 * handler swallowed, after which the server answers COMMIT with ROLLBACK (the consumer looks at the answer).
 *
 * Messages that share ids are claimed in the order of their ids, so that two members with the same messages in another
 * order wait for each other one way only.
 */
import { inspect } from 'node:util'
import { MillraceError } from '../core/errors.ts'
import type { Message } from '../core/message.ts'
import { DEFAULT_SCHEMAS, type Sql } from '../postgres/sql.ts'
import type { InboxKey } from './message-id.ts'
import { inboxStatements, type InboxStatements } from './statements.ts'

/** A message that is set aside for good, and why. */
export interface DeadLetter {
  readonly attempts: number
  readonly error: unknown
  readonly firstFailedAtMs: number
  readonly key: InboxKey
  readonly message: Message & { readonly partition: number; readonly position: bigint }
}

/** The inbox of one consumer. */
export class Inbox {
  readonly #consumer: string
  readonly #schema: string
  readonly #statements: InboxStatements
  #beginText = 'begin'

  constructor(options: { readonly consumer: string; readonly schema?: string | undefined }) {
    this.#consumer = options.consumer
    this.#schema = options.schema ?? DEFAULT_SCHEMAS.inbox
    this.#statements = inboxStatements(this.#schema)
  }

  /** What opens an effect transaction. */
  get beginText(): string {
    return this.#beginText
  }

  /** Looks whether the tables are there, and how the database commits. Call it once, before the first effect. */
  async probe(sql: Sql): Promise<void> {
    try {
      const { rows } = await sql.query(this.#statements.probe)
      const setting = (rows[0] as { synchronous_commit?: string } | undefined)?.synchronous_commit
      if (setting === 'off') this.#beginText = 'begin; set local synchronous_commit = on'
    } catch (error) {
      const code = (error as { code?: unknown }).code
      if (code !== '42P01' && code !== '3F000') throw error
      throw new MillraceError(
        'SCHEMA_MISSING',
        `the inbox tables are not in schema "${this.#schema}" of the consumer's database; ` +
          'create them with: npx millrace migrate --database-url …',
        { cause: error },
      )
    }
  }

  /**
   * Claims ids inside an open effect transaction; returns those that are new. An id that is not among them was handled
   * before, or stands twice in the call.
   */
  async claim(sql: Sql, keys: readonly InboxKey[]): Promise<Set<string>> {
    let sorted = keys
    for (let i = 1; i < keys.length; i++) {
      if ((keys[i - 1] as InboxKey).id <= (keys[i] as InboxKey).id) continue
      sorted = keys.toSorted((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0))
      break
    }
    // As text: ids are canonical uuids and buckets are integers, so nothing needs quoting.
    let buckets = '{'
    let ids = '{'
    for (let i = 0; i < sorted.length; i++) {
      const { bucket, id } = sorted[i] as InboxKey
      buckets += i === 0 ? bucket : `,${bucket}`
      ids += i === 0 ? id : `,${id}`
    }
    const { rows } = await sql.query(this.#statements.claim, [this.#consumer, `${buckets}}`, `${ids}}`])
    const fresh = new Set<string>()
    for (const row of rows) fresh.add((row as { id: string }).id)
    return fresh
  }

  /** Sets a message aside, inside an open transaction; false when it was handled or set aside before. */
  async deadLetter(sql: Sql, letter: DeadLetter): Promise<boolean> {
    const { message } = letter
    const result = await sql.query(this.#statements.deadLetter, [
      letter.key.bucket,
      this.#consumer,
      letter.key.id,
      storable(message.id),
      storable(message.topic),
      message.partition,
      String(message.position),
      message.key === null ? null : storable(message.key),
      storable(message.type),
      message.payload,
      storableJson(message.headers),
      storable(describe(letter.error)),
      letter.attempts,
      traceIdOf(message.headers['traceparent']),
      letter.firstFailedAtMs,
    ])
    return result.rowCount === 1
  }
}

/** Text as Postgres can hold it: no NUL, no half of a surrogate pair. A dead letter must not fail for a hostile key. */
function storable(text: string): string {
  return text.replaceAll('\0', '\uFFFD').toWellFormed()
}

function storableJson(headers: Readonly<Record<string, string>>): string {
  const clean = Object.create(null) as Record<string, string>
  for (const name in headers) clean[storable(name)] = storable(headers[name] as string)
  return JSON.stringify(clean)
}

/** The error with its causes, as text for an operator. A handler may throw anything, so nothing of it is called. */
function describe(error: unknown): string {
  return inspect(error, { customInspect: false, depth: 4 }).slice(0, 20_000)
}

function traceIdOf(traceparent: string | undefined): string | null {
  return /^[0-9a-f]{2}-([0-9a-f]{32})-/.exec(traceparent ?? '')?.[1] ?? null
}
