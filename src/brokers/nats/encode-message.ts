import type { OutgoingMessage } from '../../core/message.ts'
import { HEADER, writeHeaders } from '../../core/wire.ts'
import { ENCODED, encodeKey, encodeText, mustEncode } from './header-text.ts'

// A name as NATS has it (RFC 822): printable ASCII without the colon. `Nats-` commands the server: roll-up, expiry,
// batches, expectations. No header of an event may do that.
const HEADER_NAME = /^(?!nats-)[!-9;-~]+$/i

/** Names that were looked at: events mostly have the same few. */
const known = new Set<string>()
const MAX_KNOWN = 1000

/**
 * Writes the header block by hand. nats.js' own `MsgHdrs` canonicalises and searches every name at every `append`,
 * which costs more than all the rest of a publish.
 *
 * `Nats-Msg-Id` is what the server deduplicates by. `commands` are more lines for the server, each with its line end.
 *
 * @throws RangeError which says why NATS cannot carry the message.
 */
export function encodeHeaders(message: OutgoingMessage, commands = ''): string {
  let block = 'NATS/1.0\r\n'
  let encoded = ''
  const add = (name: string, value: string): void => {
    if (!known.has(name)) learn(name)
    if (mustEncode(value)) {
      block += `${name}: ${encodeText(value)}\r\n`
      encoded += encoded === '' ? name : ` ${name}`
    } else {
      block += `${name}: ${value}\r\n`
    }
  }
  writeHeaders(message, add)
  if (message.key !== null) block += `${HEADER.key}: ${encodeKey(message.key)}\r\n`
  if (encoded !== '') block += `${ENCODED}: ${encoded}\r\n`
  return `${block}Nats-Msg-Id: ${message.id}\r\n${commands}\r\n`
}

function learn(name: string): void {
  if (!HEADER_NAME.test(name)) throw new RangeError(`NATS cannot carry the header name ${JSON.stringify(name)}`)
  if (known.size >= MAX_KNOWN) known.clear()
  known.add(name)
}
