/**
 * TLS to PostgreSQL, Kafka and NATS: what is verified is used, through all of a relay; a certificate for another host,
 * one that has expired and one of an unknown authority are refused, and say so.
 */
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { Broker } from '../../src/brokers/broker.ts'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { platformatic } from '../../src/brokers/kafka/platformatic/index.ts'
import { nats } from '../../src/brokers/nats/index.ts'
import { createRelay, migrate } from '../../src/index.ts'
import { keyedMessages } from '../../src/testing/conformance/sample-message.ts'
import { startKafka, startNats, startPostgres } from '../../src/testing/services/index.ts'
import { freePort } from '../../src/testing/services/ports.ts'
import type { PrivateServer } from '../../src/testing/services/private-server.ts'
import { type Certificate, CertificateAuthority, certificateFiles } from '../support/certificates.ts'
import { trackLifecycle } from '../support/leaks.ts'
import { appendSql } from '../support/outbox-writer.ts'
import { recordingBroker } from '../support/recording-broker.ts'
import { describeWith } from '../support/services.ts'

/** What a server shows, beside a certificate that is good, and what its clients say of it. */
const REFUSED = {
  'for another host': { expired: false, host: 'elsewhere.example', text: /altname/i },
  'that has expired': { expired: true, host: 'localhost', text: /expired/i },
} as const
const GOOD = { expired: false, host: 'localhost' } as const
const UNKNOWN = /certificate/i

type Shown = keyof typeof REFUSED | 'good'

let authority: CertificateAuthority
let stranger: CertificateAuthority
beforeAll(async () => {
  ;[authority, stranger] = await Promise.all([CertificateAuthority.make(), CertificateAuthority.make()])
})

for (const version of [18, 15] as const) {
  describeWith(`private postgres${version}`, `TLS to PostgreSQL ${version}`, () => {
    let server: Awaited<ReturnType<typeof startPostgres>>
    beforeAll(async () => {
      server = await startPostgres({ version })
      await present('good')
    })
    afterAll(() => server.dispose())

    /** Gives the server a certificate; new connections see it. */
    const present = async (shown: Shown): Promise<void> => {
      const { cert, key } = await certificate(shown)
      const admin = new pg.Client(server.url)
      await admin.connect()
      for (const [file, text] of Object.entries({ 'server.crt': cert, 'server.key': key })) {
        // The folder is the server's own.
        await admin.query(
          `copy (select unnest(string_to_array('${text}', E'\\n'))) to program 'umask 077; cat > ${file}'`,
        )
      }
      await admin.query('alter system set ssl = on')
      await admin.query('select pg_reload_conf()')
      await admin.end()
    }
    const poolOf = (ca: string): pg.Pool => {
      const pool = new pg.Pool({
        connectionString: server.url.replace('127.0.0.1', 'localhost'),
        ssl: { ca },
      })
      pool.on('error', () => {})
      onTestFinished(() => pool.end())
      return pool
    }

    test('all connections of a relay that streams are encrypted, and it publishes', async () => {
      const pool = poolOf(authority.cert)
      await migrate(pool)
      const broker = recordingBroker()
      const relay = trackLifecycle('relay', createRelay({ broker, capture: 'replication', postgres: pool }))
      await relay.start()
      await appendSql(pool, 'k', 1)
      await broker.until(1)
      await expect.poll(() => relay.stats().capture).toBe('replication')
      await appendSql(pool, 'k', 2)
      await broker.until(2)
      const { rows } = await pool.query(
        `select a.application_name as name, s.ssl from pg_stat_ssl s join pg_stat_activity a using (pid)
         where a.application_name like 'millrace-relay-%' order by 1`,
      )
      expect(rows).toEqual(['reader', 'wal', 'writer'].map((name) => ({ name: `millrace-relay-${name}`, ssl: true })))
      await relay.stop()
    })

    test.each(Object.entries(REFUSED))('a certificate %s is refused', async (shown, { text }) => {
      await present(shown as Shown)
      onTestFinished(() => present('good'))
      const pool = poolOf(authority.cert)
      // A server that has not read it yet shows the old one.
      await expect.poll(() => pool.query('select 1').then(String, String)).toMatch(text)
    })

    test('a certificate of an unknown authority is refused', async () => {
      await expect(poolOf(stranger.cert).query('select 1')).rejects.toThrow(UNKNOWN)
    })
  })
}

describeWith('private nats', 'TLS to NATS', () => {
  brokerCases(async (shown, ca) => {
    const { certFile, keyFile, remove } = await certificateFiles(await certificate(shown))
    const server = await startNats({
      // What waits for its start speaks without TLS.
      settings: { allow_non_tls: true, tls: { cert_file: certFile, key_file: keyFile } },
    })
    onTestFinished(async () => {
      await server.dispose()
      await remove()
    })
    return nats({ servers: `tls://localhost:${server.port}`, tls: { ca } })
  })
})

describeWith('private kafka', 'TLS to Kafka', () => {
  let server: PrivateServer
  const ports = new Map<Shown, number>()

  // A listener for each certificate.
  beforeAll(async () => {
    const [port, controllerPort] = await Promise.all([freePort(), freePort()])
    const listeners = [`PLAINTEXT://127.0.0.1:${port}`]
    const protocols = ['PLAINTEXT:PLAINTEXT', 'CONTROLLER:PLAINTEXT']
    const properties: Record<string, string> = {}
    const oneLine = (pem: string): string => pem.trim().replaceAll('\n', String.raw`\n`)
    for (const [n, shown] of (['good', ...Object.keys(REFUSED)] as Shown[]).entries()) {
      const { cert, key } = await certificate(shown)
      const tlsPort = await freePort()
      ports.set(shown, tlsPort)
      listeners.push(`TLS${n}://localhost:${tlsPort}`)
      protocols.push(`TLS${n}:SSL`)
      properties[`listener.name.tls${n}.ssl.keystore.certificate.chain`] = oneLine(cert)
      properties[`listener.name.tls${n}.ssl.keystore.key`] = oneLine(key)
      properties[`listener.name.tls${n}.ssl.keystore.type`] = 'PEM'
    }
    server = await startKafka({
      port,
      properties: {
        ...properties,
        'advertised.listeners': listeners.join(),
        'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
        'listener.security.protocol.map': protocols.join(),
        listeners: [...listeners, `CONTROLLER://127.0.0.1:${controllerPort}`].join(),
      },
    })
  }, 120_000)
  afterAll(() => server.dispose())

  describe.each(Object.entries({ kafkajs, platformatic }))('by %s', (_, client) => {
    brokerCases(async (shown, ca) => client({ brokers: `localhost:${ports.get(shown)}`, ssl: { ca } }))
  })
})

/** What holds for a broker whose server shows the certificate, and whose client trusts the authority. */
function brokerCases(open: (shown: Shown, ca: string) => Promise<Broker>): void {
  const opened = async (shown: Shown, ca: CertificateAuthority) => {
    const broker = await open(shown, ca.cert)
    onTestFinished(() => broker.close())
    const publisher = broker.publisher()
    onTestFinished(() => publisher.close())
    return { broker, publisher }
  }

  test('a topic is made and written', async () => {
    const { broker, publisher } = await opened('good', authority)
    const topic = `topic-${randomUUID()}`
    await broker.admin.createTopic(topic, { partitions: 1 })
    await publisher.start()
    expect(await publisher.publish(keyedMessages(topic, ['k'], 3))).toEqual([])
  })

  test.each(Object.entries(REFUSED))('a certificate %s is refused', async (shown, { text }) => {
    const { publisher } = await opened(shown as Shown, authority)
    await expect(publisher.start()).rejects.toMatchObject({
      code: 'PUBLISH_FATAL',
      message: expect.stringMatching(text),
    })
  })

  test('a certificate of an unknown authority is refused', async () => {
    const { publisher } = await opened('good', stranger)
    await expect(publisher.start()).rejects.toMatchObject({
      code: 'PUBLISH_FATAL',
      message: expect.stringMatching(UNKNOWN),
    })
  })
}

function certificate(shown: Shown): Promise<Certificate> {
  const { expired, host } = shown === 'good' ? GOOD : REFUSED[shown]
  return authority.sign(host, { expired })
}
