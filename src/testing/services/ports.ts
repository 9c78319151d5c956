import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'
import { MillraceError } from '../../core/errors.ts'
import { systemClock } from '../../core/clock.ts'

// Below the ranges from which Linux (32768) and macOS (49152) take the ports of outgoing connections: a server that is
// stopped for a while must find its port free when it comes back.
const FIRST = 10_240
const LAST = 32_000

/**
 * A port of 127.0.0.1 that is free now, and that no process was given that still runs: between this and the moment in
 * which a server listens there, and while one is stopped, nothing else shows that it is taken.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 200; attempt++) {
    const port = FIRST + Math.floor(systemClock.random() * (LAST - FIRST))
    if ((await reserve(port)) && (await isFree(port))) return port
  }
  throw new MillraceError(
    'SERVICE_START_FAILED',
    `No free port found on 127.0.0.1 between ${FIRST} and ${LAST}: stop what listens there.`,
  )
}

/** Holds the UDP port of the same number, which no server here uses, until this process ends. False when another does. */
function reserve(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const sign = createSocket('udp4')
    sign.once('error', () => {
      sign.close()
      resolve(false)
    })
    sign.bind({ address: '127.0.0.1', exclusive: true, port }, () => resolve(true))
    sign.unref()
  })
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}
