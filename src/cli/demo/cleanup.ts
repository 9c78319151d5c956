import { systemClock, withDeadline } from '../../core/clock.ts'
import { explainError } from '../../daemon/explain-error.ts'

const STEP_TIMEOUT_MS = 6000

/** Ends what was started, the last first, whatever else happens: each end has a deadline, and none stops the others. */
export class Cleanup {
  readonly #steps: { readonly name: string; readonly end: () => Promise<unknown> }[] = []

  /** Remembers how to end something; say it before anything can fail. */
  add(name: string, end: () => Promise<unknown>): void {
    this.#steps.push({ name, end })
  }

  async run(onTrouble: (line: string) => void): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      const { name, end } = step
      try {
        const overdue = (): Error => new Error(`it took longer than ${STEP_TIMEOUT_MS} ms`)
        await withDeadline(systemClock, end(), STEP_TIMEOUT_MS, overdue)
      } catch (error) {
        onTrouble(`${name} did not end well: ${explainError(error)}`)
      }
    }
  }
}
