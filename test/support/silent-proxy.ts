/** A half-open network: connections stay, and nothing comes through. */
import { type AddressInfo, type Socket, connect, createServer } from 'node:net'

export interface SilentProxy {
  /** The target's URL with the proxy's port. */
  readonly url: string
  /** Lets nothing through any more on the connections that are open, or on the one whose port at the target is given. */
  silence(portAtTarget?: number): void
  /** What becomes of new connections: they are refused, accepted and left silent, or served. They are served at first. */
  newcomers(fate: 'refused' | 'silent' | 'served'): void
  /** Where new connections lead from now on. */
  lead(target: URL): void
  /** Ends the connections that are open. */
  cut(): void
  close(): Promise<void>
}

export async function silentProxy(target: URL): Promise<SilentProxy> {
  const pairs = new Set<readonly [client: Socket, upstream: Socket]>()
  let fate: 'refused' | 'silent' | 'served' = 'served'
  let to = target
  const server = createServer((client) => {
    if (fate === 'refused') return void client.destroy()
    const upstream = connect(Number(to.port), to.hostname)
    const pair = [client, upstream] as const
    pairs.add(pair)
    if (fate === 'served') {
      client.pipe(upstream)
      upstream.pipe(client)
    }
    for (const socket of pair) {
      socket.on('error', () => {})
      socket.on('close', () => {
        pairs.delete(pair)
        client.destroy()
        upstream.destroy()
      })
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = new URL(target)
  url.hostname = '127.0.0.1'
  url.port = String((server.address() as AddressInfo).port)
  const cut = (): void => {
    for (const [client] of pairs) client.destroy()
  }
  return {
    url: url.href,
    silence(portAtTarget) {
      for (const [client, upstream] of pairs) {
        if (portAtTarget !== undefined && upstream.localPort !== portAtTarget) continue
        for (const socket of [client, upstream]) socket.unpipe().pause()
      }
    },
    newcomers: (next) => void (fate = next),
    lead: (next) => void (to = next),
    cut,
    async close() {
      cut()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}
