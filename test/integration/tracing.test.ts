import { context, propagation, SpanKind, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { W3CTraceContextPropagator } from '@opentelemetry/core'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { randomUUID } from 'node:crypto'
import type { PoolClient } from 'pg'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { createMemoryBroker, memory } from '../../src/brokers/memory/index.ts'
import { createConsumer } from '../../src/consumer/index.ts'
import { createRelay } from '../../src/outbox-relay/index.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { createTestDatabase, describeWith, services } from '../support/services.ts'
import { brokerAt } from './consumer-child.ts'

const exporter = new InMemorySpanExporter()

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
  propagation.setGlobalPropagator(new W3CTraceContextPropagator())
  trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }))
})

afterAll(() => {
  trace.disable()
  propagation.disable()
  context.disable()
})

for (const kind of ['memory', 'kafka', 'nats'] as const) {
  const needs = kind === 'memory' ? (['postgres18'] as const) : (['postgres18', kind] as const)
  describeWith(needs, `tracing over ${kind}`, () => {
    test('one trace goes from the request through the relay and the handler to the event of the handler', async () => {
      exporter.reset()
      const database = await createTestDatabase()
      onTestFinished(() => database.close())
      const host = createMemoryBroker()
      const broker = kind === 'memory' ? memory({ host }) : brokerAt(kind, services()[kind] as string)
      onTestFinished(() => broker.close())
      const topic = `traced-${randomUUID()}`
      await broker.admin.createTopic(topic)
      const outbox = createOutbox()
      const handled = Promise.withResolvers<string | undefined>()
      const relay = trackLifecycle('relay', createRelay({ broker, postgres: database.pool }))
      const consumer = trackLifecycle(
        'consumer',
        createConsumer({
          broker,
          group: `billing-${topic}`,
          handle: async (message, { tx }) => {
            if (message.type === 'order.placed') {
              await outbox.append(tx, { topic, key: 'k', type: 'order.billed', payload: {} })
            } else {
              handled.resolve(message.headers['traceparent'])
            }
          },
          inbox: { postgres: database.pool },
          topics: [topic],
        }),
      )
      onTestFinished(async () => void (await Promise.allSettled([consumer.stop(), relay.stop()])))
      await relay.start()
      await consumer.start()

      const tracer = trace.getTracer('shop')
      await tracer.startActiveSpan('POST /orders', async (request) => {
        await inTransaction(await database.pool.connect(), (tx) =>
          outbox.append(tx, { topic, key: 'k', type: 'order.placed', payload: {} }),
        )
        request.end()
      })
      const last = await handled.promise
      await consumer.stop()
      await relay.stop()

      const spans = exporter.getFinishedSpans()
      const [request] = spans.filter((span) => span.name === 'POST /orders')
      const traceId = request?.spanContext().traceId as string
      const processed = spans.filter((span) => span.name === `process ${topic}`)
      expect(processed).toHaveLength(2)
      const [placed, billed] = processed
      expect(placed).toMatchObject({
        kind: SpanKind.CONSUMER,
        parentSpanContext: { spanId: request?.spanContext().spanId },
      })
      expect(billed).toMatchObject({
        kind: SpanKind.CONSUMER,
        parentSpanContext: { spanId: placed?.spanContext().spanId },
      })
      expect(processed.map((span) => span.spanContext().traceId)).toEqual([traceId, traceId])
      expect(last).toBe(`00-${traceId}-${placed?.spanContext().spanId}-01`)
      // The relay's batches are traces of their own, which link to the events'.
      const sent = spans.filter((span) => span.name === `send ${topic}`)
      expect(sent.flatMap((span) => span.links.map((link) => link.context.spanId))).toEqual(
        [request, placed].map((span) => span?.spanContext().spanId),
      )
      expect(sent.map((span) => span.kind)).toEqual([SpanKind.CLIENT, SpanKind.CLIENT])
      expect(new Set(spans.map((span) => span.attributes['messaging.system']))).toEqual(
        new Set([undefined, broker.system]),
      )
    })
  })
}

async function inTransaction(client: PoolClient, work: (tx: PoolClient) => Promise<unknown>): Promise<void> {
  await client.query('begin')
  await work(client)
  await client.query('commit')
  client.release()
}
