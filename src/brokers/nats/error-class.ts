import { MillraceError } from '../../core/errors.ts'
import type { ErrorClass, Outcome } from '../broker.ts'

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
 * | 10158 the same id is being stored at this moment            | retry     | unknown | the copy in process may still fail |
 * | 429, 10167, 10211 too many requests                         | throttle  | failed  | the server asks for less |
 * | 10039, 10076 JetStream not enabled; 10035 no account        | fatal     | failed  | configuration |
 * | 10109 sealed; 10060, 10070, 10071 an expectation            | fatal     | failed  | configuration; we send no expectation |
 * | 10002, 10023, 10028, 10047, 10077, 10122 resources, limits  | retry     | failed  | full; room may be made, by age or by hand |
 * | any other                                                   | retry     | failed  | a cluster without a leader, a stream that moves |
 *
 * 10077 carries "maximum messages exceeded" and its like: a stream with `discard: new` that is full. It is a matter of
 * the stream and not of this message, so it holds the shard instead of parking every key one by one.
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
const FATAL: ReadonlySet<number> = new Set([10035, 10039, 10060, 10070, 10071, 10076, 10109])
const THROTTLE: ReadonlySet<number> = new Set([10167, 10211])
const DUPLICATE_IN_PROCESS = 10158

/**
 * Nobody answers on the subject: no stream captures it. Retry and not poison, because a stream may be about to be
 * created, and because a server that restarts answers so too until its streams are back: parking a topic's every
 * event for that would be a wrong that no operator expects.
 */
export function noStream(topic: string, id: string, stream: string): Verdict {
  const error = new MillraceError(
    'PUBLISH_REFUSED',
    `message ${id}: no JetStream stream captures the subject ${topic}, or its server is restarting. ` +
      `If it was never made: nats stream add ${stream} --subjects ${topic} --defaults`,
    { details: { id, topic } },
  )
  return { class: 'retry', error, outcome: 'failed' }
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

/** The account may not publish there. */
export function forbidden(topic: string, cause: Error): Verdict {
  const error = new MillraceError(
    'PUBLISH_FATAL',
    `the account may not publish to ${topic}: grant it in the server's permissions`,
    { cause, details: { topic } },
  )
  return { class: 'fatal', error, outcome: 'failed' }
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
