import type { OutgoingMessage } from '../../core/message.ts'
import { HEADER, writeHeaders } from '../../core/wire.ts'
import { ENCODED, encodeKey, encodeText, mustEncode } from './header-text.ts'

// A name as NATS has it (RFC 822): printable ASCII without the colon. `Nats-` commands the server: roll-up, expiry,
// batches, expectations. No header of an event may do that.
const HEADER_NAME = /^(?!nats-)[!-9;-~]+$/i

/** What the message is on the wire: the header block; or why it cannot be. */
export type EncodedHeaders = Buffer | string

/**
 * Writes the header block by hand. nats.js' own `MsgHdrs` canonicalises and searches every name at every `append`,
 * which costs more than all the rest of a publish.
 *
 * `Nats-Msg-Id` is what the server deduplicates by. `commands` are more lines for the server, each with its line end.
 */
export function encodeHeaders(message: OutgoingMessage, commands = ''): EncodedHeaders {
  let block = 'NATS/1.0\r\n'
  let encoded = ''
  let why: string | undefined
  const add = (name: string, value: string): void => {
    if (!HEADER_NAME.test(name)) {
      why ??= `NATS cannot carry the header name ${JSON.stringify(name)}`
    } else if (mustEncode(value)) {
      block += `${name}: ${encodeText(value)}\r\n`
      encoded += encoded === '' ? name : ` ${name}`
    } else {
      block += `${name}: ${value}\r\n`
    }
  }
  writeHeaders(message, add)
  if (why !== undefined) return why
  if (message.key !== null) block += `${HEADER.key}: ${encodeKey(message.key)}\r\n`
  if (encoded !== '') block += `${ENCODED}: ${encoded}\r\n`
  return Buffer.from(`${block}Nats-Msg-Id: ${message.id}\r\n${commands}\r\n`)
}
