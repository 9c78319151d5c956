import { MillraceError } from './errors.ts'

/** One thing that is wrong with a configuration. */
export interface Problem {
  /** Where: `relay.pageSize`. */
  readonly path: string
  /** What was given, printed; never a secret. */
  readonly received: string
  /** What would be right. */
  readonly expected: string
}

/**
 * Collects every problem of a configuration and throws them all at once, so that nobody fixes one to meet the next.
 *
 * @example
 * const check = new OptionCheck('createRelay', options, ['broker', 'pageSize', …])
 * check.integer('pageSize', 1, 10_000)
 * check.done()
 */
export class OptionCheck {
  readonly #problems: Problem[] = []
  readonly #subject: string
  readonly #options: Readonly<Record<string, unknown>>

  constructor(subject: string, options: object | undefined, known: readonly string[]) {
    this.#subject = subject
    this.#options = (options ?? {}) as Readonly<Record<string, unknown>>
    if (options === undefined || options === null || typeof options !== 'object') {
      this.add('', String(options), 'an options object')
      return
    }
    for (const name of Object.keys(options)) {
      if (known.includes(name)) continue
      const near = nearest(name, known)
      this.add(
        name,
        'an unknown option',
        near ? `one that is known; did you mean \`${near}\`?` : `one of ${known.join(', ')}`,
      )
    }
  }

  /** Adds a problem by hand. */
  add(path: string, received: string, expected: string): void {
    this.#problems.push({ path, received, expected })
  }

  /** The option, if given, is an integer within the bounds. */
  integer(name: string, min: number, max: number): void {
    const value = this.#options[name]
    if (value === undefined) return
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      this.add(name, describe(value), `an integer from ${min} to ${max}`)
    }
  }

  /** The option, if given, satisfies the predicate. */
  satisfies(name: string, predicate: (value: unknown) => boolean, expected: string): void {
    const value = this.#options[name]
    if (value !== undefined && !predicate(value)) this.add(name, describe(value), expected)
  }

  /** The option is there. */
  required(name: string, expected: string): void {
    if (this.#options[name] === undefined || this.#options[name] === null) this.add(name, 'nothing', expected)
  }

  /** Throws CONFIG_INVALID with all problems, or returns. */
  done(): void {
    if (this.#problems.length === 0) return
    const lines = this.#problems.map((p) => `  ${p.path || '(options)'}: got ${p.received}; expected ${p.expected}`)
    throw new MillraceError('CONFIG_INVALID', `${this.#subject}: ${lines.length} problem(s)\n${lines.join('\n')}`, {
      details: { problems: this.#problems },
    })
  }
}

function describe(value: unknown): string {
  if (typeof value === 'string') return value.length > 60 ? `a string of ${value.length} characters` : `'${value}'`
  if (typeof value === 'number' || typeof value === 'boolean' || value === null) return String(value)
  return Array.isArray(value)
    ? 'an array'
    : typeof value === 'function'
      ? 'a function'
      : `a value of type ${typeof value}`
}

/** The known word nearest to what was typed, if it is near enough to be meant (Levenshtein distance at most a third). */
export function nearest(word: string, known: readonly string[]): string | undefined {
  let best: string | undefined
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1
  for (const candidate of known) {
    const distance = levenshtein(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

function levenshtein(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1)
      row.push(Math.min((previous[j] as number) + 1, (row[j - 1] as number) + 1, substitution))
    }
    previous = row
  }
  return previous[b.length] as number
}
