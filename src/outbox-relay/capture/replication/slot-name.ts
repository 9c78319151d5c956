import { createHash } from 'node:crypto'

const NAME = /^[a-z0-9_]{1,63}$/

/** Throws a RangeError unless the name is one that Postgres takes; such a name needs no quoting anywhere. */
export function checkSlotName(name: string): void {
  if (!NAME.test(name))
    throw new RangeError(
      `not a name for a replication slot: ${JSON.stringify(name)}; it has 1 to 63 lower-case letters, digits and underscores`,
    )
}

/**
 * The slot of an outbox unless somebody names another: `millrace_<database>_<schema>`. Slots are the whole cluster's, so
 * the database is in it. A name that does not fit is cut and made plain, and ends in a digest of the exact names.
 */
export function slotName(database: string, schema: string): string {
  const name = `millrace_${database}_${schema}`
  if (NAME.test(name)) return name
  // A zero byte is in no name, so no two pairs have the same text.
  const digest = createHash('sha256').update(`${database}\0${schema}`).digest('hex').slice(0, 8)
  const plain = name.toLowerCase().replaceAll(/[^a-z0-9_]+/g, '_')
  return `${plain.slice(0, 54)}_${digest}`
}
