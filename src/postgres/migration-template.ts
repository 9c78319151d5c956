/**
 * Puts the schema names into a migration: `:outbox` and `:inbox`, where they stand as SQL, become quoted identifiers.
 *
 * Comments, string constants and quoted identifiers stay as they are, and so does a cast (`::outbox`). The body of a
 * dollar-quoted string is SQL too, because it is the body of a function; its tag changes when the rendered body holds
 * it, so that no schema name can end the body.
 */
import { quoteIdentifier } from './sql.ts'
import type { SchemaNames } from './sql.ts'

// What can begin at a character: a comment, a string, a quoted identifier, a dollar quote, a cast, a placeholder.
const TOKEN =
  /--[^\n]*|\/\*|[eE]'(?:[^'\\]|\\[^]|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![A-Za-z0-9_$\u0080-\uffff])\$(?:[A-Za-z_][A-Za-z0-9_]*)?\$|::|:(?:outbox|inbox)(?![A-Za-z0-9_$])/g

/** The SQL of a migration with the schema names in it. */
export function renderMigration(sql: string, schemas: SchemaNames): string {
  const names = new Map([
    [':outbox', quoteIdentifier(schemas.outbox)],
    [':inbox', quoteIdentifier(schemas.inbox)],
  ])
  let rendered = ''
  let from = 0
  const token = new RegExp(TOKEN)
  for (let match = token.exec(sql); match !== null; match = token.exec(sql)) {
    const [text] = match
    rendered += sql.slice(from, match.index)
    let end = token.lastIndex
    if (text === '/*') {
      end = endOfComment(sql, match.index)
      rendered += sql.slice(match.index, end)
    } else if (text.startsWith('$')) {
      const close = sql.indexOf(text, end)
      if (close < 0) throw new SyntaxError(`${text} is never closed`)
      const body = renderMigration(sql.slice(end, close), schemas)
      const tag = freeTag(text, body)
      rendered += tag + body + tag
      end = close + text.length
    } else {
      rendered += names.get(text) ?? text
    }
    from = token.lastIndex = end
  }
  return rendered + sql.slice(from)
}

/** Block comments nest in Postgres. */
function endOfComment(sql: string, start: number): number {
  const mark = /\/\*|\*\//g
  mark.lastIndex = start
  let depth = 0
  for (let match = mark.exec(sql); match !== null; match = mark.exec(sql)) {
    depth += match[0] === '/*' ? 1 : -1
    if (depth === 0) return mark.lastIndex
  }
  throw new SyntaxError('a comment is never closed')
}

function freeTag(tag: string, body: string): string {
  let free = tag
  for (let n = 1; body.includes(free); n++) free = `${tag.slice(0, -1)}_${n}$`
  return free
}
