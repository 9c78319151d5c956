import type { Msg } from '@nats-io/transport-node'
import type { Clock, Timer } from '../../core/clock.ts'
import { withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { Publisher, PublisherOptions, Unresolved } from '../broker.ts'
import { encodeHeaders } from './encode-message.ts'
import type { Verdict } from './error-class.ts'
import {
  classifyFault,
  disconnected,
  ended,
  forbidden,
  noStream,
  tooLarge,
  unanswered,
  unsendable,
} from './error-class.ts'
import { HeaderCarrier } from './header-carrier.ts'
import { Link } from './link.ts'
import { isSubject, streamName } from './names.ts'
import type { ResolvedNatsOptions } from './nats-options.ts'
import { loadPeers } from './peers.ts'
import { readPubAck } from './pub-ack.ts'
import { PublishRun } from './publish-run.ts'

const TIMEOUT_MS = 10_000
/** How many times within the deadline the window is looked through for messages that passed it. */
const SWEEPS = 8

/**
 * Publishes through one own reply subscription: each message asks for its answer at `<inbox>.<token>`, tokens count up
 * for the life of the publisher and are never used twice, so an answer that comes late matches nothing.
 */
export class NatsPublisher implements Publisher {
  readonly #options: ResolvedNatsOptions
  readonly #clock: Clock
  readonly #timeoutMs: number
  readonly #onConnected: (link: Link) => void
  readonly #checkedTopics = new Set<string>()
  #starting: Promise<void> | undefined
  #closing: Promise<void> | undefined
  #link: Link | undefined
  #carrier: HeaderCarrier | undefined
  #inbox = ''
  #run: PublishRun | undefined
  /** The token of the first message of the run. */
  #base = 0
  #nextToken = 0
  /** Why nothing can be sent any more. */
  #broken: Error | undefined
  readonly #upWaiters = new Set<() => void>()

  constructor(
    options: ResolvedNatsOptions,
    clock: Clock,
    onConnected: (link: Link) => void,
    { timeoutMs = TIMEOUT_MS }: PublisherOptions = {},
  ) {
    this.#options = options
    this.#clock = clock
    this.#onConnected = onConnected
    this.#timeoutMs = timeoutMs
  }

  start(): Promise<void> {
    if (this.#closing !== undefined) return Promise.reject(closed())
    this.#starting ??= this.#connect().catch((error: unknown) => {
      this.#starting = undefined
      throw error
    })
    return this.#starting
  }

  async publish(batch: readonly OutgoingMessage[], signal?: AbortSignal): Promise<readonly Unresolved[]> {
    const link = this.#link
    if (this.#closing !== undefined) throw closed()
    if (link === undefined) {
      throw new MillraceError('LIFECYCLE_NOT_STARTED', 'the NATS publisher was not started: await start() first')
    }
    if (this.#run !== undefined) {
      throw new MillraceError('CONFIG_INVALID', 'publish is not re-entrant: await the previous one first')
    }
    signal?.throwIfAborted()
    if (batch.length === 0) return []
    const run = (this.#run = new PublishRun({
      batch,
      now: () => this.#clock.monotonic(),
      send: (message, index) => this.#send(link, message, index),
      windowBytes: this.#options.windowBytes,
      windowMessages: this.#options.windowMessages,
    }))
    this.#base = this.#nextToken
    this.#nextToken += batch.length
    const timer = this.#sweep(run)
    const onAbort = (): void => run.halt((message) => aborted(message, signal))
    try {
      if (!link.up) await this.#untilUp(signal)
      signal?.throwIfAborted()
      signal?.addEventListener('abort', onAbort, { once: true })
      if (!link.up) this.#abandon(run)
      else run.pump()
      return await run.done
    } finally {
      timer.clear()
      signal?.removeEventListener('abort', onAbort)
      this.#run = undefined
    }
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      await this.#starting?.catch(() => {})
      await this.#run?.done
      await this.#link?.close()
    })()
    return this.#closing
  }

  async #connect(): Promise<void> {
    const { transport } = await loadPeers()
    const link = await Link.open(this.#options, this.#clock, {
      onClosed: (error) => {
        this.#broken = error ?? new MillraceError('CONNECTION_LOST', 'the connection to NATS was closed')
        this.#abandonCurrent()
        this.#tellUp()
      },
      onDown: () => this.#abandonCurrent(),
      onError: (error) => this.#onServerError(error),
      onUp: () => this.#tellUp(),
    })
    this.#carrier = new HeaderCarrier(transport.headers())
    this.#inbox = `${transport.createInbox()}.`
    link.nc.subscribe(`${this.#inbox}*`, {
      callback: (error, answer) => {
        if (error !== null) this.#onServerError(error)
        else this.#onAnswer(answer)
      },
    })
    try {
      // The server knows of the subscription before the first publish.
      await withDeadline(
        this.#clock,
        link.nc.flush(),
        this.#options.connectTimeoutMs,
        () => new MillraceError('BROKER_UNREACHABLE', `NATS at ${this.#options.servers.join(', ')} does not answer`),
      )
    } catch (error) {
      await link.close()
      throw error
    }
    this.#link = link
    this.#onConnected(link)
  }

  #send(link: Link, message: OutgoingMessage, index: number): Verdict | undefined {
    const { id, topic } = message
    if (!this.#isTopic(topic)) {
      return unsendable(
        topic,
        id,
        `${JSON.stringify(topic)} is no subject: tokens without white space, * or >, by dots`,
      )
    }
    const headers = encodeHeaders(message)
    if (typeof headers === 'string') return unsendable(topic, id, headers)
    const size = headers.length + message.payload.length
    const max = link.maxPayload
    if (max !== undefined && size > max) return tooLarge(topic, id, size, max)
    try {
      link.nc.publish(topic, message.payload, {
        headers: (this.#carrier as HeaderCarrier).carry(headers),
        reply: this.#inbox + (this.#base + index),
      })
    } catch (cause) {
      // Closed between two sends: nothing was written.
      return { class: 'retry', error: cause instanceof Error ? cause : new Error(String(cause)), outcome: 'failed' }
    }
    return undefined
  }

  #onAnswer(answer: Msg): void {
    const run = this.#run
    if (run === undefined) return
    const index = Number(answer.subject.slice(this.#inbox.length)) - this.#base
    if (!(index >= 0)) return
    const { data } = answer
    if (data.length === 0) {
      if (answer.headers?.code !== 503) return
      run.refused(index, ({ id, topic }) => noStream(topic, id, streamName(topic)))
      return
    }
    const result = readPubAck(data)
    if (result === 'stored') run.stored(index)
    else if (result !== undefined) run.refused(index, ({ id, topic }) => classifyFault(result, topic, id))
  }

  #onServerError(error: Error): void {
    if (error.name !== 'PermissionViolationError') return
    const { operation, subject } = error as Error & { readonly operation?: string; readonly subject?: string }
    if (operation === 'publish' && subject !== undefined) this.#run?.forbid(subject, forbidden(subject, error))
    else if (operation === 'subscription') {
      this.#broken = error
      this.#abandonCurrent()
    }
  }

  /** Refuses, again and again until the run is over, what has been in flight for longer than the deadline. */
  #sweep(run: PublishRun): Timer {
    let timer: Timer
    const look = (): void => {
      run.expire(this.#clock.monotonic() - this.#timeoutMs, (m) => unanswered(m.topic, m.id, this.#timeoutMs))
      timer = this.#clock.setTimer(look, Math.max(1, this.#timeoutMs / SWEEPS))
    }
    timer = this.#clock.setTimer(look, Math.max(1, this.#timeoutMs / SWEEPS))
    return { clear: () => timer.clear() }
  }

  #abandonCurrent(): void {
    if (this.#run !== undefined) this.#abandon(this.#run)
  }

  #abandon(run: PublishRun): void {
    const broken = this.#broken
    const verdict = (message: OutgoingMessage, sent: boolean): Verdict =>
      broken === undefined
        ? disconnected(message.id, message.topic, sent)
        : ended(message.id, message.topic, sent, broken)
    run.abandon(
      (message) => verdict(message, true),
      (message) => verdict(message, false),
    )
  }

  /** Resolves when the connection is there again, has ended, the deadline passed or the signal aborts. */
  async #untilUp(signal: AbortSignal | undefined): Promise<void> {
    if (this.#broken !== undefined) return
    let done: (() => void) | undefined
    const up = new Promise<void>((resolve) => (done = resolve))
    this.#upWaiters.add(done as () => void)
    const timer = this.#clock.setTimer(done as () => void, this.#timeoutMs)
    signal?.addEventListener('abort', done as () => void, { once: true })
    await up
    timer.clear()
    signal?.removeEventListener('abort', done as () => void)
    this.#upWaiters.delete(done as () => void)
  }

  #tellUp(): void {
    for (const waiter of this.#upWaiters) waiter()
  }

  #isTopic(topic: string): boolean {
    if (this.#checkedTopics.has(topic)) return true
    if (!isSubject(topic)) return false
    if (this.#checkedTopics.size >= 10_000) this.#checkedTopics.clear()
    this.#checkedTopics.add(topic)
    return true
  }
}

function closed(): MillraceError {
  return new MillraceError('LIFECYCLE_STOPPED', 'the NATS publisher is closed: make another one')
}

function aborted({ id, topic }: OutgoingMessage, signal: AbortSignal | undefined): Verdict {
  const error = new MillraceError('PUBLISH_REFUSED', `message ${id} to ${topic}: aborted before it was sent`, {
    cause: signal?.reason,
    details: { id, topic },
  })
  return { class: 'retry', error, outcome: 'failed' }
}
