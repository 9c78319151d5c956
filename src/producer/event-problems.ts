import { MillraceError } from '../core/errors.ts'

/** One thing that is wrong with one of the events of an `append`. */
export interface EventProblem {
  /** Which of the events, from 0. */
  readonly index: number
  /** Where in it: `headers['x y']`. Never a value. */
  readonly path: string
  /** What is wrong, and what would be right. */
  readonly problem: string
}

/** The most problems the message lists; `details` holds all that were kept. */
const LISTED = 20
const KEPT = 1_000

/** Collects what is wrong with the events of one `append`, so that nobody fixes one problem to meet the next. */
export class EventProblems {
  readonly #kept: EventProblem[] = []
  #count = 0

  add(index: number, path: string, problem: string): void {
    this.#count++
    if (this.#kept.length < KEPT) this.#kept.push({ index, path, problem })
  }

  /** Throws APPEND_INVALID_EVENT when anything is wrong. */
  done(): void {
    if (this.#count === 0) return
    const lines = this.#kept.slice(0, LISTED).map((p) => `  events[${p.index}]${dotted(p.path)}: ${p.problem}`)
    if (this.#count > LISTED) lines.push(`  … and ${this.#count - LISTED} more`)
    throw new MillraceError(
      'APPEND_INVALID_EVENT',
      `append: ${this.#count} problem(s), so nothing was written\n${lines.join('\n')}`,
      { details: { count: this.#count, problems: this.#kept } },
    )
  }
}

function dotted(path: string): string {
  return path === '' || path.startsWith('[') ? path : `.${path}`
}
