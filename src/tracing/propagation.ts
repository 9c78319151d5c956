import { context, propagation, ROOT_CONTEXT } from '@opentelemetry/api'
import type { Context, TextMapGetter, TextMapSetter } from '@opentelemetry/api'
import type { Headers } from '../core/message.ts'

/** The W3C trace context as headers. Baggage stays out: it tends to hold what must not be stored. */
export interface TraceHeaders {
  traceparent?: string
  tracestate?: string
}

const setter: TextMapSetter<TraceHeaders> = {
  set(carrier, name, value) {
    const lower = name.toLowerCase()
    if (lower === 'traceparent' || lower === 'tracestate') carrier[lower] = value
  },
}

// Brokers and proxies change the case of header names, so a name that is not found as it is is looked for.
const getter: TextMapGetter<Headers> = {
  keys: (carrier) => Object.keys(carrier),
  get(carrier, name) {
    if (Object.hasOwn(carrier, name)) return carrier[name]
    const lower = name.toLowerCase()
    for (const key in carrier) if (key.length === lower.length && key.toLowerCase() === lower) return carrier[key]
    return undefined
  },
}

/** The active trace context, to be stored with an event; empty when there is none or no propagator is registered. */
export function captureContext(): TraceHeaders {
  const carrier: TraceHeaders = {}
  propagation.inject(context.active(), carrier, setter)
  return carrier
}

/**
 * The context that the headers carry; the root context when they carry none. It never builds on the active context,
 * which belongs to whoever started the consumer, and may have tracing suppressed.
 */
export function restoreContext(headers: Headers): Context {
  return propagation.extract(ROOT_CONTEXT, headers, getter)
}
