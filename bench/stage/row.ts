/** One line of the table: what was measured, what came out, and whether it meets its goal. */
export interface Row {
  readonly what: string
  readonly figure: string
  readonly goal: string
  /** Undefined where there is no goal, or nothing was measured. */
  readonly met: boolean | undefined
}

/** A figure by itself. */
export function fact(what: string, figure: string): Row {
  return { what, figure, goal: '', met: undefined }
}

/** A figure that must not fall short of its goal. */
export function atLeast(what: string, figure: string, value: number, goal: number, unit = ''): Row {
  return { what, figure, goal: `≥ ${goal}${unit}`, met: value >= goal }
}

/** A figure that must not exceed its goal. */
export function atMost(what: string, figure: string, value: number, goal: number, unit = ''): Row {
  return { what, figure, goal: `≤ ${goal}${unit}`, met: value <= goal }
}

/** What could not be measured here, and why. */
export function skipped(what: string, why: string): Row {
  return { what, figure: `not measured: ${why}`, goal: '', met: undefined }
}

/** What broke while it was measured. */
export function failed(what: string, why: string): Row {
  return { what, figure: `failed: ${why}`, goal: '', met: false }
}

/** `123,456/s`. */
export function perSecond(rate: number): string {
  return `${Math.round(rate).toLocaleString('en-US')}/s`
}

/** `0.93 (a/s against b/s)`. */
export function ratioOf(rate: number, base: number): string {
  return `${(rate / base).toFixed(2)} (${perSecond(rate)} against ${perSecond(base)})`
}
