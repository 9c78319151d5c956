/**
 * Tracing, by `@opentelemetry/api` alone: the active context goes into an event's headers at append, comes back around
 * the handler, and the relay's batches link to it. Without an SDK every part of it is a call that does nothing.
 */
export { captureContext, restoreContext } from './propagation.ts'
export type { TraceHeaders } from './propagation.ts'
export { withProcessSpan } from './process-span.ts'
export type { ProcessInfo } from './process-span.ts'
export { sendSpan } from './send-span.ts'
export type { SendInfo, SendSpan } from './send-span.ts'
export { suppressTracing } from './suppress.ts'
