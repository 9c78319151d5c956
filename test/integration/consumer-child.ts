/**
 * A consumer in a process of its own, for tests that kill it. The only argument is a {@link ChildPlan} as JSON. It kills
 * itself by SIGKILL right after its `dieAfter`-th effect transaction committed, before the broker can hear of it.
 */
import pg from 'pg'
import type { Broker } from '../../src/brokers/broker.ts'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { memory } from '../../src/brokers/memory/index.ts'
import { nats } from '../../src/brokers/nats/index.ts'
import { createConsumer } from '../../src/consumer/index.ts'
import { Signals } from '../../src/core/signals.ts'
import { writeEffect } from './consumer-effect.ts'

/** What the child does. */
export interface ChildPlan {
  readonly address: string
  readonly broker: 'kafka' | 'memory' | 'nats' | 'platformatic'
  readonly databaseUrl: string
  readonly dieAfter: number
  readonly group: string
  readonly sessionTimeoutMs: number
  readonly topic: string
}

/** A client of one of the real brokers, or of a memory broker that another process serves. */
export function brokerAt(kind: ChildPlan['broker'], address: string): Broker {
  switch (kind) {
    case 'kafka':
      return kafkajs({ brokers: address.split(',') })
    case 'memory':
      return memory({ url: address })
    case 'nats':
      return nats({ servers: address })
    case 'platformatic':
      return platformatic({ brokers: address.split(',') })
  }
}

if (import.meta.main) {
  const plan = JSON.parse(process.argv[2] ?? '{}') as ChildPlan
  const signals = new Signals()
  let commits = 0
  signals.on('consumer.committed', () => {
    if (++commits === plan.dieAfter) process.kill(process.pid, 'SIGKILL')
  })
  const pool = new pg.Pool({ connectionString: plan.databaseUrl })
  pool.on('error', () => {})
  const consumer = createConsumer({
    broker: brokerAt(plan.broker, plan.address),
    commitIntervalMs: 50,
    group: plan.group,
    groupSize: 16,
    handle: (message, { tx }) => writeEffect(message, tx),
    inbox: { postgres: pool },
    sessionTimeoutMs: plan.sessionTimeoutMs,
    signals,
    topics: [plan.topic],
  })
  await consumer.start()
  await consumer.stopped
}
