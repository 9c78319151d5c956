import type { Publisher } from '../brokers/broker.ts'
import { sendSpan } from '../tracing/index.ts'

/** The publisher with a span around each batch, which links to the trace of every message. */
export function tracedPublisher(publisher: Publisher, system: string): Publisher {
  return {
    close: () => publisher.close(),
    start: () => publisher.start(),
    async publish(batch, signal) {
      const span = sendSpan(batch, { system })
      try {
        const unresolved = await publisher.publish(batch, signal)
        span.end(unresolved[0]?.error)
        return unresolved
      } catch (error) {
        span.end(error as Error)
        throw error
      }
    },
  }
}
