import type { ConsumerConfig, ConsumerInfo, JetStreamManager } from '@nats-io/jetstream'
import { MillraceError } from '../../core/errors.ts'
import { codeOf, findStream } from './find-stream.ts'
import { durableName, streamName } from './names.ts'

const NANOS = 1_000_000
/** The server's code for a consumer that is not there. */
export const CONSUMER_NOT_FOUND = 10014
/** "consumer name already in use", "consumer already exists": another member made it meanwhile. */
const ALREADY_THERE: ReadonlySet<number> = new Set([10013, 10148, 10105])
/** How many deliveries may wait for their acknowledgement; above it the server delivers nothing new. */
const MAX_ACK_PENDING = 20_000

/** The priority group whose pinned member is the one active member. */
export const PRIORITY_GROUP = 'millrace'

/** The durable consumer of a group on one topic. */
export interface Durable {
  readonly name: string
  readonly stream: string
}

/** The part of a consumer's state that says who is active. The types of nats.js leave it out. */
interface PriorityGroupState {
  readonly group: string
  readonly pinned_client_id?: string
}

/** Who is being served, in `info`; '' when nobody is. */
export function pinnedClient(info: ConsumerInfo): string {
  const { priority_groups: groups } = info as ConsumerInfo & { readonly priority_groups?: PriorityGroupState[] }
  return groups?.find((state) => state.group === PRIORITY_GROUP)?.pinned_client_id ?? ''
}

/** What decides about the durable consumer. */
export interface DurableOptions {
  readonly group: string
  readonly sessionTimeoutMs: number
  readonly startFrom: 'earliest' | 'latest'
  readonly topic: string
}

/**
 * Finds or makes the durable consumer of the group. One that is there keeps its position; only its time-outs follow the
 * newest member.
 */
export async function ensureDurable(manager: JetStreamManager, options: DurableOptions): Promise<Durable> {
  const { group, topic } = options
  const stream = await findStream(manager, topic)
  if (stream === undefined) {
    throw new MillraceError(
      'BROKER_UNREACHABLE',
      `no JetStream stream captures the subject ${topic}: ` +
        `nats stream add ${streamName(topic)} --subjects ${topic} --defaults`,
      { details: { topic } },
    )
  }
  const name = durableName(group, topic)
  const timeouts = {
    ack_wait: options.sessionTimeoutMs * NANOS,
    priority_timeout: options.sessionTimeoutMs * NANOS,
  }
  let info = await findConsumer(manager, stream, name)
  if (info === undefined) {
    try {
      await manager.consumers.add(stream, {
        ...timeouts,
        ack_policy: 'explicit',
        deliver_policy: options.startFrom === 'latest' ? 'new' : 'all',
        durable_name: name,
        filter_subject: topic,
        max_ack_pending: MAX_ACK_PENDING,
        max_deliver: -1,
        metadata: { 'millrace-group': group, 'millrace-topic': topic },
        priority_groups: [PRIORITY_GROUP],
        priority_policy: 'pinned_client',
        replay_policy: 'instant',
      } satisfies Partial<ConsumerConfig>)
      return { name, stream }
    } catch (error) {
      if (!ALREADY_THERE.has(codeOf(error))) throw error
      info = await manager.consumers.info(stream, name)
    }
  }
  const { ack_wait: ackWait, priority_policy: policy, priority_timeout: pinTimeout } = info.config
  if (policy !== 'pinned_client') {
    throw new MillraceError(
      'CONFIG_INVALID',
      `the consumer ${name} of the stream ${stream} is not of Millrace's making (no pinned_client priority group): ` +
        `choose another group name, or remove it: nats consumer rm ${stream} ${name}`,
      { details: { consumer: name, stream } },
    )
  }
  if (ackWait !== timeouts.ack_wait || pinTimeout !== timeouts.priority_timeout) {
    await manager.consumers.update(stream, name, timeouts)
  }
  return { name, stream }
}

async function findConsumer(
  manager: JetStreamManager,
  stream: string,
  name: string,
): Promise<ConsumerInfo | undefined> {
  try {
    return await manager.consumers.info(stream, name)
  } catch (error) {
    if (codeOf(error) === CONSUMER_NOT_FOUND) return undefined
    throw error
  }
}
