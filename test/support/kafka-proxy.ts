/**
 * A network to a Kafka broker that a test can spoil: it knows requests from answers, so that it can swallow the answer to
 * a produce request that the broker has carried out. The broker must advertise the proxy's port, or clients go round it.
 */
import { type AddressInfo, type Socket, connect, createServer } from 'node:net'

const PRODUCE = 0

export interface KafkaProxy {
  /** `host:port` of the proxy. */
  readonly address: string
  /** How many produce requests it has let through. */
  readonly produced: number
  /** Holds back everything that the broker answers for so long, milliseconds; 0 for no longer. */
  slow(delayMs: number): void
  /** Nothing passes any more on the connections that are open now, in either direction; new ones are served. */
  freeze(): void
  /** Swallows the answers to the next `count` produce requests; resolves when the last of them has been swallowed. */
  swallow(count: number): Promise<void>
  /** Ends the connections that are open. */
  cut(): void
  close(): Promise<void>
}

interface Pair {
  readonly client: Socket
  readonly upstream: Socket
  /** By correlation id, the produce requests whose answer is to be swallowed. */
  readonly doomed: Set<number>
  frozen: boolean
}

export async function kafkaProxy(targetPort: number): Promise<KafkaProxy> {
  const pairs = new Set<Pair>()
  let [delayMs, produced, toSwallow, pending] = [0, 0, 0, 0]
  let swallowed: (() => void) | undefined

  const fromClient = (pair: Pair, frame: Buffer): void => {
    if (pair.frozen) return
    if (frame.readInt16BE(4) === PRODUCE) {
      produced++
      if (toSwallow > 0) {
        toSwallow--
        pair.doomed.add(frame.readInt32BE(8))
      }
    }
    pair.upstream.write(frame)
  }
  const fromBroker = (pair: Pair, frame: Buffer): void => {
    if (pair.frozen) return
    if (pair.doomed.delete(frame.readInt32BE(4))) {
      if (--pending === 0) swallowed?.()
      return
    }
    if (delayMs === 0) pair.client.write(frame)
    else setTimeout(() => pair.client.destroyed || pair.client.write(frame), delayMs)
  }
  const server = createServer((client) => {
    const pair: Pair = { client, doomed: new Set(), frozen: false, upstream: connect(targetPort, '127.0.0.1') }
    pairs.add(pair)
    eachFrame(client, (frame) => fromClient(pair, frame))
    eachFrame(pair.upstream, (frame) => fromBroker(pair, frame))
    for (const socket of [client, pair.upstream]) {
      socket.setNoDelay(true)
      socket.on('error', () => {})
      socket.on('close', () => {
        pairs.delete(pair)
        client.destroy()
        pair.upstream.destroy()
      })
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const cut = (): void => {
    for (const { client } of pairs) client.destroy()
  }
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    get produced() {
      return produced
    },
    slow: (next) => void (delayMs = next),
    freeze() {
      for (const pair of pairs) pair.frozen = true
    },
    swallow(count) {
      toSwallow = pending = count
      return new Promise((resolve) => (swallowed = resolve))
    },
    cut,
    async close() {
      cut()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}

/** Calls back with every request or answer, its length before it. */
function eachFrame(socket: Socket, hear: (frame: Buffer) => void): void {
  let heard: Buffer = Buffer.alloc(0)
  socket.on('data', (chunk) => {
    heard = heard.length === 0 ? chunk : Buffer.concat([heard, chunk])
    while (heard.length >= 4 && heard.length >= 4 + heard.readInt32BE(0)) {
      const end = 4 + heard.readInt32BE(0)
      hear(heard.subarray(0, end))
      heard = heard.subarray(end)
    }
  })
}
