import { connect } from 'node:net'

/**
 * Opens a connection, says `request`, and gives every byte heard so far to `hear` until that returns something. Resolves
 * with undefined when nobody listens, the peer hangs up, or `timeoutMs` pass: ask again later.
 */
export function converse<T>(
  target: { readonly host?: string; readonly port: number },
  request: Buffer | undefined,
  hear: (heard: Buffer) => T | undefined,
  timeoutMs = 1_000,
): Promise<T | undefined> {
  return new Promise((resolve) => {
    let heard = Buffer.alloc(0)
    const socket = connect(target.port, target.host ?? '127.0.0.1')
    const end = (answer: T | undefined): void => {
      socket.destroy()
      resolve(answer)
    }
    socket.setTimeout(timeoutMs, () => end(undefined))
    socket.on('error', () => end(undefined))
    socket.on('close', () => end(undefined))
    socket.on('data', (chunk) => {
      heard = Buffer.concat([heard, chunk])
      const answer = hear(heard)
      if (answer !== undefined) end(answer)
    })
    if (request !== undefined) socket.write(request)
  })
}
