import type { NatsConnection } from '@nats-io/transport-node'
import type { Durable } from './durable.ts'
import { PRIORITY_GROUP } from './durable.ts'

const NANOS = 1_000_000
/** The reply token of requests that only keep the pin. */
const KEEP = 'keep'

/** How a reader asks for messages. */
export interface PullRequestsOptions {
  readonly durable: Durable
  /** Answers come to `<inbox>.<token>`; messages come to the same subscription under their own subject. */
  readonly inbox: string
  readonly maxBytes: number
  readonly nc: NatsConnection
  readonly sessionTimeoutMs: number
}

/** The end of a request, as the server tells it. */
export interface PullStatus {
  readonly code: number
  /** True when the request merely ran out and asking again at once is right. */
  readonly ranOut: boolean
}

/**
 * The pull requests of one reader: how many messages were asked for and may still come (`credit`), and the pin under
 * which they were asked.
 *
 * Messages do not say which request brought them, so there is one credit for all requests; each request that ends
 * early says how much of its share will not come.
 */
export class PullRequests {
  readonly expiresMs: number
  readonly heartbeatMs: number
  readonly #options: PullRequestsOptions
  readonly #subject: string
  readonly #open = new Map<string, number>()
  #credit = 0
  #nextToken = 0

  constructor(options: PullRequestsOptions) {
    this.#options = options
    // Short enough that the server soon stops delivering to a member that died with its connection open.
    this.expiresMs = Math.min(30_000, Math.max(1000, Math.floor(options.sessionTimeoutMs / 2)))
    this.heartbeatMs = Math.floor(this.expiresMs / 3)
    this.#subject = `$JS.API.CONSUMER.MSG.NEXT.${options.durable.stream}.${options.durable.name}`
  }

  /** How many messages may still come. */
  get credit(): number {
    return this.#credit
  }

  /** Asks for messages; with a pin, as the member that the server serves. */
  ask(batch: number, pin: string): void {
    const token = String(this.#nextToken++)
    this.#open.set(token, batch)
    this.#credit += batch
    this.#publish(token, {
      batch,
      expires: this.expiresMs * NANOS,
      idle_heartbeat: this.heartbeatMs * NANOS,
      max_bytes: this.#options.maxBytes,
      ...this.#as(pin),
    })
  }

  /**
   * Keeps the pin and brings nothing: any request under the pin renews it, and no message has one byte. A paused
   * reader needs this, and so does one with nothing to ask for.
   */
  keepPin(pin: string): void {
    this.#publish(KEEP, { batch: 1, max_bytes: 1, no_wait: true, ...this.#as(pin) })
  }

  /** A message came. */
  arrived(): void {
    if (this.#credit > 0) this.#credit -= 1
    if (this.#credit === 0) this.#open.clear()
  }

  /**
   * A status came to `<inbox>.<token>`; returns what it means, or undefined for one that changes nothing.
   * `pendingHeader` is the server's count of what the request will not bring.
   */
  ended(subject: string, code: number, pendingHeader: string): PullStatus | undefined {
    const token = subject.slice(this.#options.inbox.length + 1)
    if (token === KEEP) return code === WRONG_PIN ? { code, ranOut: false } : undefined
    if (code === HEARTBEAT) return undefined
    const batch = this.#open.get(token)
    if (batch === undefined) return code === WRONG_PIN ? { code, ranOut: false } : undefined
    this.#open.delete(token)
    const rest = pendingHeader === '' ? batch : Math.min(batch, Number(pendingHeader))
    this.#credit = this.#open.size === 0 ? 0 : Math.max(0, this.#credit - rest)
    return { code, ranOut: pendingHeader !== '' }
  }

  /** Nothing that was asked for will come. */
  reset(): void {
    this.#open.clear()
    this.#credit = 0
  }

  #as(pin: string): object {
    return pin === '' ? { group: PRIORITY_GROUP } : { group: PRIORITY_GROUP, id: pin }
  }

  #publish(token: string, request: object): void {
    const { inbox, nc } = this.#options
    if (!nc.isClosed()) nc.publish(this.#subject, JSON.stringify(request), { reply: `${inbox}.${token}` })
  }
}

const HEARTBEAT = 100
/** The status of a request under a pin that is not the pin any more: another member is being served. */
export const WRONG_PIN = 423
