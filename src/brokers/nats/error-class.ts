import { MillraceError } from '../../core/errors.ts'
import type { OutgoingMessage } from '../../core/message.ts'
import type { ErrorClass, Outcome } from '../broker.ts'
import type { StreamFacts } from './stream-directory.ts'

/** What an answer that is not "stored" means. */
export interface Verdict {
  readonly class: ErrorClass
  readonly error: Error
  readonly outcome: Outcome
}

/** The error inside a JetStream answer. */
export interface JetStreamFault {
  readonly code?: number
  readonly description?: string
  readonly err_code?: number
}

/**
 * The classifier of the adapter: every way in which a publish can end other than stored, by the server's numeric
 * `err_code` and never by its English text, which changes between versions.
 *
 * | what                                                        | class     | outcome | because |
 * |---|---|---|---|
 * | 10054 message, 10097 header too large for the stream        | poison    | failed  | the same bytes never fit |
 * | no stream captures the subject, and the server says so for {@link MISSING_GRACE_MS} | poison | failed | an unknown topic |
 * | nobody answers on the subject, until the server has said so | retry     | failed  | a stream without a leader, a server that starts |
 * | 10158 the same id is being stored at this moment            | retry     | unknown | the copy in process may still fail |
 * | 429, 10167, 10210, 10211 too many requests, batches         | throttle  | failed  | the server asks for less |
 * | 10039, 10076 JetStream not enabled; 10035 no account        | fatal     | failed  | configuration |
 * | 10109 sealed; 10060, 10071 an expectation; 10169 a counter  | fatal     | failed  | the stream is not for events |
 * | 10174 atomic batches disabled                               | fatal     | failed  | `durability: 'fsync'` needs them |
 * | no permission to publish; credentials refused               | fatal     | unknown, or failed if not sent | configuration |
 * | 10002, 10023, 10028, 10047, 10077, 10122 resources, limits  | retry     | failed  | full; room may be made, by age or by hand |
 * | no answer in time; the connection went                      | retry     | unknown | the message may be there |
 * | any other                                                   | retry     | failed  | a cluster without a leader, a stream that moves |
 *
 * 10077 carries "maximum messages exceeded" and its like: a stream with `discard: new` that is full. It is a matter of
 * the stream and not of this message, so it holds the shard instead of parking every key one by one.
 *
 * Two answers are no errors and never come here: 10070, a follower of a chain was overtaken (`publish-run.ts`), and the
 * refusal of a batch for one of its messages, which is learned one by one (`atomic-publish.ts`).
 */
export function classifyFault(fault: JetStreamFault, topic: string, id: string): Verdict {
  const code = fault.err_code ?? 0
  const text = `message ${id} to ${topic}: ${fault.description ?? 'refused'} (${code || fault.code || 'no code'})`
  const details = { code: fault.code, errCode: fault.err_code, id, topic }
  if (POISON.has(code)) {
    return { class: 'poison', error: new MillraceError('MESSAGE_REJECTED', text, { details }), outcome: 'failed' }
  }
  if (FATAL.has(code)) {
    return { class: 'fatal', error: new MillraceError('PUBLISH_FATAL', text, { details }), outcome: 'failed' }
  }
  const error = new MillraceError('PUBLISH_REFUSED', text, { details })
  if (code === DUPLICATE_IN_PROCESS) return { class: 'retry', error, outcome: 'unknown' }
  if (fault.code === 429 || THROTTLE.has(code)) return { class: 'throttle', error, outcome: 'failed' }
  return { class: 'retry', error, outcome: 'failed' }
}

const POISON: ReadonlySet<number> = new Set([10054, 10097])
const FATAL: ReadonlySet<number> = new Set([10035, 10039, 10060, 10071, 10076, 10109, 10169, 10174])
const THROTTLE: ReadonlySet<number> = new Set([10167, 10210, 10211])
const DUPLICATE_IN_PROCESS = 10158

/** The code of a follower that another writer's message overtook. */
export const OVERTAKEN = 10070

/**
 * For how long the server must have said that it knows no stream for a topic before the topic counts as unknown. A
 * service that starts beside the relay has this long to make its streams.
 */
export const MISSING_GRACE_MS = 3000

/**
 * Nobody answers on the subject. That alone says little: a stream whose leader is being elected, a server that has
 * just started. So the server is asked which stream captures the subject (`stream-directory.ts`), and until it has
 * said "none" for `missingMs` of at least {@link MISSING_GRACE_MS}, this is no fault of the message.
 */
export function noStream({ id, topic }: OutgoingMessage, stream: string, missingMs: number): Verdict {
  const fix = `nats stream add ${stream} --subjects ${topic} --defaults`
  const details = { id, missingMs, topic }
  if (missingMs >= MISSING_GRACE_MS) {
    const text = `message ${id}: no JetStream stream captures the subject ${topic}. Make it, then replay: ${fix}`
    return { class: 'poison', error: new MillraceError('MESSAGE_REJECTED', text, { details }), outcome: 'failed' }
  }
  const error = new MillraceError(
    'PUBLISH_REFUSED',
    `message ${id}: no JetStream stream answers on the subject ${topic}; it has no leader, its server is starting, ` +
      `or it was never made: ${fix}`,
    { details },
  )
  return { class: 'retry', error, outcome: 'failed' }
}

/** The server did not say which stream captures the topic, and `durability: 'fsync'` publishes to none it does not know. */
export function unaskable({ id, topic }: OutgoingMessage): Verdict {
  const error = new MillraceError(
    'PUBLISH_REFUSED',
    `message ${id}: the server does not say which stream captures ${topic}; durability 'fsync' must know it. If this ` +
      `stays so, let the account publish to $JS.API.STREAM.NAMES and $JS.API.STREAM.INFO.*`,
    { details: { id, topic } },
  )
  return { class: 'retry', error, outcome: 'failed' }
}

/** Why `durability: 'fsync'` cannot be had of the stream, if so. */
export function notDurable({ allowAtomic, name, persistAsync, storage }: StreamFacts): Verdict | undefined {
  const wrong =
    storage === 'memory'
      ? `keeps messages in memory; durability 'fsync' needs one on file`
      : persistAsync
        ? `acknowledges before it writes: set its persist_mode to default`
        : allowAtomic
          ? undefined
          : `does not take atomic batches: set allow_atomic to true in its configuration ` +
            `(admin.createTopic of nats({ durability: 'fsync' }) makes streams so), or use durability 'ack'`
  if (wrong === undefined) return undefined
  const error = new MillraceError('CONFIG_INVALID', `the stream ${name} ${wrong}`, { details: { stream: name } })
  return { class: 'fatal', error, outcome: 'failed' }
}

/** The server takes no message of this size; known before anything is sent. */
export function tooLarge(topic: string, id: string, sizeBytes: number, maxBytes: number): Verdict {
  const error = new MillraceError(
    'MESSAGE_REJECTED',
    `message ${id} to ${topic} has ${sizeBytes} bytes with its headers, the server takes ${maxBytes}: ` +
      `send a reference instead, or raise max_payload`,
    { details: { id, maxBytes, sizeBytes, topic } },
  )
  return { class: 'poison', error, outcome: 'failed' }
}

/** The message cannot be written down for NATS at all. */
export function unsendable(topic: string, id: string, why: string): Verdict {
  const error = new MillraceError('MESSAGE_REJECTED', `message ${id}: ${why}`, { details: { id, topic } })
  return { class: 'poison', error, outcome: 'failed' }
}

/** The account may not publish there. The server does not say which message it means: one before it may be there. */
export function forbidden(topic: string, cause: Error): Verdict {
  const error = new MillraceError(
    'PUBLISH_FATAL',
    `the account may not publish to ${topic}: grant it in the server's permissions`,
    { cause, details: { topic } },
  )
  return { class: 'fatal', error, outcome: 'unknown' }
}

/** No answer within the deadline. */
export function unanswered(topic: string, id: string, timeoutMs: number): Verdict {
  const error = new MillraceError('PUBLISH_REFUSED', `message ${id} to ${topic}: no answer within ${timeoutMs} ms`, {
    details: { id, timeoutMs, topic },
  })
  return { class: 'retry', error, outcome: 'unknown' }
}

/** The connection went; `sent` says whether the message had been given to it. */
export function disconnected(id: string, topic: string, sent: boolean): Verdict {
  const error = new MillraceError(
    'CONNECTION_LOST',
    `message ${id} to ${topic}: the connection to NATS was lost ${sent ? 'before the answer' : 'before it was sent'}`,
    { details: { id, topic } },
  )
  return { class: 'retry', error, outcome: sent ? 'unknown' : 'failed' }
}

/** The connection ended and nats.js will not make another: the credentials were refused, or the reply subject was. */
export function ended(id: string, topic: string, sent: boolean, cause: Error): Verdict {
  const error = new MillraceError(
    'PUBLISH_FATAL',
    `message ${id} to ${topic}: the connection to NATS ended for good (${cause.message}). ` +
      `Check the credentials, and that the account may subscribe to _INBOX.>`,
    { cause, details: { id, topic } },
  )
  return { class: 'fatal', error, outcome: sent ? 'unknown' : 'failed' }
}

/** The names of nats.js' errors about who we are. Its classes cannot be imported without loading the peer. */
const AUTHORISATION: ReadonlySet<string> = new Set([
  'AuthorizationError',
  'PermissionViolationError',
  'UserAuthenticationExpiredError',
])

/** True when the server says who we are is the trouble: trying again changes nothing. */
export function isAuthorisation(error: unknown): boolean {
  return error instanceof Error && AUTHORISATION.has(error.name)
}
