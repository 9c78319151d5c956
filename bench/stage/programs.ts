import { existsSync } from 'node:fs'
import path from 'node:path'

/** A program of PostgreSQL that the npm packages do not bring: where Debian has it, or on the PATH. */
export function findProgram(name: 'pg_recvlogical' | 'pgbench'): string | undefined {
  const folders = [
    ...['18', '17', '16', '15'].map((major) => `/usr/lib/postgresql/${major}/bin`),
    ...(process.env['PATH'] ?? '').split(path.delimiter),
  ]
  return folders.map((folder) => path.join(folder, name)).find(existsSync)
}
