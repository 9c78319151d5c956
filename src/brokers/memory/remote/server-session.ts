import type { Socket } from 'node:net'
import { MillraceError } from '../../../core/errors.ts'
import type { Timer } from '../../../core/clock.ts'
import type { IncomingMessage, Partition, Subscription, Unresolved } from '../../broker.ts'
import { LocalClient } from '../local-client.ts'
import { partitionName } from '../member.ts'
import type { MemoryBroker } from '../memory-broker.ts'
import { PROTOCOL, writeError } from './connection.ts'
import { controlFrame, FRAME, FrameReader, integerOf, listOf, protocolError, readControl, textOf } from './frame.ts'
import { handOverFrame, readPublish } from './message-frames.ts'

/** Publishes of one connection that may wait for their answer at a time. */
const MAX_PENDING_PUBLISHES = 64
/** Hand-overs of one partition that may be under way before the client has taken them. */
const MAX_HANDOVERS_UNDER_WAY = 2
const MAX_SESSION_TIMEOUT_MS = 10 * 60_000

interface Assignment extends Partition {
  readonly number: number
  underWay: number
}

type Control = Readonly<Record<string, unknown>>

/** The served broker's side of one connection: at most one member, and any number of publishes and requests. */
export class ServerSession {
  readonly #socket: Socket
  readonly #host: MemoryBroker
  readonly #client: LocalClient
  readonly #onEnd: () => void
  readonly #assignments = new Map<string, Assignment>()
  readonly #revokes = new Map<number, () => void>()
  #subscription: Subscription | undefined
  #greeted = false
  #pendingPublishes = 0
  #lastNumber = 0
  #heardAtMs: number
  #pinging: Timer | undefined
  #over = false

  constructor(socket: Socket, host: MemoryBroker, onEnd: () => void) {
    this.#socket = socket
    this.#host = host
    this.#client = new LocalClient(host)
    this.#onEnd = onEnd
    this.#heardAtMs = host.clock.monotonic()
    const reader = new FrameReader((kind, body) => this.#take(kind, body))
    socket.on('data', (chunk: Buffer) => {
      this.#heardAtMs = host.clock.monotonic()
      try {
        reader.push(chunk)
      } catch {
        // A client that breaks the protocol is cut off; it sees its connection end.
        this.end()
      }
    })
    socket.on('error', () => this.end())
    socket.on('close', () => this.end())
  }

  /** Ends the connection: its member leaves, without a word. */
  end(): void {
    if (this.#over) return
    this.#over = true
    this.#pinging?.clear()
    this.#socket.destroy()
    void this.#subscription?.stop()
    for (const settle of this.#revokes.values()) settle()
    this.#onEnd()
  }

  #take(kind: number, body: Buffer): void {
    if (this.#over) return
    if (kind === FRAME.publish && this.#greeted) return this.#publish(body)
    if (kind !== FRAME.control) throw protocolError(`a frame of kind ${kind}`)
    const control = readControl(body)
    if (control['tell'] !== undefined) return this.#told(control)
    const answer = integerOf(control['request'])
    try {
      const done = this.#ask(control)
      if (done === undefined) return this.#send({ answer })
      done.then(
        () => this.#send({ answer }),
        (error: unknown) => this.#send({ answer, error: writeError(error) }),
      )
    } catch (error) {
      this.#send({ answer, error: writeError(error) })
    }
  }

  #publish(body: Buffer): void {
    const { requestId, batch } = readPublish(body)
    const answer = this.#host.publish(batch)
    const reply = (unresolved: readonly Unresolved[]): void => {
      this.#send({ answer: requestId, unresolved: unresolved.map(writeUnresolved) })
    }
    if (!(answer instanceof Promise)) return reply(answer)
    if (++this.#pendingPublishes > MAX_PENDING_PUBLISHES) throw protocolError('too many publishes at a time')
    void answer.then((unresolved) => {
      this.#pendingPublishes--
      reply(unresolved)
    })
  }

  #ask(control: Control): Promise<void> | undefined {
    if (control['method'] === 'hello') {
      if (control['protocol'] !== PROTOCOL) throw protocolError(`protocol ${PROTOCOL} is spoken here`)
      this.#greeted = true
      return undefined
    }
    if (!this.#greeted) throw protocolError('a request before hello')
    switch (control['method']) {
      case 'createTopic': {
        const partitions = control['partitions']
        const options = partitions === undefined ? {} : { partitions: integerOf(partitions) }
        return this.#client.admin.createTopic(textOf(control['topic']), options)
      }
      case 'deleteTopic':
        return this.#client.admin.deleteTopic(textOf(control['topic']))
      case 'subscribe':
        return this.#subscribe(control)
      case 'commit':
        return this.#commit(listOf(control['positions'], (entry) => entry))
      case 'leave':
        this.#pinging?.clear()
        return this.#subscription?.stop()
      default:
        throw protocolError('an unknown method')
    }
  }

  #told(control: Control): void {
    if (control['tell'] === 'revoked') {
      this.#revokes.get(integerOf(control['revoke']))?.()
    } else if (control['tell'] === 'taken') {
      const number = integerOf(control['assignment'])
      for (const assignment of this.#assignments.values()) {
        if (assignment.number !== number) continue
        assignment.underWay--
        this.#subscription?.resume([assignment])
      }
    } else if (control['tell'] !== 'pong') {
      throw protocolError('something unknown was told')
    }
  }

  #subscribe(control: Control): Promise<void> {
    if (this.#subscription !== undefined) throw protocolError('a connection has one member')
    const topics = control['topics']
    if (!Array.isArray(topics)) throw protocolError('a list was expected')
    const sessionTimeoutMs = Math.min(integerOf(control['sessionTimeoutMs'] ?? 30_000), MAX_SESSION_TIMEOUT_MS)
    this.#subscription = this.#client.subscription({
      group: textOf(control['group']),
      topics: topics.map(textOf),
      startFrom: control['startFrom'] === 'latest' ? 'latest' : 'earliest',
      sessionTimeoutMs,
      onMessages: (partition, messages) => this.#handOver(partition, messages),
      onAssigned: (partitions) => this.#assigned(partitions),
      onRevoking: (partitions) => this.#revoking(partitions),
      onLost: (partitions) => {
        this.#forget(partitions)
        this.#send({ tell: 'lost', partitions })
      },
      onError: (error) => this.#send({ tell: 'error', message: error.message }),
    })
    this.#ping(Math.max(50, sessionTimeoutMs / 3), sessionTimeoutMs)
    return this.#subscription.start()
  }

  #commit(positions: readonly Control[]): Promise<void> | undefined {
    const owned = positions.map((entry) => {
      const partition = { topic: textOf(entry['topic']), partition: integerOf(entry['partition']) }
      if (this.#assignments.get(partitionName(partition))?.number !== entry['assignment']) {
        const text = `partition ${partition.partition} of ${partition.topic} is not owned by this member`
        throw new MillraceError('PARTITION_LOST', text)
      }
      const position = textOf(entry['position'])
      if (!/^\d{1,18}$/.test(position)) throw protocolError('a position was expected')
      return { ...partition, position: BigInt(position) }
    })
    return this.#subscription?.commit(owned)
  }

  #assigned(partitions: readonly Partition[]): void {
    const told = partitions.map((partition) => {
      const assignment: Assignment = { ...partition, number: ++this.#lastNumber, underWay: 0 }
      this.#assignments.set(partitionName(partition), assignment)
      return { ...partition, assignment: assignment.number }
    })
    this.#send({ tell: 'assigned', partitions: told })
  }

  #handOver(partition: Partition, messages: readonly IncomingMessage[]): void {
    const assignment = this.#assignments.get(partitionName(partition))
    if (assignment === undefined || this.#over) return
    assignment.underWay++
    if (assignment.underWay >= MAX_HANDOVERS_UNDER_WAY) this.#subscription?.pause([partition])
    this.#socket.write(handOverFrame(assignment.number, partition, messages))
  }

  #revoking(partitions: readonly Partition[]): Promise<void> {
    const revoke = ++this.#lastNumber
    return new Promise((resolve) => {
      this.#revokes.set(revoke, () => {
        this.#revokes.delete(revoke)
        this.#forget(partitions)
        resolve()
      })
      this.#send({ tell: 'revoking', revoke, partitions })
    })
  }

  #forget(partitions: readonly Partition[]): void {
    for (const partition of partitions) this.#assignments.delete(partitionName(partition))
  }

  /** A member that says nothing for its session timeout is taken for dead: a stopped process keeps its socket open. */
  #ping(everyMs: number, sessionTimeoutMs: number): void {
    this.#pinging = this.#host.clock.setTimer(() => {
      if (this.#over) return
      if (this.#host.clock.monotonic() - this.#heardAtMs > sessionTimeoutMs) return this.end()
      this.#send({ tell: 'ping' })
      this.#ping(everyMs, sessionTimeoutMs)
    }, everyMs)
  }

  #send(control: object): void {
    if (!this.#over) this.#socket.write(controlFrame(control))
  }
}

function writeUnresolved({ index, outcome, class: errorClass, error }: Unresolved): object {
  return { index, outcome, class: errorClass, error: writeError(error) }
}
