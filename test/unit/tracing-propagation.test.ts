import { context, diag, propagation, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import {
  CompositePropagator,
  isTracingSuppressed,
  W3CBaggagePropagator,
  W3CTraceContextPropagator,
} from '@opentelemetry/core'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MillraceError } from '../../src/core/errors.ts'
import type { Message } from '../../src/core/message.ts'
import { createOutbox } from '../../src/producer/index.ts'
import { captureContext, restoreContext, sendSpan, suppressTracing, withProcessSpan } from '../../src/tracing/index.ts'

const PARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
const TRACE_ID = PARENT.slice(3, 35)
const SPAN_ID = PARENT.slice(36, 52)

const message: Message = {
  headers: { traceparent: PARENT, tracestate: 'a=b' },
  id: '01890a5d-ac96-774b-bcce-b302099a8057',
  key: 'k',
  payload: Buffer.from('12345'),
  timeMs: 0,
  topic: 'orders',
  type: 'x',
}
const info = { group: 'billing', partition: 3, position: 42n, system: 'kafka' }

describe('without an SDK', () => {
  test('nothing is captured, the handler is called as it is, and a batch is not looked at', async () => {
    expect(captureContext()).toEqual({})
    expect(restoreContext(message.headers)).toBe(ROOT_CONTEXT)
    expect(await withProcessSpan(message, info, () => 7)).toBe(7)
    const untouchable = new Proxy([] as Message[], {
      get: () => expect.unreachable('the batch was looked at'),
    })
    const span = sendSpan(untouchable, { system: 'kafka' })
    span.end(new Error('no'))
    expect(sendSpan(untouchable, { system: 'nats' })).toBe(span)
    expect(suppressTracing(() => 7)).toBe(7)
  })
})

describe('with the SDK', () => {
  const exporter = new InMemorySpanExporter()
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })

  beforeEach(() => {
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
    propagation.setGlobalPropagator(
      new CompositePropagator({ propagators: [new W3CTraceContextPropagator(), new W3CBaggagePropagator()] }),
    )
    trace.setGlobalTracerProvider(provider)
  })

  afterEach(() => {
    exporter.reset()
    context.disable()
    propagation.disable()
    trace.disable()
    diag.disable()
  })

  test('append stores the active trace, not the baggage, and leaves a trace that the event brings alone', async () => {
    const baggage = propagation.createBaggage({ secret: { value: 'x' } })
    const active = propagation.setBaggage(restoreContext(message.headers), baggage)
    const headers: unknown[] = []
    const tx = {
      query: (_: string, params: unknown[] = []) => {
        const list = params[5] as string
        headers.push(...(JSON.parse(`[${list.slice(1, -1)}]`) as string[]).map((text) => JSON.parse(text) as unknown))
        return Promise.resolve({ rows: [] })
      },
    }
    const bytes = { payload: Buffer.alloc(0), topic: 't', type: 'x' }
    const other = PARENT.replace('0af7', '1af7')
    await context.with(active, () => createOutbox().append(tx, [bytes, { ...bytes, headers: { Traceparent: other } }]))
    expect(headers).toEqual([{ traceparent: PARENT, tracestate: 'a=b' }, { Traceparent: other }])
  })

  test('headers are found whatever their case', () => {
    const restored = restoreContext({ 'Trace-Parent': 'x', TRACEPARENT: PARENT, TraceState: 'a=b' })
    expect(trace.getSpanContext(restored)).toMatchObject({ spanId: SPAN_ID, traceId: TRACE_ID })
    expect(trace.getSpanContext(restored)?.traceState?.serialize()).toBe('a=b')
    expect(trace.getSpanContext(restoreContext({ traceparent: 'rubbish' }))).toBeUndefined()
  })

  test('the handler runs inside a consumer span that is a child of the trace of the message', async () => {
    const inside = await withProcessSpan(message, info, async () => {
      await Promise.resolve()
      return captureContext()
    })
    const [span] = exporter.getFinishedSpans()
    expect(span).toMatchObject({
      kind: SpanKind.CONSUMER,
      name: 'process orders',
      status: { code: SpanStatusCode.UNSET },
    })
    expect(span?.parentSpanContext).toMatchObject({ isRemote: true, spanId: SPAN_ID, traceId: TRACE_ID })
    expect(inside.traceparent).toBe(`00-${TRACE_ID}-${span?.spanContext().spanId}-01`)
    expect(inside.tracestate).toBe('a=b')
    expect(span?.attributes).toEqual({
      'messaging.consumer.group.name': 'billing',
      'messaging.destination.name': 'orders',
      'messaging.destination.partition.id': '3',
      'messaging.kafka.message.key': 'k',
      'messaging.kafka.offset': 42,
      'messaging.message.body.size': 5,
      'messaging.message.id': message.id,
      'messaging.operation.name': 'process',
      'messaging.operation.type': 'process',
      'messaging.system': 'kafka',
    })
  })

  test('a message without a trace begins one, also when the consumer was started inside a span or suppressed', async () => {
    await suppressTracing(() =>
      context.with(trace.setSpan(context.active(), trace.getTracer('test').startSpan('start')), () =>
        withProcessSpan({ ...message, headers: {} }, { group: 'g', system: 'nats' }, () => undefined),
      ),
    )
    const [span] = exporter.getFinishedSpans()
    expect(span?.parentSpanContext).toBeUndefined()
    expect(span?.attributes).not.toHaveProperty(['messaging.kafka.message.key'])
  })

  test('a handler that throws, or rejects, marks its span with the code of the error and throws on', async () => {
    const failure = new MillraceError('CONNECTION_LOST', 'gone')
    const thrown = withProcessSpan(message, info, () => {
      throw failure
    })
    await expect(thrown).rejects.toBe(failure)
    await expect(withProcessSpan(message, info, () => Promise.reject(new TypeError('no')))).rejects.toThrow('no')
    const spans = exporter.getFinishedSpans()
    expect(spans.map((span) => span.attributes['error.type'])).toEqual(['CONNECTION_LOST', 'TypeError'])
    expect(spans.map((span) => span.status.code)).toEqual([SpanStatusCode.ERROR, SpanStatusCode.ERROR])
    expect(spans.map((span) => span.events.length)).toEqual([1, 1])
  })

  test('a batch is one client span of its own trace with a link to each message that has one, at most 128', () => {
    const active = trace.setSpan(context.active(), trace.getTracer('test').startSpan('someone'))
    context.with(active, () => {
      sendSpan([message, { ...message, headers: {} }, message], { system: 'nats' }).end()
      sendSpan([message, { ...message, topic: 'refunds' }], { system: 'nats' }).end(
        new MillraceError('PUBLISH_REFUSED', 'no'),
      )
      sendSpan(
        Array.from({ length: 500 }, () => message),
        { system: 'nats' },
      ).end()
    })
    const [one, mixed, large] = exporter.getFinishedSpans()
    expect(one).toMatchObject({ kind: SpanKind.CLIENT, name: 'send orders' })
    expect(one?.parentSpanContext).toBeUndefined()
    expect(one?.spanContext().traceId).not.toBe(TRACE_ID)
    expect(one?.links.map((link) => [link.context.spanId, link.attributes])).toEqual([
      [SPAN_ID, { 'messaging.message.id': message.id }],
      [SPAN_ID, { 'messaging.message.id': message.id }],
    ])
    expect(one?.attributes).toEqual({
      'messaging.batch.message_count': 3,
      'messaging.destination.name': 'orders',
      'messaging.operation.name': 'send',
      'messaging.operation.type': 'send',
      'messaging.system': 'nats',
    })
    expect(mixed).toMatchObject({ name: 'send', status: { code: SpanStatusCode.ERROR } })
    expect(mixed?.attributes['error.type']).toBe('PUBLISH_REFUSED')
    expect(large?.links).toHaveLength(128)
  })

  test('suppression is the one that the SDK and its instrumentations understand', () => {
    expect(suppressTracing(() => isTracingSuppressed(context.active()))).toBe(true)
    expect(isTracingSuppressed(context.active())).toBe(false)
    suppressTracing(() => trace.getTracer('test').startSpan('unseen').end())
    expect(exporter.getFinishedSpans()).toEqual([])
  })
})
