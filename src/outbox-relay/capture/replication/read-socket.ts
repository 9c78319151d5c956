/**
 * The socket of a replication connection. Node reads into one buffer that is used again, and a pause stops the reading at
 * once; a socket read by `data` events makes a buffer for every read, and reads on into its own queue while it is paused.
 *
 * `pg` makes its connection over it and hears `data` as ever, until the socket is taken over. Over TLS, or with a
 * `stream` option of the user's own, it is an ordinary socket, read by events.
 */
import { Socket } from 'node:net'

/** One read takes at most so much. */
const READ_BYTES = 256 * 1024

const readers = new WeakMap<Socket, { onChunk: ((chunk: Buffer) => void) | undefined }>()

/** What `pg` takes as its `stream` option. */
export function makeReadSocket(config: { readonly ssl?: unknown }): Socket {
  if (config.ssl) return new Socket()
  const reader: { onChunk: ((chunk: Buffer) => void) | undefined } = { onChunk: undefined }
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  const socket = new Socket({
    onread: {
      buffer,
      callback: (bytes) => {
        const chunk = buffer.subarray(0, bytes)
        if (reader.onChunk === undefined) socket.emit('data', Buffer.from(chunk))
        else reader.onChunk(chunk)
        return true
      },
    },
  })
  readers.set(socket, reader)
  return socket
}

/**
 * From now on the listener has all that is read, and nobody else. A chunk is valid during the call, and for as long as the
 * socket is paused if it was paused in the call.
 */
export function takeOver(socket: Socket, onChunk: (chunk: Buffer) => void): void {
  socket.removeAllListeners('data')
  const reader = readers.get(socket)
  if (reader === undefined) socket.on('data', onChunk)
  else reader.onChunk = onChunk
}
