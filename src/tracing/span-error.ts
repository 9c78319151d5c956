import { SpanStatusCode } from '@opentelemetry/api'
import type { Span } from '@opentelemetry/api'
import { ATTRIBUTE } from './conventions.ts'

/** Marks the span as failed. `error.type` is the error's code, or its class: few values, never a text. */
export function recordError(span: Span, error: unknown): void {
  const failure = error instanceof Error ? error : new Error(`a ${typeof error} was thrown`)
  const code: unknown = 'code' in failure ? failure.code : undefined
  span.setAttribute(ATTRIBUTE.errorType, typeof code === 'string' ? code : failure.name)
  span.recordException(failure)
  span.setStatus({ code: SpanStatusCode.ERROR, message: failure.message })
}
