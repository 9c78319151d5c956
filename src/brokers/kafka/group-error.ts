/** The errors of a member of a Kafka group, with the fix in their text. */
import { MillraceError } from '../../core/errors.ts'
import type { Partition, SubscriptionOptions } from '../broker.ts'
import type { Verdict } from './protocol-verdict.ts'

/** The member cannot work, or not now. */
export function memberError(verdict: Verdict, options: Pick<SubscriptionOptions, 'group' | 'topics'>): MillraceError {
  const { cause } = verdict
  if (cause instanceof MillraceError) return cause
  const why = cause instanceof Error ? cause.message : String(cause)
  const { group, topics } = options
  const who = `group ${group} on ${topics.join(', ')}`
  if (verdict.unknownTopic) {
    const fix = 'create the topic first, or correct its name'
    return new MillraceError('CONFIG_INVALID', `Kafka has no such topic for ${who}: ${fix}.`, { cause })
  }
  return verdict.class === 'fatal'
    ? new MillraceError('CONFIG_INVALID', `Kafka refuses ${who}: ${why}`, { cause })
    : new MillraceError('BROKER_UNREACHABLE', `Kafka does not serve ${who}: ${why}`, { cause })
}

export function notOurs({ topic, partition }: Partition): MillraceError {
  return new MillraceError('PARTITION_LOST', `Partition ${topic}/${partition} is not ours, or not at this position.`, {
    details: { partition, topic },
  })
}

export function notCommitted(cause?: unknown): MillraceError {
  const why = cause instanceof Error ? cause.message : 'no answer'
  return new MillraceError('CONNECTION_LOST', `Kafka did not take the commit (${why}); commit again.`, { cause })
}

export function unreachable(): MillraceError {
  return new MillraceError('BROKER_UNREACHABLE', 'No Kafka broker answers.')
}

export function subscriptionStopped(): MillraceError {
  return new MillraceError('LIFECYCLE_STOPPED', 'The subscription has stopped; make a new one.')
}
