/** Fails a test, or a file, that leaves open what `track` was told of: a database, a relay, a consumer, a server. */
import { afterAll, beforeEach, onTestFinished } from 'vitest'
import { openNow, refuseLeaks } from '../support/leaks.ts'

// Hooks that end a test run in reverse order: registered first, this check runs last.
beforeEach(() => {
  const before = openNow()
  onTestFinished(() => refuseLeaks(before))
})

afterAll(() => refuseLeaks(new Set()))
