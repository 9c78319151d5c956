/**
 * One member's reading of one topic, through the durable consumer that the group has there.
 *
 * A JetStream topic is one partition, and it is ordered only while one member at a time is served. The server names
 * that member by a pin (priority policy `pinned_client`); but it gives the pin with a message and not before, takes it
 * away after a time-out of silence, and delivers new messages to the next member while those of the last one still
 * wait for their acknowledgement to time out. So the pin alone would hand over e4 before e1..e3 are delivered again.
 * The states:
 *
 * - `down`      no connection. Nothing is ours.
 * - `standby`   another member is served, or may be. We look at the consumer every so often and ask for nothing.
 * - `settling`  nobody else is served, so the topic is ours; but messages may be out that we do not hold: those of the
 *               last member, or those that were on a connection that broke. What arrives is held back until the
 *               server's count of unacknowledged messages equals ours, as of one delivery; then all of it is handed over,
 *               by stream order.
 * - `active`    every message goes to the owner as it arrives.
 * - `leaving`   what is out is given back; then `stopped`.
 *
 *   down → standby         the connection is there (again)
 *   standby → settling     nobody is pinned and nobody waits, or the pin is ours; or a message came, with the pin
 *   settling → active      the counts are equal: `onAssigned`
 *   active → settling      a message came under another pin than the last (ours again, but was it so all the time?)
 *   any → standby, down    the pin is another's, or the connection broke: `onLost`, and what is out is given back
 *
 * A member that owns an idle topic has no pin yet, and a second member may get it first; it is told at its next look.
 * In between both believe to own it, one without messages: the epoch of the inbox is what fences.
 */
import type { JetStreamManager } from '@nats-io/jetstream'
import type { Msg, NatsConnection, Subscription as NatsSubscription } from '@nats-io/transport-node'
import type { Clock, Timer } from '../../core/clock.ts'
import { withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import type { Partition, SubscriptionOptions } from '../broker.ts'
import type { Delivery } from './delivery.ts'
import { pinOf, readDelivery, toIncoming } from './delivery.ts'
import type { Durable } from './durable.ts'
import { CONSUMER_NOT_FOUND, PRIORITY_GROUP, pinnedClient } from './durable.ts'
import { codeOf } from './find-stream.ts'
import { Outstanding } from './outstanding.ts'
import { PullRequests, WRONG_PIN } from './pull-requests.ts'

type State = 'active' | 'down' | 'leaving' | 'settling' | 'standby' | 'stopped'

/** What a reader needs. */
export interface TopicReaderOptions {
  readonly callbacks: Pick<SubscriptionOptions, 'onAssigned' | 'onError' | 'onLost' | 'onMessages'>
  readonly clock: Clock
  readonly durable: Durable
  readonly inbox: string
  readonly manager: JetStreamManager
  readonly nc: NatsConnection
  /** Makes the durable consumer again. */
  readonly restore: () => Promise<unknown>
  readonly sessionTimeoutMs: number
  readonly topic: string
}

/** The most messages asked for ahead, and about the most that are kept while paused. */
const PREFETCH_MESSAGES = 1024
const PREFETCH_BYTES = 8 << 20
/** What a request for the largest message must allow beyond its payload: subject, reply, headers the server adds. */
const OVERHEAD_BYTES = 16 << 10
const ACK_TIMEOUT_MS = 5000
const STOP_TIMEOUT_MS = 2000
const EMPTY = new Uint8Array()
const NAK = Buffer.from('-NAK')
const WORKING = Buffer.from('+WPI')

export class TopicReader {
  readonly partition: Partition
  readonly #options: TopicReaderOptions
  readonly #pulls: PullRequests
  readonly #outstanding = new Outstanding()
  readonly #tickMs: number
  #state: State = 'down'
  #sub: NatsSubscription | undefined
  #tick: Timer | undefined
  /** `onAssigned` was called, and `onLost` was not. */
  #owned = false
  #paused = false
  /** Arrived and not handed over. */
  #held: Delivery[] = []
  #flushing = false
  #pin = ''
  #lastPosition = 0n
  #lastRedelivered = false
  /** Answers that could not be given while the connection was down. */
  #toNak: string[] = []
  #looking = false
  #lookAgain = false
  #settlingSince = 0
  #lastHeard = 0
  #lastAsked = 0
  #lastWorking = 0
  /** Rises whenever what is ours changes, so that an answer to an older question is not believed. */
  #era = 0

  constructor(options: TopicReaderOptions) {
    this.#options = options
    this.partition = { partition: 0, topic: options.topic }
    this.#tickMs = Math.min(1000, Math.max(50, Math.floor(options.sessionTimeoutMs / 10)))
    const maxPayload = options.nc.info?.max_payload ?? 1 << 20
    this.#pulls = new PullRequests({
      durable: options.durable,
      inbox: options.inbox,
      maxBytes: Math.max(PREFETCH_BYTES, maxPayload + OVERHEAD_BYTES),
      nc: options.nc,
      sessionTimeoutMs: options.sessionTimeoutMs,
    })
  }

  get owned(): boolean {
    return this.#owned
  }

  /** Subscribes and looks once, so that a member that is alone owns the topic at once. */
  async start(): Promise<void> {
    this.#sub = this.#options.nc.subscribe(`${this.#options.inbox}.*`, {
      callback: (error, message) => {
        if (error !== null) this.#options.callbacks.onError(error)
        else this.#onArrival(message)
      },
    })
    this.#become('standby')
    this.#scheduleTick()
    await this.#look()
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#flushSoon()
  }

  /** The connection went: the server will deliver elsewhere whatever is out. */
  down(): void {
    if (!this.#isThere()) return
    this.#giveUp()
    this.#become('down')
  }

  /** The connection is there again. The pin may still be ours. */
  up(): void {
    if (this.#state !== 'down') return
    this.#become('standby')
    this.#nakAll()
    void this.#look()
  }

  async commit(position: bigint): Promise<void> {
    if (!this.#owned) throw this.#notOurs()
    const done = this.#outstanding.takeUpTo(position)
    const last = done.pop()
    if (last === undefined) return
    const { nc } = this.#options
    for (const { ackSubject } of done) this.#say(ackSubject, EMPTY)
    // Acknowledgements of one consumer are processed in order: when the last is answered, all are done.
    try {
      await nc.request(last.ackSubject, EMPTY, { timeout: ACK_TIMEOUT_MS })
    } catch (cause) {
      if (!this.#owned) throw this.#notOurs()
      throw new MillraceError('CONNECTION_LOST', `the commit of ${this.#options.topic} was not answered`, { cause })
    }
    this.#ask()
  }

  /** Gives back what is out, also what arrives while leaving, so that the next member has it at once. */
  async stop(): Promise<void> {
    if (this.#state === 'stopped' || this.#state === 'leaving') return
    const reachable = this.#state !== 'down' && !this.#options.nc.isClosed()
    this.#tick?.clear()
    this.#owned = false
    this.#toNak.push(...this.#outstanding.ackSubjects())
    this.#outstanding.clear()
    this.#held = []
    this.#become('leaving')
    if (reachable) {
      // The pin first: without it the server delivers no more, and what it delivered before still arrives here.
      if (this.#pin !== '') await this.#bounded(this.#unpin())
      await this.#bounded(this.#sub?.drain())
      this.#nakAll()
    }
    this.#become('stopped')
    this.#sub?.unsubscribe()
  }

  async #unpin(): Promise<void> {
    const { durable, manager } = this.#options
    await manager.consumers.unpin(durable.stream, durable.name, PRIORITY_GROUP)
  }

  /** Waits while leaving, but not for long: the server's time-outs do the same, later. */
  async #bounded(work: Promise<void> | undefined): Promise<void> {
    if (work === undefined) return
    const late = (): Error => new Error('timeout')
    await withDeadline(this.#options.clock, work, STOP_TIMEOUT_MS, late).catch(() => {})
  }

  #become(state: State): void {
    this.#state = state
    this.#era += 1
    const now = this.#options.clock.monotonic()
    this.#lastHeard = now
    if (state === 'settling') this.#settlingSince = now
  }

  #onArrival(message: Msg): void {
    if (this.#state === 'leaving' || this.#state === 'down') {
      // `down`: the subscription was renewed a moment before we are told so, and older requests are served again.
      const given = readDelivery(message)
      if (given !== undefined) this.#toNak.push(given.ackSubject)
    }
    if (!this.#isThere()) return
    this.#lastHeard = this.#options.clock.monotonic()
    if (message.subject.startsWith(this.#options.inbox)) {
      this.#onStatus(message)
      return
    }
    const delivery = readDelivery(message)
    if (delivery === undefined) return
    this.#pulls.arrived()
    this.#lastRedelivered = delivery.redelivered
    if (this.#outstanding.add(delivery)) this.#held.push(delivery)
    const pin = pinOf(message)
    if (pin !== this.#pin) {
      this.#pin = pin
      // Requests under another pin, or none, bring nothing any more.
      this.#pulls.reset()
      if (this.#state !== 'settling') this.#become('settling')
    }
    if (this.#state === 'active') this.#flushSoon()
    else void this.#look()
  }

  #onStatus(message: Msg): void {
    const { headers } = message
    const code = headers?.code ?? 0
    const status = this.#pulls.ended(message.subject, code, headers?.get('Nats-Pending-Messages') ?? '')
    if (status === undefined) return
    if (status.code === WRONG_PIN) {
      this.#pin = ''
      if (this.#owned || this.#outstanding.size > 0) this.#lose()
      void this.#look()
    } else if (status.ranOut) {
      this.#ask()
    } else {
      // Such as a change of leader, or the consumer's end. Asked again at the next tick: at once it would fail at once.
      void this.#look()
    }
  }

  /** Hands over what is held, once for all that arrived in one read of the socket. */
  #flushSoon(): void {
    if (this.#flushing) return
    this.#flushing = true
    queueMicrotask(() => {
      this.#flushing = false
      this.#flush()
    })
  }

  #flush(): void {
    if (this.#state !== 'active' || this.#paused) return
    if (this.#held.length > 0) {
      const deliveries = this.#held
      this.#held = []
      const messages = deliveries.map((delivery) => {
        // The server's count goes back when it restarts from an older state, and in a settled hand-over the order is
        // the stream's: the position rises regardless.
        const seq = BigInt(delivery.deliverySeq)
        this.#lastPosition = seq > this.#lastPosition ? seq : this.#lastPosition + 1n
        delivery.position = this.#lastPosition
        this.#outstanding.handOver(delivery)
        const incoming = toIncoming(delivery, this.partition)
        delivery.message = undefined
        return incoming
      })
      this.#options.callbacks.onMessages(this.partition, messages)
    }
    this.#ask()
  }

  /** Asks for as much as may come. */
  #ask(): void {
    if (this.#state !== 'active') return
    if (this.#pin === '') {
      // Whatever else was asked for without a pin would not be served once the first message has brought it. Paused or
      // not: who does not wait is not seen as the owner.
      if (this.#pulls.credit === 0) this.#pull(1)
      return
    }
    if (this.#paused) return
    const room = PREFETCH_MESSAGES - this.#held.length - this.#pulls.credit
    if (room >= PREFETCH_MESSAGES / 2) this.#pull(room)
  }

  #pull(batch: number): void {
    this.#lastAsked = this.#options.clock.monotonic()
    this.#pulls.ask(batch, this.#pin)
  }

  /** Looks at the consumer and draws the conclusions; a look that is asked for meanwhile follows. */
  async #look(): Promise<void> {
    if (this.#looking) {
      this.#lookAgain = true
      return
    }
    this.#looking = true
    try {
      do {
        this.#lookAgain = false
        await this.#lookOnce()
      } while (this.#lookAgain)
    } catch (error) {
      if (this.#isThere()) await this.#onLookFailed(error)
    } finally {
      this.#looking = false
    }
  }

  /** A durable consumer that somebody deleted is made again: the group begins as a new one does. */
  async #onLookFailed(error: unknown): Promise<void> {
    const { callbacks, restore } = this.#options
    callbacks.onError(error as Error)
    if (codeOf(error) !== CONSUMER_NOT_FOUND) return
    this.#pin = ''
    this.#lose()
    await restore().catch((failed: unknown) => callbacks.onError(failed as Error))
  }

  async #lookOnce(): Promise<void> {
    const era = this.#era
    if (!this.#isThere()) return
    const { durable, manager } = this.#options
    const info = await manager.consumers.info(durable.stream, durable.name)
    if (era !== this.#era) {
      this.#lookAgain = this.#isThere()
      return
    }
    const pinned = pinnedClient(info)
    if (pinned !== '' && pinned !== this.#pin) {
      // It may be ours by a message that is on its way; that message says so.
      if (this.#state === 'standby' || this.#pulls.credit === 0 || this.#pin !== '') this.#lose()
      return
    }
    if (pinned === '') this.#pin = ''
    if (this.#state === 'standby') {
      const others = info.num_waiting - (this.#pulls.credit > 0 ? 1 : 0)
      if (pinned === '' && others > 0) return
      if (pinned === '' && this.#pulls.credit === 0) {
        // Shows the others that somebody waits. Who asked at the same moment sees two, and the first message decides.
        this.#pull(1)
        this.#lookAgain = true
        return
      }
      this.#become('settling')
    }
    if (this.#state === 'settling') {
      // What was delivered after the server counted may have overtaken its answer, and must not stand in for what is
      // out elsewhere.
      this.#settle(info.num_ack_pending - this.#outstanding.countUpTo(info.delivered.consumer_seq))
    }
  }

  #settle(foreign: number): void {
    const waitedMs = this.#options.clock.monotonic() - this.#settlingSince
    const limitMs = this.#options.sessionTimeoutMs * 2 + 1000
    if (foreign > 0 && waitedMs < limitMs) {
      // One at a time until the first of the others' comes again; then they all will.
      if (this.#pulls.credit === 0) this.#pull(this.#lastRedelivered ? Math.min(foreign, PREFETCH_MESSAGES) : 1)
      return
    }
    if (foreign > 0) {
      this.#options.callbacks.onError(
        new MillraceError(
          'PARTITION_LOST',
          `${foreign} messages of ${this.#options.topic} are still held by a client that is not served; ` +
            `going on without them, so their keys may come out of order`,
        ),
      )
    }
    this.#held.sort((a, b) => a.streamSeq - b.streamSeq)
    this.#become('active')
    if (!this.#owned) {
      this.#owned = true
      this.#paused = false
      this.#lastPosition = 0n
      this.#lastWorking = this.#options.clock.monotonic()
      this.#options.callbacks.onAssigned([this.partition])
    }
    this.#flush()
  }

  /** Another member is served. */
  #lose(): void {
    this.#giveUp()
    this.#become('standby')
    this.#nakAll()
  }

  /** Nothing is ours any more; what is out waits to be given back. */
  #giveUp(): void {
    this.#toNak.push(...this.#outstanding.ackSubjects())
    this.#outstanding.clear()
    this.#held = []
    this.#pulls.reset()
    if (!this.#owned) return
    this.#owned = false
    this.#options.callbacks.onLost([this.partition])
  }

  #nakAll(): void {
    const subjects = this.#toNak
    this.#toNak = []
    for (const subject of subjects) this.#say(subject, NAK)
  }

  #scheduleTick(): void {
    this.#tick = this.#options.clock.setTimer(() => {
      this.#onTick()
      if (this.#state !== 'leaving' && this.#state !== 'stopped') this.#scheduleTick()
    }, this.#tickMs)
  }

  #onTick(): void {
    if (!this.#isThere()) return
    const now = this.#options.clock.monotonic()
    const { sessionTimeoutMs } = this.#options
    if (this.#outstanding.size > 0 && now - this.#lastWorking >= sessionTimeoutMs / 3 - this.#tickMs) {
      // However long a handler takes, its message is not delivered again.
      this.#lastWorking = now
      for (const subject of this.#outstanding.subjects()) this.#say(subject, WORKING)
    }
    if (this.#pulls.credit > 0 && now - this.#lastHeard > this.#pulls.heartbeatMs * 3) this.#pulls.reset()
    if (this.#pin !== '' && now - this.#lastAsked >= sessionTimeoutMs / 4 - this.#tickMs) {
      this.#lastAsked = now
      this.#pulls.keepPin(this.#pin)
    }
    if (this.#state === 'active') {
      // An owner without a pin is told only by a look that another member got the first message.
      if (this.#pin === '') void this.#look()
      this.#renew(now)
    } else {
      void this.#look()
    }
  }

  /** Asks again before the last request ends, so that an idle owner is always seen waiting. */
  #renew(now: number): void {
    if (this.#pulls.credit === 0) this.#ask()
    else if (this.#pin === '' && now - this.#lastAsked >= this.#pulls.expiresMs / 2) this.#pull(1)
  }

  /** Answers the server. On a connection that is closed nobody listens, and `down` is on its way. */
  #say(subject: string, answer: Uint8Array): void {
    if (!this.#options.nc.isClosed()) this.#options.nc.publish(subject, answer)
  }

  #isThere(): boolean {
    return this.#state === 'active' || this.#state === 'settling' || this.#state === 'standby'
  }

  #notOurs(): MillraceError {
    return new MillraceError('PARTITION_LOST', `this member does not own ${this.#options.topic} (any more)`, {
      details: { topic: this.#options.topic },
    })
  }
}
