/**
 * What an error of @platformatic/kafka means for the messages that were being sent, from its codes, never from its text.
 *
 * A broker's answer is judged per partition, from the error code in it (`verdictOf`); `classify` judges what came instead
 * of an answer. The client nests errors (`cause`, `errors`): the judgement is over the first below it that says something.
 */
import { TLS_REFUSALS } from '../../tls-refusals.ts'
import { FATAL, judgeProtocolError, NOT_CONNECTED, POISON, REFUSED, UNKNOWN } from '../protocol-verdict.ts'
import type { Judgement, Verdict } from '../protocol-verdict.ts'

export type { Verdict } from '../protocol-verdict.ts'

/** An error code in a broker's answer. */
export class ProtocolRefusal extends Error {
  /** The protocol's name of the error, such as `NOT_ENOUGH_REPLICAS`. */
  readonly apiId: string

  constructor(apiId: string, text?: string | null) {
    super(text === undefined || text === null || text === '' ? apiId : `${apiId}: ${text}`)
    this.name = 'ProtocolRefusal'
    this.apiId = apiId
  }
}

/** Judges an error code of a broker's answer. */
export function verdictOf(refusal: ProtocolRefusal): Verdict {
  return { ...(judgeProtocolError(refusal.apiId) ?? UNKNOWN), cause: refusal }
}

/** Judges what came instead of an answer. */
export function classify(error: unknown): Verdict {
  for (const one of below(error)) {
    const judgement = judge(one)
    if (judgement !== undefined) return { ...judgement, cause: one }
  }
  // A socket that died, a request without an answer, and whatever is not listed: it may have arrived.
  return { ...UNKNOWN, cause: error }
}

/** The answer inside an error that the client makes of an answer with error codes; undefined when there was none. */
export function answerOf(error: unknown): object | undefined {
  const { code, response } = fieldsOf(error)
  return code === 'PLT_KFK_RESPONSE' && typeof response === 'object' && response !== null ? response : undefined
}

function judge(error: unknown): Judgement | undefined {
  const { apiId, code, name } = fieldsOf(error)
  if (typeof apiId === 'string') return judgeProtocolError(apiId)
  switch (code) {
    // A server this client cannot talk to, or a client that is not there.
    case 'SERVER_TOO_OLD':
    case 'PEER_MISSING':
    // The password is wrong, or the mechanism.
    case 'PLT_KFK_AUTHENTICATION':
    // Settings that do not fit the broker: a listener that wants TLS, or has none.
    case 'PLT_KFK_USER':
    // The server lacks an API, or a record uses a compression that is not installed.
    case 'PLT_KFK_UNSUPPORTED':
    case 'PLT_KFK_UNSUPPORTED_API':
    case 'PLT_KFK_UNSUPPORTED_COMPRESSION':
      return FATAL
  }
  if (TLS_REFUSALS.has(code)) return FATAL
  if (typeof code === 'string' && NOT_CONNECTED.has(code)) return REFUSED
  // It could not be encoded: it never left the process, and never will.
  if (name === 'TypeError' || (name === 'RangeError' && code === undefined)) return { ...POISON, splits: true }
  return undefined
}

/** The error and all that it was made of, innermost first. */
function* below(error: unknown, depth = 0): Generator<unknown> {
  if (depth > 10 || error === undefined || error === null) return
  const { cause, errors } = fieldsOf(error)
  if (Array.isArray(errors)) for (const one of errors as readonly unknown[]) yield* below(one, depth + 1)
  yield* below(cause, depth + 1)
  yield error
}

interface Fields {
  readonly apiId?: unknown
  readonly cause?: unknown
  readonly code?: unknown
  readonly errors?: unknown
  readonly name?: unknown
  readonly response?: unknown
}

function fieldsOf(error: unknown): Fields {
  return typeof error === 'object' && error !== null ? error : {}
}
