import type { Msg } from '@nats-io/transport-node'
import type { Clock, Timer } from '../../core/clock.ts'
import { withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { LateRetry, Publisher, PublisherOptions, Unresolved } from '../broker.ts'
import { type BatchAnswer, publishAtomically } from './atomic-publish.ts'
import { BatchSender } from './batch-sender.ts'
import { ChainLimit } from './chain-limit.ts'
import { encodeHeaders } from './encode-message.ts'
import type { Verdict } from './error-class.ts'
import {
  OVERTAKEN,
  classifyFault,
  disconnected,
  ended,
  forbidden,
  noStream,
  notDurable,
  tooLarge,
  unanswered,
  unaskable,
  unsendable,
} from './error-class.ts'
import { Link } from './link.ts'
import { isSubject, streamName } from './names.ts'
import type { ResolvedNatsOptions } from './nats-options.ts'
import { Outbound } from './outbound.ts'
import { loadPeers } from './peers.ts'
import { readPubAck } from './pub-ack.ts'
import { PublishRun } from './publish-run.ts'
import { RetryAges } from './retry-ages.ts'
import { type Lookup, StreamDirectory } from './stream-directory.ts'

const TIMEOUT_MS = 10_000
/** The most messages a server takes in one atomic batch. */
const BATCH_MESSAGES = 1000
/** The first server that takes message ids inside of batches. */
const FSYNC_VERSION: readonly number[] = [2, 12, 1]
/** How many times within the deadline the window is looked through for messages that passed it. */
const SWEEPS = 8

/**
 * Publishes through one own reply subscription: each message, or each atomic batch, asks for its answer at
 * `<inbox>.<token>`, tokens count up for the life of the publisher and are never used twice, so an answer that comes
 * late matches nothing.
 */
export class NatsPublisher implements Publisher {
  readonly #options: ResolvedNatsOptions
  readonly #clock: Clock
  readonly #timeoutMs: number
  readonly #onConnected: (link: Link) => void
  readonly #onLateRetry: ((late: LateRetry) => void) | undefined
  readonly #ages = new RetryAges()
  readonly #batches: BatchSender
  readonly #chains = new ChainLimit()
  readonly #checkedTopics = new Set<string>()
  #starting: Promise<void> | undefined
  #closing: Promise<void> | undefined
  #link: Link | undefined
  #directory: StreamDirectory | undefined
  #inbox = ''
  #publishing: Promise<readonly Unresolved[]> | undefined
  #run: PublishRun | undefined
  /** The token of the first message of the run. */
  #base = 0
  #nextToken = 0
  #outbound: Outbound | undefined
  /** Why nothing can be sent any more. */
  #broken: Error | undefined
  readonly #upWaiters = new Set<() => void>()

  constructor(
    options: ResolvedNatsOptions,
    clock: Clock,
    onConnected: (link: Link) => void,
    { onLateRetry, timeoutMs = TIMEOUT_MS }: PublisherOptions = {},
  ) {
    this.#onLateRetry = onLateRetry
    this.#options = options
    this.#clock = clock
    this.#onConnected = onConnected
    this.#timeoutMs = timeoutMs
    this.#batches = new BatchSender({
      clock,
      lost: (message, sent) => this.#lost(message, sent),
      noStream: (message) => this.#noStream(message),
      publish: (message, commands, reply) => this.#publishBytes(message, encodeHeaders(message, commands), reply),
      refused: ({ topic }, verdict) => this.#doubt(topic, verdict),
      timeoutMs,
    })
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
    if (this.#publishing !== undefined) {
      throw new MillraceError('CONFIG_INVALID', 'publish is not re-entrant: await the previous one first')
    }
    signal?.throwIfAborted()
    if (batch.length === 0) return []
    const sentAt = this.#clock.monotonic()
    if (this.#onLateRetry !== undefined) {
      for (const late of this.#ages.late(batch, sentAt, (topic) => this.#windowMs(topic))) this.#onLateRetry(late)
    }
    const publishing = this.#options.durability === 'fsync' ? this.#atomically(link, batch, signal) : undefined
    try {
      const unresolved = await (this.#publishing = publishing ?? this.#singly(link, batch, signal))
      this.#ages.settle(batch, unresolved, sentAt)
      return unresolved
    } finally {
      this.#publishing = undefined
    }
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      await this.#starting?.catch(() => {})
      await this.#publishing?.catch(() => {})
      await this.#link?.close()
    })()
    return this.#closing
  }

  /** Publishes through the window. */
  async #singly(
    link: Link,
    batch: readonly OutgoingMessage[],
    signal: AbortSignal | undefined,
  ): Promise<readonly Unresolved[]> {
    const run = (this.#run = new PublishRun({
      batch,
      chained: (topic, messages, overtaken) => this.#chains.answered(topic, messages, overtaken),
      chainLimit: (topic) => this.#chainLimit(topic),
      now: () => this.#clock.monotonic(),
      send: (message, index, behind) => this.#send(link, message, index, behind),
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

  /**
   * A chain only where it is known to be sound: on a stream with one copy. A replicated stream notes an id before its
   * members agree; a follower that is refused then keeps its id noted, and sent again it is neither stored nor called a
   * duplicate nor even answered until the duplicate window has passed (seen on nats-server 2.15).
   */
  #chainLimit(topic: string): number {
    const found = this.#directory?.peek(topic)
    return typeof found === 'object' && found.replicas === 1 ? this.#chains.of(topic) : 1
  }

  /** Publishes by atomic batches. */
  async #atomically(
    link: Link,
    batch: readonly OutgoingMessage[],
    signal: AbortSignal | undefined,
  ): Promise<readonly Unresolved[]> {
    if (!link.up) await this.#untilUp(signal)
    signal?.throwIfAborted()
    const streams = new Map<string, Lookup>()
    for (const { topic } of batch) if (!streams.has(topic)) streams.set(topic, 'unknown')
    await Promise.all(
      Array.from(streams.keys(), async (topic) => {
        if (this.#isTopic(topic)) streams.set(topic, (await this.#directory?.of(topic)) ?? 'unknown')
      }),
    )
    return publishAtomically({
      batch,
      halted: () => {
        if (!link.up) return (message) => this.#lost(message, false)
        return signal?.aborted ? (message) => aborted(message, signal) : undefined
      },
      maxBytes: this.#options.windowBytes,
      maxMessages: BATCH_MESSAGES,
      refuse: (message) => this.#refuse(link, message),
      sendBatch: (messages) => this.#sendBatch(messages),
      sendSingly: (messages) => this.#singly(link, messages, undefined),
      streamOf: (topic) => {
        const found = streams.get(topic)
        if (found === 'missing') return (message) => this.#noStream(message)
        if (typeof found !== 'object') return unaskable
        const verdict = notDurable(found)
        return verdict === undefined ? found.name : () => this.#doubt(topic, verdict)
      },
    })
  }

  #sendBatch(messages: readonly OutgoingMessage[]): Promise<BatchAnswer> {
    const token = this.#nextToken++
    const reply = this.#inbox + token
    // At most 64 characters, and never the same twice: the inbox is random.
    return this.#batches.send(messages, reply.slice('_INBOX.'.length), token, reply)
  }

  /** What is wrong with a stream may be mended by the next time. */
  #doubt(topic: string, verdict: Verdict): Verdict {
    this.#directory?.forget(topic)
    return verdict
  }

  async #connect(): Promise<void> {
    const { jetstream, transport } = await loadPeers()
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
    this.#outbound = new Outbound(link.nc, transport.headers(), () => link.up)
    this.#inbox = `${transport.createInbox()}.`
    link.nc.subscribe(`${this.#inbox}*`, {
      callback: (error, answer) => {
        if (error !== null) this.#onServerError(error)
        else this.#onAnswer(answer)
      },
    })
    try {
      this.#requireVersion(link)
      this.#directory = new StreamDirectory(await jetstream.jetstreamManager(link.nc, { checkAPI: false }), this.#clock)
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

  /** Throws when the server is too old for what is asked of it. */
  #requireVersion(link: Link): void {
    if (this.#options.durability !== 'fsync') return
    const version = link.nc.info?.version ?? '0'
    const parts = version.split(/[.-]/).map(Number)
    const at = FSYNC_VERSION.findIndex((part, index) => part !== parts[index])
    if (at < 0 || (parts[at] as number) > (FSYNC_VERSION[at] as number)) return
    throw new MillraceError(
      'SERVER_TOO_OLD',
      `durability 'fsync' publishes by atomic batches, which nats-server has from ${FSYNC_VERSION.join('.')} on; this one is ` +
        `${version}: upgrade it, or use durability 'ack'`,
      { details: { version } },
    )
  }

  /** The verdict on a message that cannot be written down for this server. */
  #refuse(link: Link, message: OutgoingMessage): Verdict | undefined {
    const headers = this.#encode(link, message, '')
    return typeof headers === 'string' ? undefined : headers
  }

  #encode(link: Link, message: OutgoingMessage, commands: string): string | Verdict {
    const { id, topic } = message
    if (!this.#isTopic(topic)) {
      return unsendable(
        topic,
        id,
        `${JSON.stringify(topic)} is no subject: tokens without white space, * or >, by dots`,
      )
    }
    let headers: string
    try {
      headers = encodeHeaders(message, commands)
    } catch (error) {
      return unsendable(topic, id, (error as Error).message)
    }
    const max = link.maxPayload
    // In UTF-8 a character has at most three bytes: what is small is not counted out.
    if (max === undefined || headers.length * 3 + message.payload.length <= max) return headers
    const size = Buffer.byteLength(headers) + message.payload.length
    return size > max ? tooLarge(topic, id, size, max) : headers
  }

  #send(link: Link, message: OutgoingMessage, index: number, behind: OutgoingMessage | undefined): Verdict | undefined {
    const commands = behind === undefined ? '' : `Nats-Expected-Last-Msg-Id: ${behind.id}\r\n`
    const headers = this.#encode(link, message, commands)
    if (typeof headers !== 'string') return headers
    try {
      this.#publishBytes(message, headers, this.#inbox + (this.#base + index))
    } catch (cause) {
      // Closed between two sends: nothing was written.
      return { class: 'retry', error: cause instanceof Error ? cause : new Error(String(cause)), outcome: 'failed' }
    }
    return undefined
  }

  #publishBytes({ payload, topic }: OutgoingMessage, headers: string, reply: string | undefined): void {
    ;(this.#outbound as Outbound).publish(topic, headers, payload, reply)
  }

  #onAnswer(answer: Msg): void {
    const token = Number(answer.subject.slice(this.#inbox.length))
    if (this.#batches.answer(token, answer)) return
    const run = this.#run
    const index = token - this.#base
    if (run === undefined || !(index >= 0)) return
    const { data } = answer
    if (data.length === 0) {
      if (answer.headers?.code === 503) run.refused(index, (message) => this.#noStream(message))
      return
    }
    const result = readPubAck(data)
    if (result === 'stored') run.stored(index)
    else if (result?.err_code === OVERTAKEN) run.overtaken(index)
    else if (result !== undefined) run.refused(index, ({ id, topic }) => classifyFault(result, topic, id))
  }

  #noStream(message: OutgoingMessage): Verdict {
    const { topic } = message
    // What was known of it is over.
    if (typeof this.#directory?.peek(topic) === 'object') this.#directory.forget(topic)
    return noStream(message, streamName(topic), this.#directory?.missingMs(topic) ?? 0)
  }

  #windowMs(topic: string): number {
    const found = this.#directory?.peek(topic)
    return typeof found === 'object' ? found.duplicateWindowMs : this.#options.stream.duplicateWindowMs
  }

  #onServerError(error: Error): void {
    if (error.name !== 'PermissionViolationError') return
    const { operation, subject } = error as Error & { readonly operation?: string; readonly subject?: string }
    if (operation === 'publish' && subject !== undefined) {
      this.#run?.forbid(subject, forbidden(subject, error))
      this.#batches.forbid(subject, forbidden(subject, error))
    }
    if (operation === 'subscription') {
      this.#broken = error
      this.#abandonCurrent()
    }
  }

  /** Refuses, again and again until the run is over, what has been in flight for longer than the deadline. */
  #sweep(run: PublishRun): Timer {
    let timer: Timer
    const look = (): void => {
      // Its stream may have other copies than it had, or be another.
      run.expire(this.#clock.monotonic() - this.#timeoutMs, (m) =>
        this.#doubt(m.topic, unanswered(m.topic, m.id, this.#timeoutMs)),
      )
      timer = this.#clock.setTimer(look, Math.max(1, this.#timeoutMs / SWEEPS))
    }
    timer = this.#clock.setTimer(look, Math.max(1, this.#timeoutMs / SWEEPS))
    return { clear: () => timer.clear() }
  }

  #abandonCurrent(): void {
    if (this.#run !== undefined) this.#abandon(this.#run)
    this.#batches.abandon()
  }

  #abandon(run: PublishRun): void {
    run.abandon(
      (message) => this.#lost(message, true),
      (message) => this.#lost(message, false),
    )
  }

  #lost({ id, topic }: OutgoingMessage, sent: boolean): Verdict {
    const broken = this.#broken
    return broken === undefined ? disconnected(id, topic, sent) : ended(id, topic, sent, broken)
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
