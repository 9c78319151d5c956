import { context, ROOT_CONTEXT, SpanKind, trace } from '@opentelemetry/api'
import type { Attributes } from '@opentelemetry/api'
import type { Message } from '../core/message.ts'
import { ATTRIBUTE, SCOPE } from './conventions.ts'
import { tracingEnabled } from './enabled.ts'
import { restoreContext } from './propagation.ts'
import { recordError } from './span-error.ts'

/** What a message does not say of itself. */
export interface ProcessInfo {
  readonly group: string
  readonly partition?: number
  /** On Kafka the offset. */
  readonly position?: bigint
  /** The broker's `system`. */
  readonly system: string
}

/**
 * Calls the handler inside a CONSUMER span `process {topic}`, whose parent is the trace that the message carries; what
 * the handler does, and appends, belongs to that trace. Without an SDK it is the call and little else.
 */
export async function withProcessSpan<T>(
  message: Message,
  info: ProcessInfo,
  fn: () => T | PromiseLike<T>,
): Promise<Awaited<T>> {
  const parent = restoreContext(message.headers)
  if (!tracingEnabled()) return await (parent === ROOT_CONTEXT ? fn() : context.with(parent, fn))
  const span = trace
    .getTracer(SCOPE)
    .startSpan(`process ${message.topic}`, { attributes: attributesOf(message, info), kind: SpanKind.CONSUMER }, parent)
  try {
    return await context.with(trace.setSpan(parent, span), fn)
  } catch (error) {
    recordError(span, error)
    throw error
  } finally {
    span.end()
  }
}

function attributesOf(message: Message, info: ProcessInfo): Attributes {
  const attributes: Attributes = {
    [ATTRIBUTE.consumerGroup]: info.group,
    [ATTRIBUTE.destination]: message.topic,
    [ATTRIBUTE.messageId]: message.id,
    [ATTRIBUTE.messageSize]: message.payload?.length ?? 0,
    [ATTRIBUTE.operationName]: 'process',
    [ATTRIBUTE.operationType]: 'process',
    [ATTRIBUTE.system]: info.system,
  }
  if (info.partition !== undefined) attributes[ATTRIBUTE.partition] = String(info.partition)
  if (info.system === 'kafka') {
    if (info.position !== undefined) attributes[ATTRIBUTE.kafkaOffset] = Number(info.position)
    if (message.key !== null) attributes[ATTRIBUTE.kafkaKey] = message.key
  }
  return attributes
}
