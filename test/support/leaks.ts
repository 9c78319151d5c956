import type { Lifecycle } from '../../src/core/lifecycle.ts'

interface Tracked {
  readonly close: () => Promise<unknown>
  readonly name: string
}

const open = new Set<Tracked>()

/**
 * Tells the leak guard of something that must be closed by the end of its test, or of its file when it was made outside
 * a test. Returns what to call when it is closed.
 */
export function track(name: string, close: () => Promise<unknown>): () => void {
  const tracked = { close, name }
  open.add(tracked)
  return () => open.delete(tracked)
}

/** Tracks a relay, a consumer or the like until it has stopped, cleanly or not. */
export function trackLifecycle<T extends Lifecycle<unknown>>(name: string, lifecycle: T): T {
  const release = track(name, () => lifecycle.stop())
  lifecycle.stopped.then(release, release)
  return lifecycle
}

/** What is open now. */
export function openNow(): ReadonlySet<unknown> {
  return new Set(open)
}

/** Closes what was opened since `before` and is still open, and throws with its names; nothing when there is none. */
export async function refuseLeaks(before: ReadonlySet<unknown>): Promise<void> {
  const leaked = [...open].filter((tracked) => !before.has(tracked))
  if (leaked.length === 0) return
  await Promise.allSettled(leaked.map((tracked) => tracked.close()))
  for (const tracked of leaked) open.delete(tracked)
  throw new Error(`Left open: ${leaked.map((tracked) => tracked.name).join(', ')}. Close each where it is made.`)
}
