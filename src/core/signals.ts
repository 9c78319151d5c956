/**
 * Named points inside the machinery that a test can observe, so that no test sleeps. In production nobody listens and
 * `emit` is one map lookup. A listener may return a promise: the emitter awaits it where it says so (`reach`), which
 * holds the machinery at that exact step.
 */
export class Signals {
  readonly #listeners = new Map<string, Set<(detail: unknown) => unknown>>()

  /** Tells whoever listens that `name` happened. */
  emit(name: string, detail?: unknown): void {
    const listeners = this.#listeners.get(name)
    if (listeners !== undefined) for (const listener of listeners) listener(detail)
  }

  /** As `emit`, but waits for the listeners: a test can hold, or break, the machinery at this step. */
  async reach(name: string, detail?: unknown): Promise<void> {
    const listeners = this.#listeners.get(name)
    if (listeners !== undefined) for (const listener of listeners) await listener(detail)
  }

  /** Calls `listener` each time `name` happens; returns how to stop listening. */
  on(name: string, listener: (detail: never) => unknown): () => void {
    let listeners = this.#listeners.get(name)
    if (listeners === undefined) this.#listeners.set(name, (listeners = new Set()))
    listeners.add(listener as (detail: unknown) => unknown)
    return () => listeners.delete(listener as (detail: unknown) => unknown)
  }

  /** Resolves with the detail of the next `name` that satisfies the predicate. */
  next<T>(name: string, predicate: (detail: T) => boolean = () => true): Promise<T> {
    return new Promise((resolve) => {
      const off = this.on(name, (detail: T) => {
        if (!predicate(detail)) return
        off()
        resolve(detail)
      })
    })
  }
}
