import type pg from 'pg'
import { onTestFinished } from 'vitest'
import { createConsumer, type Consumer, type ConsumerOptions, type HandledMessage } from '../../src/consumer/index.ts'
import { Signals } from '../../src/core/signals.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { createTestDatabase, type TestDatabase } from '../support/services.ts'
import { ScriptedBroker } from './consumer-scripted-broker.ts'

/** A row that a handler wrote. */
export interface Effect {
  readonly id: string
  readonly key: string | null
  readonly n: number
}

/** The table that the handlers of these tests write to. Nothing in it is unique: a double effect is a second row. */
export const EFFECT_TABLE = 'create table effect (seq bigint generated always as identity, id text, key text, n int)'

/** Writes the effect of a message whose payload is `{ n }`. */
export async function writeEffect(message: HandledMessage, tx: Pick<pg.Pool, 'query'>): Promise<void> {
  const { n } = message.json<{ n?: number }>()
  await tx.query('insert into effect (id, key, n) values ($1, $2, $3)', [message.id, message.key, n ?? 0])
}

/** All effects, in the order they were written. */
export async function effects(pool: pg.Pool): Promise<Effect[]> {
  return (await pool.query<Effect>('select id, key, n from effect order by seq')).rows
}

/** A consumer on a scripted broker and a database of its own. */
export interface Stage {
  readonly broker: ScriptedBroker
  readonly consumer: Consumer
  readonly database: TestDatabase
  readonly errors: Error[]
  readonly signals: Signals
  /** Resolves when the consumer has finished this many messages, one way or another. */
  finished(count: number): Promise<void>
}

type Overrides = Partial<Omit<ConsumerOptions<pg.Pool>, 'inbox'>>

/** Makes the stage, starts the consumer and assigns partition 0. Everything ends with the test. */
export async function stage(overrides: Overrides = {}, database?: TestDatabase): Promise<Stage> {
  const own = database ?? (await createTestDatabase())
  if (database === undefined) {
    await own.pool.query(EFFECT_TABLE)
    onTestFinished(() => own.close())
  }
  const broker = new ScriptedBroker()
  const signals = new Signals()
  const errors: Error[] = []
  const consumer = trackLifecycle(
    'consumer',
    createConsumer({
      broker,
      commitIntervalMs: 20,
      group: 'billing',
      handle: (message, { tx }) => writeEffect(message, tx),
      inbox: { postgres: own.pool },
      onError: (error) => errors.push(error),
      retry: { attempts: 3, maxDelayMs: 20, minDelayMs: 5 },
      signals,
      topics: [broker.topic],
      ...overrides,
    }),
  )
  onTestFinished(() => consumer.stop({ timeoutMs: 2000 }))
  await consumer.start()
  broker.assign(0)
  const finished = async (count: number): Promise<void> => {
    const done = (): boolean => {
      const { deadLettered, duplicates, handled } = consumer.stats()
      return deadLettered + duplicates + handled >= count
    }
    while (!done()) await Promise.race([signals.next('consumer.done'), consumer.stopped])
  }
  return { broker, consumer, database: own, errors, finished, signals }
}

/** `count` messages of keys `k0`, `k1`, …, each with its number within its key. */
export function numbered(count: number, keys: number, from = 0): { key: string; payload: string }[] {
  return Array.from({ length: count }, (_, i) => ({
    key: `k${i % keys}`,
    payload: JSON.stringify({ n: from + Math.floor(i / keys) }),
  }))
}

/** The numbers written for each key, in the order they were written. */
export function byKey(written: readonly Effect[]): Map<string | null, number[]> {
  const keys = new Map<string | null, number[]>()
  for (const { key, n } of written) {
    const numbers = keys.get(key)
    if (numbers === undefined) keys.set(key, [n])
    else numbers.push(n)
  }
  return keys
}

/** 0, 1, 2, … */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}
