import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { MillraceError } from '../../../core/errors.ts'
import { OptionCheck } from '../../../core/options.ts'
import type { MemoryBroker } from '../memory-broker.ts'
import { formatAddress } from './address.ts'
import { ServerSession } from './server-session.ts'

const MAX_CONNECTIONS = 256

/** Where to serve. */
export interface ServeMemoryOptions {
  /** The path of a unix socket; what stands there must be gone before. Default: none, a port is used. */
  readonly path?: string
  /** A port on 127.0.0.1; 0 takes a free one. There is no authentication: whoever may use this machine may connect. Default: 0. */
  readonly port?: number
}

/** A memory broker that is served on this machine. */
export interface MemoryServer extends AsyncDisposable {
  /** For `memory({ url })`: `memory://127.0.0.1:PORT` or `memory:///path`. */
  readonly url: string
  /** Stops serving and cuts every connection. The broker stays as it is. Idempotent. */
  close(): Promise<void>
}

/**
 * Serves a memory broker to other processes of this machine, which see it as `memory({ url })`. They may die at any
 * moment; the broker lives on in this process.
 */
export async function serveMemory(host: MemoryBroker, options: ServeMemoryOptions = {}): Promise<MemoryServer> {
  const check = new OptionCheck('serveMemory', options, ['path', 'port'])
  check.integer('port', 0, 65_535)
  check.satisfies('path', (value) => typeof value === 'string' && value.startsWith('/'), 'an absolute path')
  check.done()
  const sessions = new Set<ServerSession>()
  const server = createServer({ noDelay: true }, (socket) => {
    const session = new ServerSession(socket, host, () => sessions.delete(session))
    sessions.add(session)
  })
  server.maxConnections = MAX_CONNECTIONS
  await new Promise<void>((resolve, reject) => {
    // For good: a connection that cannot be accepted, for want of file descriptors say, must not end the process.
    server.on('error', (cause) => {
      reject(new MillraceError('BROKER_UNREACHABLE', `cannot serve a memory broker: ${cause.message}`, { cause }))
    })
    if (options.path === undefined) server.listen(options.port ?? 0, '127.0.0.1', resolve)
    else server.listen(options.path, resolve)
  })
  const url = formatAddress(
    options.path === undefined
      ? { host: '127.0.0.1', port: (server.address() as AddressInfo).port }
      : { path: options.path },
  )
  let closing: Promise<void> | undefined
  const close = (): Promise<void> => {
    closing ??= new Promise((resolve) => {
      server.close(() => resolve())
      for (const session of sessions) session.end()
    })
    return closing
  }
  return { url, close, [Symbol.asyncDispose]: close }
}
