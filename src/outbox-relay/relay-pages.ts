/** The loop of a term: page after page, each opened, published and noted, until it is told to end. */
import type { Capture, Page } from './capture/capture.ts'
import { type DispatchOptions, dispatch } from './dispatch.ts'
import type { Lease } from './lease.ts'

/** What relaying pages needs, and whom it tells. */
export interface RelayPagesOptions extends Omit<DispatchOptions, 'assertHeld'> {
  readonly onPublished: (page: Page) => void
  /** Asked between pages; true ends the loop as the signal does. Default: only the signal ends it. */
  readonly until?: () => boolean
}

/** Resolves, with nothing in flight, when the signal aborted or `until` said so; rejects with what ended it. */
export async function relayPages(
  options: RelayPagesOptions,
  capture: Capture,
  lease: Pick<Lease, 'assertHeld'>,
  signal: AbortSignal,
): Promise<void> {
  const { onPublished, until = () => false } = options
  const dispatching = { ...options, assertHeld: () => lease.assertHeld() }
  const over = (): boolean => signal.aborted || until()
  let ahead: Promise<Page | undefined> | undefined
  try {
    for (;;) {
      const page = await (ahead ?? capture.read())
      ahead = undefined
      if (over()) return
      if (page === undefined) {
        lease.assertHeld()
        await capture.idle(signal)
        if (over()) return
        continue
      }
      lease.assertHeld()
      await capture.open(page)
      if (capture.readsAhead) {
        // It is opened only after this one is published.
        ahead = capture.read()
        ahead.catch(() => {})
      }
      if (!(await dispatch(page.messages, dispatching, signal))) return
      capture.published(page)
      onPublished(page)
    }
  } finally {
    await ahead?.catch(() => {})
  }
}
