import { converse } from './conversation.ts'

const METADATA = 3
const CORRELATION = 0x6d696c6c

/**
 * Asks a broker for the cluster's metadata, version 1, without topics, and resolves with the number of live brokers, as
 * text; undefined while there is none. A port answers some tens of milliseconds before the broker has joined its cluster.
 */
export async function askKafka(target: { readonly host?: string; readonly port: number }): Promise<string | undefined> {
  const client = Buffer.from('millrace')
  const request = Buffer.alloc(18 + client.length)
  request.writeInt32BE(request.length - 4, 0)
  request.writeInt16BE(METADATA, 4)
  request.writeInt16BE(1, 6)
  request.writeInt32BE(CORRELATION, 8)
  request.writeInt16BE(client.length, 12)
  client.copy(request, 14)
  request.writeInt32BE(0, 14 + client.length)
  const brokers = await converse(target, request, (heard) => {
    if (heard.length < 12 || heard.readInt32BE(4) !== CORRELATION) return undefined
    return heard.readInt32BE(8)
  })
  return brokers === undefined || brokers === 0 ? undefined : `${brokers} broker(s)`
}
