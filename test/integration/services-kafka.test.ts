import { Kafka, logLevel, type Admin } from 'kafkajs'
import { expect, onTestFinished, test } from 'vitest'
import { startKafka } from '../../src/testing/services/index.ts'
import { describeWith, services } from '../support/services.ts'

async function connected(address: string): Promise<Admin> {
  const kafka = new Kafka({ brokers: address.split(','), clientId: 'services-test', logLevel: logLevel.NOTHING })
  const admin = kafka.admin()
  await admin.connect()
  onTestFinished(() => admin.disconnect())
  return admin
}

describeWith('kafka', 'Kafka of the run', () => {
  test('answers an admin client, and makes a topic at once', async () => {
    const admin = await connected(services().kafka as string)
    const topic = `services-${process.pid}-${Date.now()}`
    expect((await admin.describeCluster()).brokers.length).toBeGreaterThan(0)
    await admin.createTopics({ topics: [{ topic, numPartitions: 3 }], waitForLeaders: true })
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    expect(topics[0]?.partitions).toHaveLength(3)
    await admin.deleteTopics({ topics: [topic] })
  })
})

describeWith('private kafka', 'a private Kafka', () => {
  test('keeps its topics and its port over a restart and a SIGKILL', async () => {
    const server = await startKafka({ properties: { 'num.partitions': '5' } })
    onTestFinished(() => server.dispose())
    const { pid, port } = server
    const before = await connected(server.address)
    await before.createTopics({ topics: [{ topic: 'kept' }], waitForLeaders: true })
    await before.disconnect()
    await server.restart()
    await server.kill()
    await server.start()
    const after = await connected(server.address)
    const { topics } = await after.fetchTopicMetadata({ topics: ['kept'] })
    expect(topics[0]?.partitions).toHaveLength(5)
    expect(server.port).toBe(port)
    expect(server.pid).not.toBe(pid)
  })
})
