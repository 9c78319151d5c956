import { ProxyTracerProvider, trace } from '@opentelemetry/api'

// What a proxy delegates to until an SDK registers itself.
const NONE = new ProxyTracerProvider().getDelegate()

/** Whether an SDK is there to make spans. While none is, nothing is worth preparing for one. */
export function tracingEnabled(): boolean {
  const provider = trace.getTracerProvider()
  return !(provider instanceof ProxyTracerProvider) || provider.getDelegate() !== NONE
}
