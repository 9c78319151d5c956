/** The choices and the moments of the chaos tests. */

import { systemClock, withDeadline } from '../../src/core/clock.ts'

/** Choices that a seed repeats. */
export interface Random {
  /** An integer from 0 up to, and without, the limit. */
  readonly below: (limit: number) => number
  readonly chance: (probability: number) => boolean
}

/** How long the last event may take; then the verdict says what is missing. */
const LAST_WITHIN_MS = 60_000

/** Resolves when the last event was published, or when it is too late for that. */
export async function published(last: Promise<void>): Promise<void> {
  const late = new Error('the last event was not published')
  await withDeadline(systemClock, last, LAST_WITHIN_MS, () => late).catch((error: unknown) => {
    if (error !== late) throw error
  })
}

/** Waits. How long transactions are held, and when something dies, is an input of these tests like any other. */
export function passes(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
