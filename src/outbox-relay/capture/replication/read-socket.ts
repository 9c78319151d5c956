/** The socket of a replication connection, which `pg` connects and the stream takes over. */
import { Socket, type SocketConstructorOpts } from 'node:net'
import type { DuplexOptions } from 'node:stream'

/**
 * What a paused socket still reads into its own queue, where Node's default is 64 KiB. It must not be nothing: a server
 * whose rows all have to wait in the kernel pays more for each (measured: with reads stopped at once its CPU per row rises
 * by a fifth). Nor much: each row that is read while paused wakes us for itself.
 */
const READ_AHEAD_BYTES = 16 * 1024

/** What `pg` takes as its `stream` option. Over TLS it wraps the socket in one of its own. */
export function makeReadSocket(): Socket {
  const options: SocketConstructorOpts & DuplexOptions = { readableHighWaterMark: READ_AHEAD_BYTES }
  return new Socket(options)
}

/** From now on the listener has all that is read, and nobody else. Each chunk is its own: it may be kept. */
export function takeOver(socket: Socket, onChunk: (chunk: Buffer) => void): void {
  socket.removeAllListeners('data')
  socket.on('data', onChunk)
}
