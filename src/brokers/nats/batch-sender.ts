import type { Msg } from '@nats-io/transport-node'
import type { Clock } from '../../core/clock.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { BatchAnswer } from './atomic-publish.ts'
import { type JetStreamFault, type Verdict, classifyFault, unanswered } from './error-class.ts'
import { readPubAck } from './pub-ack.ts'

/** What it needs of the publisher. */
export interface BatchSenderOptions {
  readonly clock: Clock
  /** The verdict when the connection is lost. */
  readonly lost: (message: OutgoingMessage, sent: boolean) => Verdict
  readonly noStream: (message: OutgoingMessage) => Verdict
  /** Gives a message to the connection, with more header lines; throws when that is closed. */
  readonly publish: (message: OutgoingMessage, commands: string, reply: string | undefined) => void
  /** The stream refused the batch for a reason that is no message's. */
  readonly refused: (message: OutgoingMessage, verdict: Verdict) => Verdict
  readonly timeoutMs: number
}

/** A batch that was sent and is not answered. */
interface Pending {
  readonly messages: readonly OutgoingMessage[]
  readonly settle: (answer: BatchAnswer) => void
}

/** Sends atomic batches (ADR-50) and reads their answers. */
export class BatchSender {
  readonly #options: BatchSenderOptions
  /** By the token of the reply subject. */
  readonly #pending = new Map<number, Pending>()

  constructor(options: BatchSenderOptions) {
    this.#options = options
  }

  /**
   * Sends one batch. Its first and its last message ask for an answer: the first for a refusal at once, which the
   * others' silence would hide; the last is the commit, without which the server stores nothing.
   */
  send(messages: readonly OutgoingMessage[], id: string, token: number, reply: string): Promise<BatchAnswer> {
    const { clock, lost, publish, timeoutMs } = this.#options
    const answered = new Promise<BatchAnswer>((resolve) => {
      const expire = (): void => settle(({ id: of, topic }) => unanswered(topic, of, timeoutMs))
      const timer = clock.setTimer(expire, timeoutMs)
      const settle = (answer: BatchAnswer): void => {
        timer.clear()
        this.#pending.delete(token)
        resolve(answer)
      }
      this.#pending.set(token, { messages, settle })
    })
    const last = messages.length - 1
    try {
      for (let at = 0; at <= last; at++) {
        const commit = at === last ? 'Nats-Batch-Commit: 1\r\n' : ''
        const commands = `Nats-Batch-Id: ${id}\r\nNats-Batch-Sequence: ${at + 1}\r\n${commit}`
        publish(messages[at] as OutgoingMessage, commands, at === 0 || at === last ? reply : undefined)
      }
    } catch {
      // Closed in the middle. Without its last message the server stores nothing of it.
      this.#pending.get(token)?.settle((message) => lost(message, false))
    }
    return answered
  }

  /** Takes an answer; false when it is not to a batch. */
  answer(token: number, { data, headers }: Msg): boolean {
    const pending = this.#pending.get(token)
    if (pending === undefined) return false
    const { messages, settle } = pending
    if (data.length === 0) {
      // Else it says that the first message is staged.
      if (headers?.code === 503) settle(this.#options.noStream)
      return true
    }
    const result = readPubAck(data)
    if (result === 'stored') settle(countOf(data) === messages.length ? 'stored' : 'singly')
    else if (result !== undefined) this.#refuse(pending, result)
    return true
  }

  /** Nothing that was sent will be answered. */
  abandon(): void {
    for (const { settle } of this.#pending.values()) settle((message) => this.#options.lost(message, true))
  }

  /** The account may not publish to the topic: the server has batches with a gap there, and does not store them. */
  forbid(topic: string, verdict: Verdict): void {
    for (const { messages, settle } of this.#pending.values()) {
      if (messages.some((message) => message.topic === topic)) settle(() => verdict)
    }
  }

  /** It may be one message's fault, or a stream that is full: one by one tells. */
  #refuse({ settle }: Pending, fault: JetStreamFault): void {
    const { class: errorClass } = classifyFault(fault, '', '')
    if (errorClass !== 'throttle' && errorClass !== 'fatal') settle('singly')
    else settle((message) => this.#options.refused(message, classifyFault(fault, message.topic, message.id)))
  }
}

/** How many messages the server stored; a plain acknowledgement, of a server that knows no batches, has no count. */
function countOf(data: Uint8Array): number | undefined {
  return (JSON.parse(Buffer.from(data).toString()) as { readonly count?: number }).count
}
