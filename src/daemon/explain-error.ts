/** What an error is in a log: names, codes and text, never its stack or the objects it holds. */
export interface ErrorFields {
  readonly name: string
  readonly code?: string
  readonly message: string
  readonly retryable?: boolean
  readonly cause?: ErrorFields
}

const DEEPEST = 5

/** One line (or the lines of a Millrace error) that says what happened and why, cause after cause. */
export function explainError(error: unknown): string {
  const parts: string[] = []
  for (let fields: ErrorFields | undefined = errorFields(error); fields !== undefined; fields = fields.cause) {
    const { message } = fields
    const code = fields.code !== undefined && !message.includes(fields.code) ? ` (${fields.code})` : ''
    if (!parts.some((part) => part.includes(message))) parts.push(message + code)
  }
  return parts.join(': ')
}

/** The fields of an error for a structured log. */
export function errorFields(error: unknown, depth = 0): ErrorFields {
  if (!(error instanceof Error)) return { name: typeof error, message: String(error) }
  const { code, retryable } = error as { code?: unknown; retryable?: unknown }
  return {
    name: error.name,
    ...(typeof code === 'string' || typeof code === 'number' ? { code: String(code) } : {}),
    message: messageOf(error),
    ...(typeof retryable === 'boolean' ? { retryable } : {}),
    ...(error.cause === undefined || depth >= DEEPEST ? {} : { cause: errorFields(error.cause, depth + 1) }),
  }
}

/** Node reports a host with several addresses as an AggregateError without a message. */
function messageOf(error: Error): string {
  if (error.message !== '') return error.message
  const errors: readonly unknown[] = error instanceof AggregateError ? error.errors : []
  const messages = new Set(errors.map((inner) => (inner instanceof Error ? inner.message : String(inner))))
  return messages.size > 0 ? [...messages].join(', ') : error.name
}
