/** A half-open network: the connections stay, and nothing comes through. */
import { type Socket, connect, createServer } from 'node:net'
import { type AddressInfo } from 'node:net'

export interface SilentProxy {
  /** The target's URL with the proxy's port. */
  readonly url: string
  /** Lets nothing through any more, in either direction, on the connections that are open; new ones are refused. */
  silence(): void
  /** New connections work again; the old ones stay silent. */
  speak(): void
  close(): Promise<void>
}

export async function silentProxy(target: URL): Promise<SilentProxy> {
  const sockets = new Set<Socket>()
  let silent = false
  const server = createServer((client) => {
    if (silent) return void client.destroy()
    const upstream = connect(Number(target.port), target.hostname)
    client.pipe(upstream)
    upstream.pipe(client)
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => sockets.delete(socket))
    }
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = new URL(target)
  url.hostname = '127.0.0.1'
  url.port = String((server.address() as AddressInfo).port)
  return {
    url: url.href,
    silence() {
      silent = true
      for (const socket of sockets) socket.unpipe().pause()
    },
    speak() {
      silent = false
    },
    async close() {
      for (const socket of sockets) socket.destroy()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}
