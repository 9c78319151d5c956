import type { Broker, Capabilities } from '../../brokers/broker.ts'

/** One guarantee of the broker port, as something that can be run against an adapter. */
export interface ConformanceCase {
  /** The guarantee it holds. */
  readonly name: string
  /** Whether the guarantee applies to this broker; it always does when this is left out. */
  needs?(capabilities: Capabilities, context: ConformanceContext): boolean
  /** Resolves when the guarantee holds, rejects with an assertion when it does not. Every wait in it is bounded. */
  run(context: ConformanceContext): Promise<void>
}

/** What the suite needs to know of the broker under test. */
export interface ConformanceContext {
  /** A fresh client of the one broker under test. The suite closes it. */
  broker(): Promise<Broker>
  /** A topic name that nobody else uses. The suite creates and deletes the topic. */
  topic(): string
  /** A group name that nobody else uses. */
  group(): string
  /** How long any single wait may last, milliseconds. Raise it for a slow broker. Default: 20000. */
  readonly deadlineMs?: number
  /** Given to every subscription, milliseconds. Default: 6000. */
  readonly sessionTimeoutMs?: number
  /** Reads a topic from its beginning with a plain client of the broker, without this package: what others see. */
  plainReader?(topic: string, count: number): Promise<readonly PlainMessage[]>
}

/** A message as a plain client sees it. */
export interface PlainMessage {
  readonly headers: Readonly<Record<string, string>>
  readonly payload: Buffer
}
