/**
 * The consumer: takes messages from a broker in order per key, runs the handler, and makes its effect happen once.
 *
 *   intake (consumer.ts) → lanes (flow/key-lanes) → group (group.ts) → effect transaction (effect-transaction.ts)
 *   → watermark (flow/watermark) → lazy commit to the broker (commit-schedule.ts)
 *
 * The adapter hands messages over and never waits for a handler. Messages that are ready are handled in groups, one
 * transaction each; a group that fails is taken apart, so that a bad message stops its key and nothing else.
 */
export { createConsumer } from './create-consumer.ts'
export type { Consumer, ConsumerStats } from './consumer.ts'
export type { HandledMessage } from './handled-message.ts'
export type { ConsumerOptions, Handler, HandlerContext, RetryOptions, TransactionOf } from './consumer-options.ts'
