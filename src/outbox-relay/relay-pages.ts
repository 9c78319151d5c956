/** The loop of a term: page after page, each opened, published and noted, until it is told to end. */
import type { Capture, Page } from './capture/capture.ts'
import { type DispatchOptions, dispatch } from './dispatch.ts'
import type { Lease } from './lease.ts'
import type { ParkingOwner } from './parking/parking-owner.ts'

/** What relaying pages needs, and whom it tells. */
export interface RelayPagesOptions extends Omit<DispatchOptions, 'assertHeld'> {
  /** A page is done; so many of its events were not published but parked, or discarded before. */
  readonly onPublished: (page: Page, setAside: number) => void
  readonly parking: ParkingOwner
  /** Asked between pages; true ends the loop as the signal does. Default: only the signal ends it. */
  readonly until?: () => boolean | Promise<boolean>
}

/** Resolves, with nothing in flight, when the signal aborted or `until` said so; rejects with what ended it. */
export async function relayPages(
  options: RelayPagesOptions,
  capture: Capture,
  lease: Pick<Lease, 'assertHeld'>,
  signal: AbortSignal,
): Promise<void> {
  const { onPublished, parking, until = () => false } = options
  const dispatching = { ...options, assertHeld: () => lease.assertHeld() }
  const over = async (): Promise<boolean> => signal.aborted || until()
  let ahead: Promise<Page | undefined> | undefined
  await parking.begin()
  try {
    for (;;) {
      await parking.attend()
      const page = await (ahead ?? capture.read())
      ahead = undefined
      if (await over()) return
      if (page === undefined) {
        lease.assertHeld()
        await parking.whileIdle((waiting) => capture.idle(waiting), signal)
        if (await over()) return
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
      onPublished(page, parking.takeSetAside())
      await parking.crashes.progress(page.shards)
    }
  } finally {
    await ahead?.catch(() => {})
  }
}
