import { pbkdf2Sync, randomBytes, randomUUID } from 'node:crypto'
import * as module from '@platformatic/kafka'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import type { Broker } from '../../src/brokers/broker.ts'
import type { KafkaSasl } from '../../src/brokers/kafka/kafka-options.ts'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { delay, systemClock } from '../../src/core/clock.ts'
import { RecordingReader } from '../../src/testing/conformance/recording-reader.ts'
import { keyedMessages } from '../../src/testing/conformance/sample-message.ts'
import { startKafka } from '../../src/testing/services/index.ts'
import { freePort } from '../../src/testing/services/ports.ts'
import type { PrivateServer } from '../../src/testing/services/private-server.ts'
import { describeWith } from '../support/services.ts'

const USER = 'relay'
const PASSWORD = 'a pass, "word"'
/** How long the broker takes a login by SCRAM-SHA-512 for good. kafkajs logs in again when ten seconds are left. */
const REAUTH_MS = 12_000
const MECHANISMS = ['plain', 'scram-sha-256', 'scram-sha-512'] as const
const BROKERS = { kafkajs, platformatic }

describeWith('private kafka', 'a Kafka that asks who we are', () => {
  let address: string
  let kafka: PrivateServer

  beforeAll(async () => {
    const [port, controllerPort, saslPort] = await Promise.all([freePort(), freePort(), freePort()])
    const login = 'org.apache.kafka.common.security'
    const escaped = PASSWORD.replaceAll('"', String.raw`\\"`)
    address = `127.0.0.1:${saslPort}`
    kafka = await startKafka({
      port,
      properties: {
        'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
        'listener.name.login.scram-sha-512.connections.max.reauth.ms': String(REAUTH_MS),
        'listener.name.login.plain.sasl.jaas.config': `${login}.plain.PlainLoginModule required user_${USER}="${escaped}";`,
        'listener.name.login.sasl.enabled.mechanisms': 'PLAIN,SCRAM-SHA-256,SCRAM-SHA-512',
        'listener.name.login.scram-sha-256.sasl.jaas.config': `${login}.scram.ScramLoginModule required;`,
        'listener.name.login.scram-sha-512.sasl.jaas.config': `${login}.scram.ScramLoginModule required;`,
        'listener.security.protocol.map': 'PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT',
        listeners: `PLAINTEXT://127.0.0.1:${port},LOGIN://${address},CONTROLLER://127.0.0.1:${controllerPort}`,
      },
    })
    await giveCredentials(port)
  }, 120_000)
  afterAll(() => kafka.dispose())

  const open = (client: keyof typeof BROKERS, sasl: KafkaSasl): Broker => {
    const broker = BROKERS[client]({ brokers: [address], sasl })
    onTestFinished(() => broker.close())
    return broker
  }

  test.each(Object.keys(BROKERS).flatMap((client) => MECHANISMS.map((mechanism) => [client, mechanism] as const)))(
    '%s proves it by %s: a topic is made, written and read; a wrong password is fatal at once',
    async (client, mechanism) => {
      const name = client as keyof typeof BROKERS
      const broker = open(name, { mechanism, password: PASSWORD, username: USER })
      const topic = `topic-${randomUUID()}`
      await broker.admin.createTopic(topic, { partitions: 2 })
      const publisher = broker.publisher()
      await publisher.start()
      onTestFinished(() => publisher.close())
      const messages = keyedMessages(topic, ['a', 'b', 'c'], 30)
      expect(await publisher.publish(messages)).toEqual([])
      const group = `group-${randomUUID()}`
      const reader = new RecordingReader(broker, systemClock, 30_000, 6000, { group, topics: [topic] })
      onTestFinished(() => reader.subscription.stop())
      await reader.subscription.start()
      await reader.count(30)
      expect(reader.received.map((one) => one.id).toSorted()).toEqual(messages.map((one) => one.id).toSorted())

      const stranger = open(name, { mechanism, password: 'wrong', username: USER }).publisher({ timeoutMs: 20_000 })
      const started = performance.now()
      await expect(stranger.start()).rejects.toMatchObject({ code: 'PUBLISH_FATAL' })
      expect(performance.now() - started).toBeLessThan(15_000)
    },
    90_000,
  )

  test.each(['kafkajs', 'platformatic'] as const)(
    '%s proves it again before the broker asks: nothing is unknown, nothing is lost',
    async (name) => {
      const broker = open(name, { mechanism: 'scram-sha-512', password: PASSWORD, username: USER })
      const topic = `topic-${randomUUID()}`
      await broker.admin.createTopic(topic, { partitions: 2 })
      const publisher = broker.publisher()
      await publisher.start()
      onTestFinished(() => publisher.close())
      const group = `group-${randomUUID()}`
      const reader = new RecordingReader(broker, systemClock, 30_000, 6000, { group, topics: [topic] })
      onTestFinished(() => reader.subscription.stop())
      await reader.subscription.start()
      const sent: string[] = []
      for (const until = performance.now() + 1.2 * REAUTH_MS; performance.now() < until;) {
        const page = keyedMessages(topic, ['a', 'b', 'c'], 30)
        sent.push(...page.map((one) => one.id))
        expect(await publisher.publish(page)).toEqual([])
        await delay(systemClock, 50)
      }
      await reader.count(sent.length)
      expect(reader.received.map((one) => one.id).toSorted()).toEqual(sent.toSorted())
      expect(reader.violations).toEqual([])
    },
    90_000,
  )
})

/** The broker keeps SCRAM credentials like topics; until it has seen them nobody is let in. */
async function giveCredentials(port: number): Promise<void> {
  const connection = new module.Connection('test', { connectTimeout: 10_000, requestTimeout: 10_000 })
  // What fails on it is told by the request.
  connection.on('error', () => {})
  await connection.connect('127.0.0.1', port)
  // One credential of a user in a request.
  for (const [mechanism, digest, bytes] of [
    [1, 'sha256', 32],
    [2, 'sha512', 64],
  ] as const) {
    const salt = randomBytes(16)
    const saltedPassword = pbkdf2Sync(PASSWORD, salt, 4096, bytes, digest)
    const credential = { iterations: 4096, mechanism, name: USER, salt, saltedPassword }
    await module.alterUserScramCredentialsV0.api.async(connection, [], [credential])
  }
  for (;;) {
    const { results } = await module.describeUserScramCredentialsV0.api.async(connection, [{ name: USER }])
    if (results[0]?.credentialInfos.length === 2) break
  }
  await connection.close()
}
