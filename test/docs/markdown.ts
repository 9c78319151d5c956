/** Reads code blocks out of Markdown, and the piece of a file that a block says it was taken from. */
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

/** The root of the repository. */
export const ROOT = path.resolve(import.meta.dirname, '../..')

/** A fenced block. */
export interface CodeBlock {
  /** `README.md:12`, for messages. */
  readonly place: string
  readonly language: string
  readonly text: string
  /** What the marker above it names: `examples/quickstart.ts`, or `examples/quickstart.ts#append` for a region of it. */
  readonly from: string | undefined
}

/** README.md and everything in docs/. */
export function documents(): readonly string[] {
  const inDocs = readdirSync(path.join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.md'))
    .map((file) => `docs/${file.replaceAll(path.sep, '/')}`)
  return ['README.md', ...inDocs.toSorted()]
}

/** The blocks of a document, in order. */
export function codeBlocks(file: string, markdown: string): readonly CodeBlock[] {
  const blocks: CodeBlock[] = []
  const lines = markdown.split('\n')
  for (let start = 0; start < lines.length; start++) {
    const [, indent, fence, language] = /^( *)(```+|~~~+)\s*([\w-]*)/.exec(lines[start] as string) ?? []
    if (fence === undefined) continue
    let end = start + 1
    while (end < lines.length && (lines[end] as string).trim() !== fence) end++
    const text = lines
      .slice(start + 1, end)
      .map((line) => line.slice(Math.min(indent?.length ?? 0, line.search(/\S|$/))))
    blocks.push({
      place: `${file}:${start + 1}`,
      language: language ?? '',
      text: text.join('\n'),
      from: markerAbove(lines, start),
    })
    start = end
  }
  return blocks
}

function markerAbove(lines: readonly string[], start: number): string | undefined {
  let at = start - 1
  while (at >= 0 && (lines[at] as string).trim() === '') at--
  return /^\s*<!-- from (\S+) -->\s*$/.exec(lines[at] ?? '')?.[1]
}

/**
 * The text a marker names, as a reader of the package writes it: the head comment, region marks and `// docs: hide`
 * lines left out, the region's indentation removed, and imports of the source tree under the package's own names.
 */
export function excerpt(from: string): string {
  const [file, region] = from.split('#') as [string, string | undefined]
  if (!/^(examples|test\/docs)\//.test(file)) throw new Error(`${from}: not under examples/ or test/docs/`)
  const text = readFileSync(path.join(ROOT, file), 'utf8')
  return asPublished(
    region === undefined ? text.replace(/^(#![^\n]*\n)?\/\*\*[\s\S]*?\*\/\n+/, '') : regionOf(text, region, from),
  )
}

function regionOf(text: string, region: string, from: string): string {
  const lines = text.split('\n')
  const begin = lines.findIndex((line) => line.trim() === `// #region ${region}`)
  const end = lines.findIndex((line, index) => index > begin && line.trim() === `// #endregion ${region}`)
  if (begin < 0 || end < 0) throw new Error(`${from}: no "// #region ${region}" … "// #endregion ${region}"`)
  const inside = lines.slice(begin + 1, end)
  const indent = Math.min(...inside.filter((line) => line.trim() !== '').map((line) => line.search(/\S/)))
  return inside.map((line) => line.slice(indent)).join('\n')
}

function asPublished(text: string): string {
  const manifest = JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as {
    exports: Record<string, string>
  }
  const names = new Map(
    Object.entries(manifest.exports)
      .filter(([, target]) => target.startsWith('./dist/'))
      .map(([subpath, target]) => [
        target.slice('./dist/'.length).replace(/\.js$/, '.ts'),
        `millrace${subpath.slice(1)}`,
      ]),
  )
  return text
    .split('\n')
    .filter((line) => !/^\s*\/\/ #(end)?region /.test(line) && !line.endsWith('// docs: hide'))
    .join('\n')
    .replaceAll(/from '(?:\.\.\/)+((?:src|drizzle)\/[^']+)'/g, (match, file: string) =>
      names.has(file) ? `from '${names.get(file)}'` : match,
    )
    .trim()
}
