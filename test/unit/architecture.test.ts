import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import {
  importsOf,
  readSources,
  ROOT,
  withoutComments,
  withoutStrings,
  type SourceFile,
} from './architecture-source.ts'

// Import direction: a folder imports folders of a lower rank, and itself. Folders of one rank do not know each other.
const RANKS: readonly (readonly string[])[] = [
  ['core'],
  ['flow'],
  ['postgres', 'tracing'],
  ['brokers'],
  ['producer', 'inbox'],
  ['outbox-relay', 'consumer'],
  ['testing'],
  ['daemon'],
  ['cli'],
]

// Time and randomness enter through core/clock.ts. The command line and the test kit live outside the library.
const OWN_TIME = ['src/core/clock.ts', 'src/cli/', 'src/daemon/', 'src/testing/']
const OWN_PROCESS = ['src/cli/', 'src/daemon/', 'src/testing/']

const manifest = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
  readonly dependencies: Readonly<Record<string, string>>
  readonly peerDependencies: Readonly<Record<string, string>>
  readonly peerDependenciesMeta: Readonly<Record<string, { readonly optional?: boolean }>>
}
const sources = readSources('src')
const peers = Object.keys(manifest.peerDependencies)

describe('the import reader', () => {
  test('finds static, dynamic, side-effect, re-exported and type-only imports, and none in comments', () => {
    const code = withoutComments(`
/** import { no } from 'comment' */
import { a, type B } from './a.ts' // import 'no'
import type { C } from './c.ts'
import { type D } from './d.ts'
import './e.ts'
export { f } from './f.ts'
const url = 'https://not-a-comment'
const g = await import('./g.ts')
let h: typeof import('./h.ts')
import {
  i,
} from './i.ts'
`)
    expect(importsOf(code).map(({ specifier, typeOnly, dynamic }) => [specifier, typeOnly, dynamic])).toEqual([
      ['./a.ts', false, false],
      ['./c.ts', true, false],
      ['./d.ts', true, false],
      ['./f.ts', false, false],
      ['./i.ts', false, false],
      ['./e.ts', false, false],
      ['./g.ts', false, true],
    ])
    expect(code).toContain('https://not-a-comment')
  })
})

describe('import direction', () => {
  test('a folder imports only folders below it', () => {
    const wrong = relativeImports().filter(({ from, to }) => !mayImport(folderOf(from), folderOf(to)))
    expect(wrong).toEqual([])
  })

  test('the relay and the consumer know the broker port, never an adapter', () => {
    const wrong = relativeImports().filter(
      ({ from, to }) =>
        /^src\/(outbox-relay|consumer|producer|inbox)\//.test(from) &&
        to.startsWith('src/brokers/') &&
        to !== 'src/brokers/broker.ts',
    )
    expect(wrong).toEqual([])
  })

  test('an adapter does not know another adapter', () => {
    const adapter = (file: string): string | undefined => /^src\/brokers\/(.+)\/[^/]+$/.exec(file)?.[1]
    const wrong = relativeImports().filter(({ from, to }) => {
      const [a, b] = [adapter(from), adapter(to)]
      return a !== undefined && b !== undefined && !a.startsWith(b) && !b.startsWith(a)
    })
    expect(wrong).toEqual([])
  })

  test('nothing imports the package root', () => {
    expect(relativeImports().filter(({ to }) => to === 'src/index.ts')).toEqual([])
    expect(sources.flatMap(withSpecifiers).filter(({ specifier }) => /^millrace(\/|$)/.test(specifier))).toEqual([])
  })

  test('the package root imports no adapter', () => {
    const wrong = relativeImports().filter(({ from, to }) => from === 'src/index.ts' && /^src\/brokers\/.+\//.test(to))
    expect(wrong).toEqual([])
  })

  test('core and flow do no input or output', () => {
    const wrong = sources
      .filter(({ path: file }) => /^src\/(core|flow)\//.test(file))
      .flatMap(withSpecifiers)
      .filter(({ specifier }) => /^node:(?!(buffer|crypto|events|util)$)/.test(specifier))
    expect(wrong).toEqual([])
  })

  test('what is imported is declared, and an optional peer is loaded only when it is used', () => {
    const declared = [...Object.keys(manifest.dependencies), ...peers]
    const wrong = sources.flatMap((source) =>
      source.imports
        .filter(({ specifier }) => !/^(\.|node:)/.test(specifier))
        .filter(({ specifier, typeOnly, dynamic }) => {
          const name = specifier
            .split('/')
            .slice(0, specifier.startsWith('@') ? 2 : 1)
            .join('/')
          if (typeOnly) return false
          if (source.path.startsWith('src/testing/')) return !dynamic && peers.includes(name)
          if (!declared.includes(name)) return true
          return peers.includes(name) && !dynamic
        })
        .map(({ specifier }) => ({ file: source.path, specifier })),
    )
    expect(wrong).toEqual([])
    expect(peers.filter((name) => manifest.peerDependenciesMeta[name]?.optional !== true)).toEqual([])
  })
})

describe('house rules', () => {
  test('time and randomness enter through core/clock.ts', () => {
    const pattern = /\b(Date\.now|performance\.now|Math\.random|setTimeout|setInterval|new Date\(\))/g
    expect(identifiers(pattern, OWN_TIME)).toEqual([])
  })

  test('the library reads no environment and installs no signal handlers', () => {
    expect(identifiers(/\bprocess\.(env|argv|on|once|exit|exitCode|stdout|stderr)\b/g, OWN_PROCESS)).toEqual([])
  })

  test('no file is longer than 500 lines', () => {
    const all = [...sources, ...readSources('drizzle', 'test', 'bench', 'examples', 'scripts')]
    expect(all.filter(({ text }) => text.split('\n').length > 501).map((source) => source.path)).toEqual([])
  })

  test('no file is a bucket', () => {
    const bucket = /(^|\/)(utils?|helpers?|common|shared|misc|types|constants|interfaces)(\.ts|\/)/
    expect(sources.map((source) => source.path).filter((file) => bucket.test(file))).toEqual([])
  })

  test('files are kebab-case', () => {
    const names = sources
      .map((source) => source.path)
      .filter((file) => !/^src(\/[a-z0-9]+(-[a-z0-9]+)*)+\.ts$/.test(file))
    expect(names).toEqual([])
  })

  test('each folder says what it is, in a head comment or a README', () => {
    const folders = new Set(sources.map((source) => path.posix.dirname(source.path)))
    const silent = [...folders].filter((folder) => folder !== 'src' && !hasHeadComment(folder))
    expect(silent).toEqual([])
  })
})

interface Edge {
  readonly from: string
  readonly to: string
}

function relativeImports(): readonly Edge[] {
  return sources.flatMap((source) =>
    source.imports
      .filter(({ specifier }) => specifier.startsWith('.'))
      .map(({ specifier }) => ({
        from: source.path,
        to: path.posix.join(path.posix.dirname(source.path), specifier),
      })),
  )
}

/** `src/brokers/nats/index.ts` is of `brokers`; `src/index.ts` and `drizzle/…` are of none. */
function folderOf(file: string): string | undefined {
  return /^src\/([^/]+)\//.exec(file)?.[1]
}

function mayImport(from: string | undefined, to: string | undefined): boolean {
  if (from === undefined) return true
  if (to === undefined) return false
  if (from === to) return true
  const rank = (folder: string): number => RANKS.findIndex((folders) => folders.includes(folder))
  return rank(from) >= 0 && rank(to) >= 0 && rank(to) < rank(from)
}

function withSpecifiers(source: SourceFile): readonly { readonly file: string; readonly specifier: string }[] {
  return source.imports.map(({ specifier }) => ({ file: source.path, specifier }))
}

function identifiers(pattern: RegExp, exempt: readonly string[]): readonly string[] {
  return sources
    .filter(({ path: file }) => !exempt.some((prefix) => file.startsWith(prefix)))
    .flatMap((source) =>
      [...withoutStrings(source.code).matchAll(pattern)].map(([found]) => `${source.path}: ${found}`),
    )
}

/** It has a README.md, a file that begins with a comment on the whole, or one line of that kind on each of its files. */
function hasHeadComment(folder: string): boolean {
  if (existsSync(path.join(ROOT, folder, 'README.md'))) return true
  const files = sources.filter((source) => path.posix.dirname(source.path) === folder)
  const comments = files.map(
    ({ text }) =>
      /^(?:#![^\n]*\n)?(\/\*\*(?:(?!\*\/)[\s\S])*\*\/)\n(?:\n|import|export (?:type )?[{*])/.exec(text)?.[1],
  )
  return comments.some((comment) => comment?.includes('\n')) || comments.every((comment) => comment !== undefined)
}
