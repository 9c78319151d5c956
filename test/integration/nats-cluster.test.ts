import { expect, onTestFinished, test } from 'vitest'
import type { Broker } from '../../src/brokers/broker.ts'
import { systemClock } from '../../src/core/clock.ts'
import { keyedMessages, sampleKeys } from '../../src/testing/conformance/sample-message.ts'
import { startNats } from '../../src/testing/services/index.ts'
import { freePort } from '../../src/testing/services/ports.ts'
import { describeWith } from '../support/services.ts'
import { expectInOrder, NatsStage, publishAll } from './nats-stage.ts'

describeWith('private nats', 'publishing to a replicated stream', () => {
  test.each(['ack', 'fsync'] as const)(
    'one of three servers is killed: every key is once and in order, and no message names the one before it (durability %s)',
    async (durability) => {
      const cluster = await startCluster()
      const addresses = cluster.map(({ address }) => address)
      const stage = new NatsStage(addresses[0] as string)
      const options = { durability, servers: addresses, stream: { replicas: 3 } }
      const broker = stage.broker(options)
      await makeTopic(broker, stage.topic)
      const publisher = broker.publisher({ timeoutMs: 2000 })
      await publisher.start()
      onTestFinished(() => publisher.close())
      const messages = keyedMessages(stage.topic, sampleKeys(10), 6000)
      for (let i = 0; i < 6000; i += 500) {
        const publishing = publishAll(publisher, messages.slice(i, i + 500))
        if (i === 3000) await cluster[2]?.kill()
        await publishing
      }
      await cluster[2]?.start()
      const { last, stored } = await readWhenWell(stage)
      expect(last?.header.has('Nats-Expected-Last-Msg-Id')).toBe(false)
      expect(last?.header.has('Nats-Batch-Id')).toBe(durability === 'fsync')
      expect(stored).toHaveLength(6000)
      expectInOrder(stored, 600)
    },
    120_000,
  )
})

/** A cluster that lost a server needs some time until it answers everybody again. */
async function readWhenWell(stage: NatsStage) {
  for (const until = systemClock.monotonic() + 60_000; ;) {
    try {
      const { manager } = await stage.plain()
      const last = await manager.streams.getMessage(stage.topic, { last_by_subj: stage.topic })
      return { last, stored: await stage.stored() }
    } catch (error) {
      if (systemClock.monotonic() > until) throw error
      await new Promise((resolve) => systemClock.setTimer(() => resolve(undefined), 200))
    }
  }
}

async function startCluster() {
  const routes = await Promise.all([freePort(), freePort(), freePort()])
  return Promise.all(
    routes.map(async (port, at) => {
      const server = await startNats({
        settings: {
          cluster: {
            listen: `127.0.0.1:${port}`,
            name: 'three',
            routes: routes.map((route) => `nats://127.0.0.1:${route}`),
          },
          server_name: `server-${at}`,
        },
      })
      onTestFinished(() => server.dispose())
      return server
    }),
  )
}

/** Tries until the cluster has a leader for its streams. */
async function makeTopic(broker: Broker, topic: string): Promise<void> {
  for (;;) {
    try {
      await broker.admin.createTopic(topic)
      return
    } catch {
      await new Promise((resolve) => systemClock.setTimer(() => resolve(undefined), 200))
    }
  }
}
