/**
 * Writes publishes down for the connection, one behind the other, as the protocol has them:
 *
 *     HPUB <subject> [<reply>] <header bytes> <all bytes>\r\n<headers><payload>\r\n
 *
 * `nc.publish` makes a buffer of each command and packs it with headers and payload into another (measured: a sixth of a
 * relay's processor time, and more garbage than all that is sent). Here they are written into frames, which are handed
 * over as nats.js hands over commands of its own. That is not in its documentation, so it is looked at before it is
 * used; where it is not as it was, and for what is large, `nc.publish` serves.
 */
import type { MsgHdrs, NatsConnection } from '@nats-io/transport-node'
import { HeaderCarrier } from './header-carrier.ts'

/** What of nats.js is used beyond its documentation. */
interface Commands {
  /** Sends what was given to `sendCommand` now, and not at the end of the microtask. */
  flushPending(): void
  sendCommand(command: Uint8Array): void
}

/** So much is written at once: below what the allocator takes from the system, and gives back, each time. */
const FRAME_BYTES = 64 * 1024

/** A larger message goes by itself. */
const MAX_BYTES = FRAME_BYTES / 2

/** No command is longer but for its subject and its reply: the verb, two numbers, line ends. */
const COMMAND_BYTES = 40

const CR = 0x0d
const LF = 0x0a

/** Publishes of one connection. */
export class Outbound {
  readonly #carrier: HeaderCarrier
  readonly #commands: Commands | undefined
  readonly #mayFlush: () => boolean
  readonly #nc: NatsConnection
  #frame = Buffer.alloc(0)
  /** What is written and not handed over. */
  #start = 0
  #end = 0
  #scheduled = false
  readonly #onMicrotask = (): void => {
    this.#scheduled = false
    this.#flush()
  }

  /** `mayFlush` says whether there is a server to send to: what was written for one that is gone is dropped. */
  constructor(nc: NatsConnection, headers: MsgHdrs, mayFlush: () => boolean) {
    this.#nc = nc
    this.#carrier = new HeaderCarrier(headers)
    this.#commands = commandsOf(nc)
    this.#mayFlush = mayFlush
  }

  /** Publishes; `headers` is a whole header block. On its way when the microtask ends. Throws when the connection is closed. */
  publish(subject: string, headers: string, payload: Uint8Array, reply: string | undefined): void {
    const headerBytes = Buffer.byteLength(headers)
    const bytes = headerBytes + payload.length
    // In UTF-8 a character has at most three bytes.
    const most = COMMAND_BYTES + 3 * (subject.length + (reply?.length ?? 0)) + bytes
    if (this.#commands === undefined || most > MAX_BYTES || this.#nc.isClosed())
      return this.#publishAlone(subject, Buffer.from(headers), payload, reply)
    if (this.#end + most > this.#frame.length) {
      this.#flush()
      this.#frame = Buffer.allocUnsafeSlow(FRAME_BYTES)
      this.#start = this.#end = 0
    }
    const frame = this.#frame
    const to = reply === undefined ? '' : `${reply} `
    let at = this.#end
    at += frame.write(`HPUB ${subject} ${to}${headerBytes} ${bytes}\r\n${headers}`, at)
    frame.set(payload, at)
    at += payload.length
    frame[at++] = CR
    frame[at++] = LF
    this.#end = at
    if (this.#scheduled) return
    this.#scheduled = true
    queueMicrotask(this.#onMicrotask)
  }

  #publishAlone(subject: string, headers: Uint8Array, payload: Uint8Array, reply: string | undefined): void {
    this.#flush()
    const carried = this.#carrier.carry(headers)
    this.#nc.publish(subject, payload, reply === undefined ? { headers: carried } : { headers: carried, reply })
  }

  #flush(): void {
    const written = this.#frame.subarray(this.#start, this.#end)
    this.#start = this.#end
    if (written.length === 0 || this.#commands === undefined || !this.#mayFlush()) return
    this.#commands.sendCommand(written)
    this.#commands.flushPending()
  }
}

function commandsOf(nc: NatsConnection): Commands | undefined {
  const { protocol } = nc as NatsConnection & { readonly protocol?: Partial<Commands> }
  const known = typeof protocol?.flushPending === 'function' && typeof protocol.sendCommand === 'function'
  return known ? (protocol as Commands) : undefined
}
