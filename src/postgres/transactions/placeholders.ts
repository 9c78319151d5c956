/** A statement cut at its `$n`: the text between them, and which parameter stands at each cut. */
export interface CutStatement {
  readonly order: readonly number[]
  readonly texts: readonly string[]
}

/** Cuts a statement at its `$n`, as a template would be; a `$1` inside a quoted name or a literal stays. */
export function cutAtPlaceholders(text: string): CutStatement {
  const texts: string[] = []
  const order: number[] = []
  let from = 0
  for (const match of text.matchAll(/"(?:[^"]|"")*"|'(?:[^']|'')*'|\$(\d+)/g)) {
    if (match[1] === undefined) continue
    texts.push(text.slice(from, match.index))
    order.push(Number(match[1]) - 1)
    from = match.index + match[0].length
  }
  texts.push(text.slice(from))
  return { order, texts }
}
