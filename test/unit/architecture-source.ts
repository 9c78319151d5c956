/** Reads the package's own source as text: enough of a parser for imports and identifiers, no compiler needed. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

/** The root of the repository. */
export const ROOT = path.resolve(import.meta.dirname, '../..')

/** One import or re-export statement, static or dynamic. */
export interface Import {
  readonly specifier: string
  /** Types only: nothing of it is there at run time. */
  readonly typeOnly: boolean
  readonly dynamic: boolean
}

/** A source file. */
export interface SourceFile {
  /** From the root, with forward slashes: `src/core/clock.ts`. */
  readonly path: string
  readonly text: string
  /** The text with comments blanked out, strings kept. */
  readonly code: string
  readonly imports: readonly Import[]
}

/** All TypeScript files below these folders of the root. */
export function readSources(...folders: readonly string[]): readonly SourceFile[] {
  const there = folders.filter((folder) => existsSync(path.join(ROOT, folder)))
  return there.flatMap((folder) =>
    readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts'))
      .toSorted()
      .map((file) => readSource(`${folder}/${file.replaceAll(path.sep, '/')}`)),
  )
}

function readSource(file: string): SourceFile {
  const text = readFileSync(path.join(ROOT, file), 'utf8')
  const code = withoutComments(text)
  return { path: file, text, code, imports: importsOf(code) }
}

/** The imports of a text without comments. */
export function importsOf(code: string): readonly Import[] {
  const found: Import[] = []
  for (const match of code.matchAll(/^(?:import|export)\s+(type\b)?([^'"`;]*?)from\s*['"]([^'"]+)['"]/gm)) {
    const names = /\{([^}]*)\}/.exec(match[2] as string)?.[1]
    const each = names?.split(',').filter((name) => name.trim() !== '')
    const bare = !/^\s*\{/.test(match[2] as string)
    const typeOnly =
      match[1] !== undefined || (!bare && each !== undefined && each.every((name) => /^\s*type\s/.test(name)))
    found.push({ specifier: match[3] as string, typeOnly, dynamic: false })
  }
  for (const match of code.matchAll(/^import\s*['"]([^'"]+)['"]/gm)) {
    found.push({ specifier: match[1] as string, typeOnly: false, dynamic: false })
  }
  for (const match of code.matchAll(/(?<!typeof )\bimport\(\s*['"]([^'"]+)['"]/g)) {
    found.push({ specifier: match[1] as string, typeOnly: false, dynamic: true })
  }
  return found
}

/** Blanks comments, line for line, and leaves strings alone. Regular expressions with quotes in them may confuse it. */
export function withoutComments(text: string): string {
  return text.replaceAll(
    /('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\]|\\.)*`)|\/\*[\s\S]*?\*\/|\/\/[^\n]*/g,
    (match, string: string | undefined) => string ?? match.replaceAll(/[^\n]/g, ''),
  )
}

/** Blanks what stands in quotes too: what is left is identifiers. */
export function withoutStrings(code: string): string {
  return code.replaceAll(/'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"/g, "''")
}
