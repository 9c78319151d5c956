import { createServer } from 'node:net'
import { MillraceError } from '../../core/errors.ts'
import { systemClock } from '../../core/clock.ts'

// Below the ranges from which Linux (32768) and macOS (49152) take the ports of outgoing connections: a server that is
// stopped for a while must find its port free when it comes back.
const FIRST = 10_240
const LAST = 32_000

const given = new Set<number>()

/** A port of 127.0.0.1 that is free now, and that this process was not given before. */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 200; attempt++) {
    const port = FIRST + Math.floor(systemClock.random() * (LAST - FIRST))
    if (given.has(port) || !(await isFree(port))) continue
    given.add(port)
    return port
  }
  throw new MillraceError(
    'SERVICE_START_FAILED',
    `No free port found on 127.0.0.1 between ${FIRST} and ${LAST}: stop what listens there.`,
  )
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}
