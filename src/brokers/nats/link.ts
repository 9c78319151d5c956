import type { NatsConnection, Status } from '@nats-io/transport-node'
import type { Clock } from '../../core/clock.ts'
import { withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { TLS_REFUSALS } from '../tls-refusals.ts'
import { isAuthorisation } from './error-class.ts'
import type { ResolvedNatsOptions } from './nats-options.ts'
import { loadPeers } from './peers.ts'

/** What the owner of a connection is told. */
export interface LinkEvents {
  /** The connection went. Nothing sent from now on until `onUp` reaches the server. */
  onDown(): void
  /** It is there again; subscriptions have been renewed. */
  onUp(): void
  /** The server said so: a permission, mostly. */
  onError(error: Error): void
  /** It will not come back. */
  onClosed(error: Error | undefined): void
}

/**
 * Pings find a connection that died without saying so after two of these, before a third is over: sooner than a publish is
 * given up by default, for what is sent again over a dead connection is not stored either.
 */
const PING_INTERVAL_MS = 3000
const MAX_PINGS_OUT = 2
const RECONNECT_MIN_MS = 50
const RECONNECT_MAX_MS = 2000
const CLOSE_TIMEOUT_MS = 2000

/**
 * One connection to NATS: nats.js' own, with endless reconnects and what the adapter must know of it at once.
 *
 * nats.js buffers whatever is published while it reconnects, without a limit. `up` tells when not to publish.
 */
export class Link {
  readonly nc: NatsConnection
  readonly #clock: Clock
  readonly #events: LinkEvents
  #closing = false
  #up = true

  private constructor(nc: NatsConnection, clock: Clock, events: LinkEvents) {
    this.nc = nc
    this.#clock = clock
    this.#events = events
    void this.#watch()
    void nc.closed().then((error) => {
      this.#up = false
      if (!this.#closing) events.onClosed(error instanceof Error ? error : undefined)
    })
  }

  /** Connects, or rejects with BROKER_UNREACHABLE or PUBLISH_FATAL. */
  static async open(options: ResolvedNatsOptions, clock: Clock, events: LinkEvents): Promise<Link> {
    const { transport } = await loadPeers()
    let downSince = 0
    const servers = [...options.servers]
    try {
      const nc = await transport.connect({
        maxPingOut: MAX_PINGS_OUT,
        maxReconnectAttempts: -1,
        name: options.name,
        noAsyncTraces: true,
        pingInterval: PING_INTERVAL_MS,
        // Called at every turn of the client's loop, several times per attempt: so it looks at the time and not at a
        // count of calls. Waits grow with the outage, up to the bound, with jitter.
        reconnectDelayHandler: () => {
          const elapsed = downSince === 0 ? 0 : clock.monotonic() - downSince
          return Math.min(RECONNECT_MAX_MS, RECONNECT_MIN_MS + elapsed / 4) * (0.5 + clock.random() / 2)
        },
        servers,
        timeout: options.connectTimeoutMs,
        ...(options.pass === undefined ? {} : { pass: options.pass }),
        ...(options.tls === undefined ? {} : { tls: options.tls }),
        ...(options.token === undefined ? {} : { token: options.token }),
        ...(options.user === undefined ? {} : { user: options.user }),
      })
      return new Link(nc, clock, {
        ...events,
        onDown: () => {
          downSince = clock.monotonic()
          events.onDown()
        },
        onUp: () => {
          downSince = 0
          events.onUp()
        },
      })
    } catch (cause) {
      if (isAuthorisation(cause)) {
        throw new MillraceError('PUBLISH_FATAL', `NATS at ${servers.join(', ')} refuses these credentials`, { cause })
      }
      const { code, message: why } = cause as { readonly code?: unknown; readonly message: string }
      if (TLS_REFUSALS.has(code)) {
        throw new MillraceError(
          'PUBLISH_FATAL',
          `NATS at ${servers.join(', ')} is refused by its certificate: ${why}`,
          {
            cause,
          },
        )
      }
      throw new MillraceError('BROKER_UNREACHABLE', `NATS cannot be reached at ${servers.join(', ')}: ${why}`, {
        cause,
      })
    }
  }

  /** Whether what is published now goes to a server. */
  get up(): boolean {
    return this.#up
  }

  /** The largest message the server takes, headers included. */
  get maxPayload(): number | undefined {
    return this.nc.info?.max_payload
  }

  /** Closes the connection; what was published before is sent first, within a deadline. Idempotent. */
  async close(): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    const late = (): Error => new Error('timeout')
    if (this.#up) await withDeadline(this.#clock, this.nc.flush(), CLOSE_TIMEOUT_MS, late).catch(() => {})
    this.#up = false
    this.#events.onDown()
    await withDeadline(this.#clock, this.nc.close(), CLOSE_TIMEOUT_MS, late).catch(() => {})
  }

  async #watch(): Promise<void> {
    for await (const status of this.nc.status()) {
      if (!this.#closing) this.#onStatus(status)
    }
  }

  #onStatus(status: Status): void {
    if (status.type === 'disconnect') {
      this.#up = false
      this.#events.onDown()
    } else if (status.type === 'reconnect') {
      this.#up = true
      this.#events.onUp()
    } else if (status.type === 'error') {
      this.#events.onError(status.error)
    }
  }
}
