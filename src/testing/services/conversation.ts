import { connect } from 'node:net'

/** Whom to talk to: a port of a host, 127.0.0.1 by default, or a socket in the file system. */
export type Peer = { readonly host?: string; readonly port: number } | { readonly path: string }

/**
 * Opens a connection, says `request`, and gives every byte heard so far to `hear` until that returns something. Resolves
 * with undefined when nobody listens, the peer hangs up, or `timeoutMs` pass: ask again later. Rejects with what `hear` throws.
 */
export function converse<T>(
  peer: Peer,
  request: Buffer | undefined,
  hear: (heard: Buffer) => T | undefined,
  timeoutMs = 1_000,
): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    let heard = Buffer.alloc(0)
    const socket = 'path' in peer ? connect(peer.path) : connect(peer.port, peer.host ?? '127.0.0.1')
    const end = (answer: T | undefined): void => {
      socket.destroy()
      resolve(answer)
    }
    socket.setTimeout(timeoutMs, () => end(undefined))
    socket.on('error', () => end(undefined))
    socket.on('close', () => end(undefined))
    socket.on('data', (chunk) => {
      heard = Buffer.concat([heard, chunk])
      try {
        const answer = hear(heard)
        if (answer !== undefined) end(answer)
      } catch (error) {
        // A stranger has the port, and says what cannot be read.
        reject(error as Error)
        socket.destroy()
      }
    })
    if (request !== undefined) socket.write(request)
  })
}

/** Whether somebody accepts a connection within `timeoutMs`. */
export function accepts(peer: Peer, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = 'path' in peer ? connect(peer.path) : connect(peer.port, peer.host ?? '127.0.0.1')
    const end = (accepted: boolean): void => {
      socket.destroy()
      resolve(accepted)
    }
    socket.setTimeout(timeoutMs, () => end(false))
    socket.on('error', () => end(false))
    socket.on('connect', () => end(true))
  })
}
