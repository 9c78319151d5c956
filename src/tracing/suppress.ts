import { context, createContextKey } from '@opentelemetry/api'

// The key the OpenTelemetry SDK keeps this under; keys are Symbol.for, so it is the same one without @opentelemetry/core.
const SUPPRESS_TRACING = createContextKey('OpenTelemetry SDK Context Key SUPPRESS_TRACING')

/**
 * Calls `fn` where tracing is off, for a client whose instrumentation would overwrite the `traceparent` that the event
 * carries (kafkajs') or make spans without end. Costs one map copy; without an SDK even that does nothing more.
 *
 * @example
 * await suppressTracing(() => producer.sendBatch(batch))
 */
export function suppressTracing<T>(fn: () => T): T {
  return context.with(context.active().setValue(SUPPRESS_TRACING, true), fn)
}
