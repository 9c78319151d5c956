import { Kafka, logLevel } from 'kafkajs'
import { expect, onTestFinished, test } from 'vitest'
import { startKafkaCluster } from '../../src/testing/services/index.ts'
import { track } from '../support/leaks.ts'
import { describeWith } from '../support/services.ts'

describeWith('private kafka', 'a private Kafka cluster', () => {
  test(
    'has three replicas, another leader when one is killed, and takes the node back',
    { timeout: 120_000 },
    async () => {
      const cluster = await startKafkaCluster({ settings: { 'num.partitions': '2' } })
      const release = track('a Kafka cluster', () => cluster.dispose())
      onTestFinished(async () => {
        await cluster.dispose()
        release()
      })
      const admin = new Kafka({ brokers: [...cluster.brokers], logLevel: logLevel.NOTHING }).admin()
      await admin.connect()
      onTestFinished(() => admin.disconnect())
      await admin.createTopics({ topics: [{ topic: 'kept' }], waitForLeaders: false })
      expect((await cluster.inSync('kept', 0)).inSync.toSorted((a, b) => a - b)).toEqual([1, 2, 3])
      const { configEntries } = (
        await admin.describeConfigs({ includeSynonyms: false, resources: [{ name: 'kept', type: 2 }] })
      ).resources[0] as { configEntries: { configName: string; configValue: string }[] }
      expect(configEntries.find((one) => one.configName === 'min.insync.replicas')?.configValue).toBe('2')

      const leader = await cluster.leaderOf('kept', 0)
      await leader.kill()
      await cluster.whole()
      const next = await cluster.leaderOf('kept', 0)
      expect(next.id).not.toBe(leader.id)
      await leader.start()
      await cluster.whole()
      await cluster.inSync('kept', 0)
      await next.restart()
      await cluster.whole()
      await cluster.inSync('kept', 1)
    },
  )
})
