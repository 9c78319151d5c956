import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createTestDatabase } from '../support/services.ts'

const ROOT = path.resolve(import.meta.dirname, '../..')
const BIN = path.join(ROOT, 'node_modules/.bin')

// Every subpath of the exports map, and what importing it takes when no optional peer is installed.
const SUBPATHS = ['.', './drizzle', './kafkajs', './memory', './nats', './package.json', './platformatic', './testing']
const NEEDS_A_PEER = new Map([['./drizzle', 'drizzle-orm']])

interface Result {
  readonly code: number
  readonly out: string
  readonly err: string
}

let folder: string
let tarball: string
/** A project of somebody else's, with the package installed from its tarball and none of its optional peers. */
let project: string

beforeAll(async () => {
  folder = await realpath(await mkdtemp(path.join(tmpdir(), 'millrace-package-')))
  await succeed(ROOT, 'npm', ['pack', '--pack-destination', folder])
  const [file] = (await readdir(folder)).filter((name) => name.endsWith('.tgz'))
  tarball = path.join(folder, file as string)
  project = await install(path.join(folder, 'project'))
}, 240_000)

afterAll(async () => {
  await rm(folder, { recursive: true, force: true })
})

describe('the packed package', () => {
  test('holds what it runs with, and neither sources nor tests', async () => {
    const { out } = await succeed(folder, 'tar', ['-tzf', tarball])
    const files = out.trim().split('\n')
    const tops = new Set(files.map((file) => file.split('/')[1]))
    expect(
      [...tops].filter(
        (top) => !/^(dist|docs|package\.json|README\.md|LICENSE|CHANGELOG\.md|DESIGN\.md)$/.test(top ?? ''),
      ),
    ).toEqual([])
    expect(files).toContain('package/dist/drizzle/migrations/0001_outbox_and_inbox.sql')
    expect(files.filter((file) => /\.test\.|(?<!\.d)\.ts$/.test(file))).toEqual([])
  })

  test('has an exports map that is all tested here', async () => {
    const manifest = JSON.parse(await readFile(path.join(ROOT, 'package.json'), 'utf8')) as { exports: object }
    expect(Object.keys(manifest.exports).toSorted()).toEqual(SUBPATHS)
  })

  test('publint finds nothing', async () => {
    const { out } = await succeed(folder, path.join(BIN, 'publint'), ['run', tarball, '--strict'])
    expect(out).toContain('All good!')
  })

  test('attw finds nothing', async () => {
    const args = ['--profile', 'esm-only', '--no-definitely-typed', '--no-color', '--format', 'ascii', tarball]
    const { out } = await succeed(folder, path.join(BIN, 'attw'), args)
    // It exits 1 for a problem; these lines show that it looked at every subpath.
    const judged = out.split('\n').filter((line) => /^(node16 \(from ESM\)|bundler):/.test(line.trim()))
    expect(judged).toHaveLength(2 * SUBPATHS.length)
    expect(judged.filter((line) => !line.includes('🟢'))).toEqual([])
  })

  test('is typed for a strict compiler', async () => {
    const imports = SUBPATHS.filter((subpath) => subpath !== './package.json' && !NEEDS_A_PEER.has(subpath))
    const source = imports.map(
      (subpath, index) => `import * as m${index} from '${specifier(subpath)}'\nvoid m${index}\n`,
    )
    await writeFile(path.join(project, 'all.ts'), source.join(''))
    const types = path.join(ROOT, 'node_modules/@types')
    const options = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2024', '--skipLibCheck']
    const lib = ['--lib', 'es2024,esnext.disposable', '--typeRoots', types, '--types', 'node']
    await succeed(project, path.join(BIN, 'tsc'), [...options, ...lib, 'all.ts'])
  })
})

describe('without any optional peer', () => {
  test.each(SUBPATHS.filter((subpath) => !NEEDS_A_PEER.has(subpath)))('%s imports', async (subpath) => {
    const attributes = subpath.endsWith('.json') ? ", { with: { type: 'json' } }" : ''
    const { out } = await script(`console.log(Object.keys(await import('${specifier(subpath)}'${attributes})).length)`)
    expect(Number(out)).toBeGreaterThan(0)
  })

  test.each([...NEEDS_A_PEER])('%s says that it needs %s', async (subpath, peer) => {
    const { code, err } = await run(project, process.execPath, ['-e', `import('${specifier(subpath)}')`])
    expect(code).toBe(1)
    expect(err).toContain(`Cannot find package '${peer}'`)
  })

  test.each([
    ['kafkajs', "kafkajs({ brokers: ['127.0.0.1:1'] })", 'npm i kafkajs'],
    ['platformatic', "platformatic({ brokers: ['127.0.0.1:1'] })", 'npm i @platformatic/kafka'],
    ['nats', "nats({ servers: ['127.0.0.1:1'] })", 'npm i @nats-io/'],
  ])('%s fails on its first use, with the npm line', async (name, make, line) => {
    const { out } = await script(`
      import { ${name} } from 'millrace/${name}'
      const broker = ${make}
      await broker.publisher().start().catch((error) => console.log(error.code, error.message))
    `)
    expect(out).toMatch(/^PEER_MISSING /)
    expect(out).toContain(line)
  })

  test('the command line says its version and its help, through the link that npm makes', async () => {
    const { version } = JSON.parse(await readFile(path.join(ROOT, 'package.json'), 'utf8')) as { version: string }
    expect(await millrace('--version')).toMatchObject({ code: 0, out: `${version}\n` })
    expect((await millrace('--help')).out).toContain('relay')
    expect((await millrace('relay', '--help')).out).toContain('--database-url')
  })

  test('a command that needs a peer is exit 1, with the npm line', async () => {
    const { code, err } = await millrace('migrate', '--database-url', 'postgres://127.0.0.1:1/none')
    expect(err).toContain('npm i pg')
    expect(code).toBe(1)
  })
})

describe('with the driver installed', () => {
  test('a database is migrated by the installed command, and the broker of a URL is asked for by its npm line', async () => {
    const other = await install(path.join(folder, 'with-pg'), 'pg')
    const database = await createTestDatabase({ migrate: false })
    try {
      const migrated = await millraceIn(other, 'migrate', '--database-url', database.url)
      expect(migrated.code).toBe(0)
      expect(migrated.out).toContain('applied 0001_outbox_and_inbox')
      const { rows } = await database.pool.query("select to_regclass('outbox.record') is not null as there")
      expect(rows).toEqual([{ there: true }])

      const relay = await millraceIn(other, 'relay', '--database-url', database.url, '--broker', 'kafka://127.0.0.1:1')
      expect(relay.err).toContain('npm i kafkajs')
      expect(relay.code).toBe(1)
      const plt = ['relay', '--database-url', database.url, '--broker', 'kafka+platformatic://127.0.0.1:1'] as const
      const second = await millraceIn(other, ...plt)
      expect(second.err).toContain('npm i @platformatic/kafka')
      expect(second.code).toBe(1)
    } finally {
      await database.close()
    }
  })
})

async function install(into: string, ...more: readonly string[]): Promise<string> {
  const { mkdir } = await import('node:fs/promises')
  await mkdir(into)
  await writeFile(path.join(into, 'package.json'), '{ "name": "somebody", "private": true, "type": "module" }')
  const quiet = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', '--prefix', into]
  await succeed(into, 'npm', ['install', ...quiet, tarball, ...more])
  return into
}

function specifier(subpath: string): string {
  return `millrace${subpath.slice(1)}`
}

function script(text: string): Promise<Result> {
  return succeed(project, process.execPath, ['--input-type=module', '-e', text])
}

function millrace(...args: readonly string[]): Promise<Result> {
  return millraceIn(project, ...args)
}

function millraceIn(cwd: string, ...args: readonly string[]): Promise<Result> {
  return run(cwd, 'npx', ['--no-install', 'millrace', ...args])
}

async function succeed(cwd: string, command: string, args: readonly string[]): Promise<Result> {
  const result = await run(cwd, command, args)
  if (result.code !== 0)
    throw new Error(`${command} ${args.join(' ')}: exit ${result.code}\n${result.out}\n${result.err}`)
  return result
}

function run(cwd: string, command: string, args: readonly string[]): Promise<Result> {
  // What `npm test` set for itself would make an inner npm work on this repository.
  const env = Object.fromEntries(
    Object.entries(process.env).filter(
      ([name]) =>
        !/^(npm_(package|lifecycle)_.*|npm_config_(local_prefix|prefix|dir)|INIT_CWD|DATABASE_URL|MILLRACE_.*|PG.*)$/.test(
          name,
        ),
    ),
  )
  env['PATH'] = [path.dirname(process.execPath), process.env['PATH']].join(path.delimiter)
  return new Promise((resolve) => {
    execFile(command, args, { cwd, env, timeout: 200_000, maxBuffer: 1 << 26 }, (error, out, err) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : 1
      resolve({ code, out, err: error !== null && code === 1 && err === '' ? error.message : err })
    })
  })
}
