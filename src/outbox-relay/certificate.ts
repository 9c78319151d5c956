/**
 * The certificate of a checkpoint: whether the snapshots in its row mean anything to this cluster.
 *
 * A row holds the xid that wrote it and the identifier of the system it was written in. It counts while
 * - its `xmin` still is that xid. Everything that copies files keeps it: a crash, a standby's promotion, a recovery to a
 *   point in time, pg_upgrade, VACUUM in any form. Everything that writes the row again changes it: dump and restore,
 *   `create table as`, logical replication, an `alter table` that rewrites.
 * - and the system is this one, or was upgraded since. The xmin alone has 32 bits, and in two young clusters that were
 *   set up alike they may agree; and pg_createsubscriber keeps the files of a cluster whose transactions then arrive by
 *   logical replication, with ids of their own. It gives the cluster another identifier, and so does pg_upgrade; but
 *   pg_upgrade makes the catalogs anew, with ids after all that the old cluster gave out. So under another identifier a
 *   row counts only if it is older than the table it stands in, which no row that was inserted can be.
 */
import { MillraceError } from '../core/errors.ts'

/** What tells one cluster from another; a subquery, so that it is read once a statement. */
const SYSTEM = '(select system_identifier from pg_control_system())'

/** The xid that made the table: that of a system column, whose row in the catalog nothing writes again. */
const tableMaker = (row: string): string =>
  `(select a.xmin from pg_attribute a where a.attrelid = ${row}.tableoid and a.attname = 'xmin')`

/** SQL that is true for a row of the checkpoint log that certifies itself. */
export function certified(row: string): string {
  return `(${row}.xmin = ${row}.writer::xid
    and (${row}.system = ${SYSTEM} or age(${tableMaker(row)}) < age(${row}.xmin)))`
}

/** SQL that says in words why a row does not certify itself; null when it does. */
export function uncertifiedBecause(row: string): string {
  return `case when ${certified(row)} then null
    when ${row}.xmin <> ${row}.writer::xid
    then format('written by transaction %s and copied by transaction %s', ${row}.writer, ${row}.xmin)
    else format('written in the cluster %s, and this is %s', ${row}.system, ${SYSTEM}) end`
}

/** How the command line names a schema, after `millrace …`: nothing for the default. */
export function schemaFlag(schema: string): string {
  if (schema === 'outbox') return ''
  return ` --outbox-schema ${/^[\w.-]+$/.test(schema) ? schema : `'${schema.replaceAll("'", String.raw`'\''`)}'`}`
}

/** The checkpoint, or the lack of one, says nothing about this outbox. Takes the schema's name as it is, unquoted. */
export function uncertified(schema: string): MillraceError {
  return new MillraceError(
    'CHECKPOINT_UNCERTIFIED',
    `the outbox "${schema}" was not written by this database: it came with a dump or a logical copy, and its transaction ids ` +
      `mean nothing here. To publish again everything it holds (consumers drop what they know), stop every relay and ` +
      `run: millrace checkpoint re-anchor${schemaFlag(schema)} (with --dry-run to see first what that is)`,
  )
}
