import type pg from 'pg'
import { onTestFinished } from 'vitest'
import { createConsumer, type Consumer, type ConsumerOptions } from '../../src/consumer/index.ts'
import { Signals } from '../../src/core/signals.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { createTestDatabase, type TestDatabase } from '../support/services.ts'
import { EFFECT_TABLE, writeEffect } from './consumer-effect.ts'
import { ScriptedBroker } from './consumer-scripted-broker.ts'

/** A consumer on a scripted broker and a database of its own. */
export interface Stage {
  readonly broker: ScriptedBroker
  readonly consumer: Consumer
  readonly database: TestDatabase
  readonly errors: Error[]
  readonly signals: Signals
  /** Resolves when the consumer has finished this many messages, one way or another. */
  readonly finished: (count: number) => Promise<void>
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
    const ended = consumer.stopped.then(() => {
      throw new Error(`the consumer stopped before ${count} messages were done: ${JSON.stringify(consumer.stats())}`)
    })
    ended.catch(() => {})
    while (!done()) await Promise.race([signals.next('consumer.done'), ended])
  }
  return { broker, consumer, database: own, errors, finished, signals }
}
