import { expect, test } from 'vitest'
import type { Broker, PublisherOptions } from '../../src/brokers/broker.ts'
import { createRelay } from '../../src/outbox-relay/relay.ts'
import { silentLogger } from '../../src/core/logger.ts'

test('events sent again past the duplicate window are counted, and told at error level with their ids', async () => {
  let given: PublisherOptions | undefined
  const publisher = { close: async () => {}, publish: async () => [], start: async () => {} }
  const broker = {
    publisher: (options?: PublisherOptions) => {
      given = options
      return publisher
    },
    system: 'nats',
  } as unknown as Broker
  const errors: [fields: object, text: string][] = []
  const logger = { ...silentLogger, error: (fields: object, text: string) => void errors.push([fields, text]) }
  const relay = createRelay({ broker, logger, postgres: { connect: () => {} } as never })
  given?.onLateRetry?.({ count: 2, ids: ['x', 'y'], oldestMs: 130_000.4, topic: 'orders', windowMs: 120_000 })
  given?.onLateRetry?.({ count: 1, ids: ['z'], oldestMs: 130_000, topic: 'orders', windowMs: 120_000 })
  expect(relay.stats().lateRetries).toBe(3)
  expect(errors).toHaveLength(2)
  expect(errors[0]?.[0]).toMatchObject({ count: 2, ids: ['x', 'y'], oldestMs: 130_000, topic: 'orders' })
  expect(errors[0]?.[1]).toContain('duplicate_window')
  await relay.stop()
})
