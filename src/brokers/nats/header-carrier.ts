import type { MsgHdrs } from '@nats-io/transport-node'

/**
 * Headers that are bytes already. nats.js asks the headers of a publish for one thing, `encode()`, and does so before
 * `publish` returns; so one real `MsgHdrs` whose `encode` gives the bytes of the moment serves every message.
 */
export class HeaderCarrier {
  readonly headers: MsgHdrs
  #bytes: Uint8Array

  constructor(headers: MsgHdrs) {
    this.#bytes = new Uint8Array()
    this.headers = Object.assign(headers, { encode: () => this.#bytes })
  }

  /** The headers of the next publish. */
  carry(bytes: Uint8Array): MsgHdrs {
    this.#bytes = bytes
    return this.headers
  }
}
