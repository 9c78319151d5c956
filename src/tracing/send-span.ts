import { ROOT_CONTEXT, SpanKind, trace } from '@opentelemetry/api'
import type { Link } from '@opentelemetry/api'
import type { Message } from '../core/message.ts'
import { ATTRIBUTE, SCOPE } from './conventions.ts'
import { tracingEnabled } from './enabled.ts'
import { restoreContext } from './propagation.ts'
import { recordError } from './span-error.ts'

/** Where a batch goes. */
export interface SendInfo {
  /** The broker's `system`. */
  readonly system: string
}

/** The span of a batch that is on its way. */
export interface SendSpan {
  /** The batch is settled; with the error when not all of it was stored. */
  end(error?: Error): void
}

const NO_SPAN: SendSpan = Object.freeze({ end: () => undefined })

/** As many links as an SDK keeps unless it is told otherwise. */
const MAX_LINKS = 128

/**
 * A CLIENT span `send {topic}` for one batch of the relay, with a link to the trace of each message: a batch belongs to
 * no single one of them. Without an SDK it looks at nothing and allocates nothing.
 */
export function sendSpan(messages: readonly Message[], info: SendInfo): SendSpan {
  if (!tracingEnabled()) return NO_SPAN
  const topic = commonTopic(messages)
  const span = trace.getTracer(SCOPE).startSpan(
    topic === undefined ? 'send' : `send ${topic}`,
    {
      attributes: {
        [ATTRIBUTE.batchMessageCount]: messages.length,
        [ATTRIBUTE.operationName]: 'send',
        [ATTRIBUTE.operationType]: 'send',
        [ATTRIBUTE.system]: info.system,
        ...(topic === undefined ? {} : { [ATTRIBUTE.destination]: topic }),
      },
      kind: SpanKind.CLIENT,
      root: true,
    },
    ROOT_CONTEXT,
  )
  if (span.isRecording()) span.addLinks(linksOf(messages))
  return {
    end(error) {
      if (error !== undefined) recordError(span, error)
      span.end()
    },
  }
}

function commonTopic(messages: readonly Message[]): string | undefined {
  const topic = messages[0]?.topic
  return messages.every((message) => message.topic === topic) ? topic : undefined
}

function linksOf(messages: readonly Message[]): Link[] {
  const links: Link[] = []
  for (const message of messages) {
    if (links.length === MAX_LINKS) break
    const context = trace.getSpanContext(restoreContext(message.headers))
    if (context !== undefined) links.push({ context, attributes: { [ATTRIBUTE.messageId]: message.id } })
  }
  return links
}
