/**
 * The publication, and how a change to it is noticed.
 *
 * A row that is inserted while the publication is missing, or does not hold the table, is left out of the stream for
 * good. PostgreSQL 15 ends the stream then; 18 only sends a notice; a table taken out and put back is not told at all.
 * So each anchor of the stream carries the publication's fingerprint: oid, xmin and xmax of the two catalog rows that make
 * it. Whatever is done to it, and undone again, leaves another oid or another xmin. Two equal fingerprints mean that nothing
 * happened between them. (A rewrite of the catalog gives another one, too; that only costs a new anchor.)
 *
 * xmax is there for a change that the stream obeys and a snapshot does not see: a commit counts in the WAL from its record
 * on, and is visible only once that is flushed and, with synchronous replication, once the standby has answered. Whoever
 * changes a row marks the old one first, so a change on its way shows, and one that was rolled back does, too.
 */
import { createHash } from 'node:crypto'
import { MillraceError } from '../../../core/errors.ts'
import { type Sql, quoteIdentifier } from '../../../postgres/sql.ts'

/** The longest identifier that Postgres keeps whole, bytes. */
const MAX_IDENTIFIER_BYTES = 63

/** The name of the publication of an outbox. */
export function publicationName(schema: string): string {
  const name = `millrace_${schema}`
  if (Buffer.byteLength(name) <= MAX_IDENTIFIER_BYTES) return name
  return `millrace_${createHash('sha256').update(schema).digest('hex').slice(0, 16)}`
}

/**
 * An expression for the fingerprint of the publication; null when there is none that hands over every insert under the
 * table's own name. `$1` is the publication, `$2` the table. Probes pg_publication_pubname_index and
 * pg_publication_rel_prrelid_prpubid_index.
 */
export const FINGERPRINT = `(
  select concat_ws(':', p.oid, p.xmin, p.xmax, r.oid, r.xmin, r.xmax)
  from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
  where p.pubname = $1 and r.prrelid = to_regclass($2) and p.pubinsert and p.pubviaroot
    and r.prqual is null and r.prattrs is null)`

/** The names that {@link FINGERPRINT} takes. */
export function fingerprintParams(schema: string): [publication: string, table: string] {
  return [publicationName(schema), `${quoteIdentifier(schema)}.record`]
}

/** The publication's fingerprint; undefined when there is no sound one. */
export async function readFingerprint(sql: Sql, schema: string): Promise<string | undefined> {
  const { rows } = await sql.query(`select ${FINGERPRINT} as fingerprint`, fingerprintParams(schema))
  return (rows[0] as { fingerprint: string | null }).fingerprint ?? undefined
}

/** The statement that makes the publication: inserts only, told under the name of the partitioned table. */
export function createPublicationSql(schema: string): string {
  return (
    `create publication ${quoteIdentifier(publicationName(schema))} for table ${quoteIdentifier(schema)}.record ` +
    `with (publish = 'insert', publish_via_partition_root = true)`
  )
}

/** `duplicate_object`, and `unique_violation` when the other one is committed only while this one waits for it. */
const MADE_ALREADY: ReadonlySet<string> = new Set(['42710', '23505'])

/** Makes the publication unless it is there, and returns its fingerprint. Throws PUBLICATION_MISSING with the fix. */
export async function ensurePublication(sql: Sql, schema: string): Promise<string> {
  const found = await readFingerprint(sql, schema)
  if (found !== undefined) return found
  try {
    await sql.query(createPublicationSql(schema))
  } catch (error) {
    // Somebody else made it just now, before this one looked or while it was at it: the look below says whether it serves.
    if (!MADE_ALREADY.has((error as { code?: string }).code ?? '')) throw publicationMissing(schema, error as Error)
  }
  const made = await readFingerprint(sql, schema)
  if (made === undefined) throw publicationMissing(schema)
  return made
}

function publicationMissing(schema: string, cause?: Error): MillraceError {
  const name = quoteIdentifier(publicationName(schema))
  return new MillraceError(
    'PUBLICATION_MISSING',
    cause === undefined
      ? `the publication ${name} does not publish every insert into the outbox; run: drop publication ${name}; ${createPublicationSql(schema)}`
      : `the publication ${name} is missing and the relay may not make it (${cause.message}); let the owner of the outbox run: ${createPublicationSql(schema)}`,
    { cause },
  )
}

/** The publication is not the one under which the stream began. */
export function publicationChanged(schema: string): MillraceError {
  return new MillraceError(
    'PUBLICATION_CHANGED',
    `the publication ${publicationName(schema)} was changed while the stream ran, so the stream may have left events out; ` +
      'reading goes on from the last marker, and nothing is lost',
  )
}
