import { createHash } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'

/** One numbered change of the schema, as it stands in `drizzle/migrations`. */
export interface Migration {
  readonly version: number
  /** What it is about: `outbox_and_inbox`. */
  readonly name: string
  /** SHA-256 of the file, hex. A file that was applied somewhere never changes again. */
  readonly checksum: string
  /** The text with `:outbox` and `:inbox` in it. */
  readonly template: string
}

// The same two steps up from src/postgres and, once built, from dist/src/postgres.
const FOLDER = new URL('../../drizzle/migrations/', import.meta.url)

/** Reads the migrations that this version of the package brings, by rising version. */
export async function readMigrations(): Promise<readonly Migration[]> {
  const files = (await readdir(FOLDER)).filter((file) => file.endsWith('.sql')).toSorted()
  return Promise.all(files.map(readMigration))
}

async function readMigration(file: string): Promise<Migration> {
  const [, version, name] = /^(\d{4})_(\w+)\.sql$/.exec(file) ?? []
  if (version === undefined || name === undefined) throw new Error(`not the name of a migration: ${file}`)
  // A checkout may turn line ends into CR LF; that is not a change.
  const template = (await readFile(new URL(file, FOLDER), 'utf8')).replaceAll('\r\n', '\n')
  return { version: Number(version), name, checksum: createHash('sha256').update(template).digest('hex'), template }
}
