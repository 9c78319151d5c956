import { connect } from 'node:net'
import type { Socket } from 'node:net'
import type { Clock } from '../../../core/clock.ts'
import { withDeadline } from '../../../core/clock.ts'
import { ERROR_CODES, MillraceError } from '../../../core/errors.ts'
import type { ErrorCode } from '../../../core/errors.ts'
import type { Address } from './address.ts'
import { formatAddress } from './address.ts'
import { controlFrame, FRAME, FrameReader, integerOf, protocolError, readControl } from './frame.ts'

/** The version of the protocol; both sides must speak the same. */
export const PROTOCOL = 1

type Control = Readonly<Record<string, unknown>>

/** What a connection tells its owner. */
export interface ConnectionEvents {
  onControl?(control: Control): void
  onHandOver?(body: Buffer): void
  /** It is over, once; not called after `end`. */
  onLost?(error: Error): void
}

interface Request {
  readonly resolve: (answer: Control) => void
  readonly reject: (error: Error) => void
}

/** A client's connection to a served memory broker: requests and their answers, and what the broker tells. */
export class Connection {
  readonly #socket: Socket
  readonly #clock: Clock
  readonly #requests = new Map<number, Request>()
  readonly #events: ConnectionEvents
  #lastRequest = 0
  #over = false

  private constructor(socket: Socket, clock: Clock, events: ConnectionEvents) {
    this.#socket = socket
    this.#clock = clock
    this.#events = events
    const reader = new FrameReader((kind, body) => this.#take(kind, body))
    socket.on('data', (chunk: Buffer) => {
      try {
        reader.push(chunk)
      } catch (error) {
        this.#lose(error as Error)
      }
    })
    socket.on('error', (error) => this.#lose(error))
    socket.on('close', () => this.#lose(new Error('the socket was closed')))
  }

  /** Connects and greets; rejects with BROKER_UNREACHABLE when there is no answer in time. */
  static async open(
    address: Address,
    clock: Clock,
    timeoutMs: number,
    events: ConnectionEvents = {},
  ): Promise<Connection> {
    const connection = new Connection(connect({ ...address, noDelay: true }), clock, events)
    try {
      await connection.request({ method: 'hello', protocol: PROTOCOL }, timeoutMs)
      return connection
    } catch (cause) {
      connection.end()
      const url = formatAddress(address)
      const text = `no memory broker answers at ${url} within ${timeoutMs} ms: serve one there by serveMemory()`
      throw new MillraceError('BROKER_UNREACHABLE', text, { cause, details: { url } })
    }
  }

  /** Whether it still can be used. */
  get open(): boolean {
    return !this.#over
  }

  nextRequestId(): number {
    return (this.#lastRequest = (this.#lastRequest % 0x7fffffff) + 1)
  }

  /** Asks by a control frame; rejects with what the broker says, or CONNECTION_LOST. */
  request(control: object, timeoutMs: number): Promise<Control> {
    const request = this.nextRequestId()
    return this.ask(request, controlFrame({ request, ...control }), timeoutMs)
  }

  /** Asks by a frame that carries this request id. */
  async ask(requestId: number, frame: Buffer, timeoutMs: number): Promise<Control> {
    if (this.#over) throw new MillraceError('CONNECTION_LOST', 'the connection to the memory broker is gone')
    const answer = new Promise<Control>((resolve, reject) => this.#requests.set(requestId, { resolve, reject }))
    this.#socket.write(frame)
    const late = (): Error => new MillraceError('CONNECTION_LOST', `no answer within ${timeoutMs} ms`)
    try {
      return await withDeadline(this.#clock, answer, timeoutMs, late)
    } finally {
      this.#requests.delete(requestId)
    }
  }

  /** Tells by a control frame, without an answer. */
  tell(control: object): void {
    if (!this.#over) this.#socket.write(controlFrame(control))
  }

  /** Ends it, quietly: `onLost` is not called. Requests that wait are answered CONNECTION_LOST. */
  end(): void {
    this.#finish(new Error('the connection was ended'))
  }

  #take(kind: number, body: Buffer): void {
    if (kind === FRAME.handOver) return this.#events.onHandOver?.(body)
    if (kind !== FRAME.control) throw protocolError(`a frame of kind ${kind}`)
    const control = readControl(body)
    if (control['answer'] === undefined) return this.#events.onControl?.(control)
    const request = this.#requests.get(integerOf(control['answer']))
    if (control['error'] === undefined) request?.resolve(control)
    else request?.reject(readError(control['error']))
  }

  #lose(cause: Error): void {
    if (this.#finish(cause)) this.#events.onLost?.(lost(cause))
  }

  #finish(cause: Error): boolean {
    if (this.#over) return false
    this.#over = true
    this.#socket.destroy()
    for (const { reject } of this.#requests.values()) reject(lost(cause))
    return true
  }
}

function lost(cause: Error): MillraceError {
  return new MillraceError('CONNECTION_LOST', `the connection to the memory broker is gone: ${cause.message}`, {
    cause,
  })
}

/** An error as it travels: its text is cut, since an answer carries one for each message. */
export function writeError(error: unknown): { code: string; message: string } {
  const code = error instanceof MillraceError ? error.code : 'PUBLISH_REFUSED'
  return { code, message: (error instanceof Error ? error.message : 'an unknown error').slice(0, 400) }
}

/** An error that travelled. */
export function readError(value: unknown): MillraceError {
  const { code, message } = (value ?? {}) as { code?: unknown; message?: unknown }
  const known = typeof code === 'string' && Object.hasOwn(ERROR_CODES, code) ? (code as ErrorCode) : 'PUBLISH_REFUSED'
  return new MillraceError(known, typeof message === 'string' ? message : 'the memory broker refused')
}
