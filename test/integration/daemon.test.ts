import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Broker, IncomingMessage } from '../../src/brokers/broker.ts'
import {
  createMemoryBroker,
  memory,
  serveMemory,
  type MemoryBroker,
  type MemoryServer,
} from '../../src/brokers/memory/index.ts'
import { kafkajs } from '../../src/brokers/kafka/kafkajs/index.ts'
import { nats } from '../../src/brokers/nats/index.ts'
import { createTestDatabase, describeWith, services, type TestDatabase } from '../support/services.ts'
import { CliProcess, runCommand } from './cli-process.ts'

const RELAYING = { state: 'relaying' }

describeWith('postgres18', 'millrace relay, the daemon', () => {
  let host: MemoryBroker
  let server: MemoryServer

  beforeAll(async () => {
    host = createMemoryBroker({ autoCreateTopics: true, partitions: 1 })
    server = await serveMemory(host)
  })

  afterAll(async () => {
    await server.close()
  })

  describe('at work', () => {
    test('carries committed events and drains on SIGTERM and on SIGINT: exit 0, and the next one begins at once', async () => {
      const database = await createTestDatabase()
      const topic = database.name
      const reader = await read(host, topic)
      for (const signal of ['SIGTERM', 'SIGINT'] as const) {
        const relay = start(database, server)
        await relay.logged(RELAYING)
        await append(database, topic, 500)
        await reader.have(signal === 'SIGTERM' ? 500 : 1000)
        relay.signal(signal)
        const { code, err } = await relay.ended
        expect({ code, err }).toEqual({ code: 0, err: '' })
        expect(relay.log.at(-1)).toMatchObject({ event: 'drained', level: 'info' })
      }
      expect(reader.payloads()).toEqual(numbers(500).concat(numbers(500)))
      expect(reader.ids().size).toBe(1000)
      await reader.stop()
      await database.close()
    })

    test('is told by the environment alone, and says nothing below its level', async () => {
      const database = await createTestDatabase()
      const relay = new CliProcess(['relay'], {
        MILLRACE_BROKER: server.url,
        MILLRACE_CAPTURE: 'polling',
        MILLRACE_DATABASE_URL: database.url,
        MILLRACE_LOG_LEVEL: 'warn',
        MILLRACE_PAGE_SIZE: '10',
      })
      const reader = await read(host, database.name)
      await append(database, database.name, 25)
      await reader.have(25)
      relay.signal('SIGTERM')
      expect(await relay.ended).toMatchObject({ code: 0, err: '', out: '' })
      await reader.stop()
      await database.close()
    })

    test('names its connections, and neither its log nor its text shows the password', async () => {
      const database = await createTestDatabase()
      const url = new URL(database.url)
      url.password ||= 'not-so-secret-password'
      const relay = new CliProcess([
        'relay',
        '--database-url',
        url.href,
        '--broker',
        server.url,
        '--log-level',
        'debug',
      ])
      await relay.logged(RELAYING)
      const { rows } = await database.pool.query(
        "select count(*)::int as n from pg_stat_activity where application_name like 'millrace-relay%' and datname = $1",
        [database.name],
      )
      expect((rows[0] as { n: number }).n).toBeGreaterThan(0)
      relay.signal('SIGTERM')
      const { out, err } = await relay.ended
      expect(out + err).not.toContain(decodeURIComponent(url.password))
      await database.close()
    })

    test('goes on when whoever read its log is gone', async () => {
      const database = await createTestDatabase()
      const reader = await read(host, database.name)
      const relay = start(database, server, '--log-level', 'debug')
      await relay.logged(RELAYING)
      relay.closeOutput()
      await database.pool.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace-relay%' and datname = $1",
        [database.name],
      )
      await append(database, database.name, 10)
      await reader.haveIds(10)
      relay.signal('SIGTERM')
      expect((await relay.ended).code).toBe(0)
      await reader.stop()
      await database.close()
    })

    test('a lost database connection is survived, and nothing is lost by it', async () => {
      const database = await createTestDatabase()
      const reader = await read(host, database.name)
      const relay = start(database, server)
      await relay.logged(RELAYING)
      const seen = relay.log.length
      await append(database, database.name, 100)
      await database.pool.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace-relay%' and datname = $1",
        [database.name],
      )
      await relay.logged(RELAYING, seen)
      await append(database, database.name, 100)
      await reader.haveIds(200)
      relay.signal('SIGTERM')
      expect(await relay.ended).toMatchObject({ code: 0, err: '' })
      await reader.stop()
      await database.close()
    })
  })

  describe('two of them', () => {
    test('they divide the work; when one drains the others take its part, and nothing is published twice', async () => {
      const database = await createTestDatabase()
      const reader = await read(host, database.name)
      const first = start(database, server)
      await first.logged(RELAYING)
      const second = start(database, server)
      await second.logged(RELAYING)
      const third = start(database, server)
      await third.logged(RELAYING)
      third.signal('SIGTERM')
      expect((await third.ended).code).toBe(0)

      await append(database, database.name, 50)
      await reader.have(50)
      first.signal('SIGTERM')
      expect((await first.ended).code).toBe(0)
      await append(database, database.name, 50)
      await reader.have(100)
      expect(reader.ids().size).toBe(100)
      second.signal('SIGTERM')
      expect((await second.ended).code).toBe(0)
      await reader.stop()
      await database.close()
    })

    test('the second takes over when the first is killed, and no event is lost', async () => {
      const database = await createTestDatabase()
      const reader = await read(host, database.name)
      const first = start(database, server, '--lease-ttl-ms', '1000')
      await first.logged(RELAYING)
      const second = start(database, server, '--lease-ttl-ms', '1000')
      await second.logged(RELAYING)
      await append(database, database.name, 1000)
      await first.kill()
      await append(database, database.name, 100)
      await reader.haveIds(1100)
      second.signal('SIGTERM')
      expect((await second.ended).code).toBe(0)
      await reader.stop()
      await database.close()
    })
  })

  describe('the drain', () => {
    test('waits for what is in flight, moves the checkpoint past it, and gives the lease back', async () => {
      const own = await ownBroker()
      const database = await createTestDatabase()
      const reader = await read(own.host, database.name)
      const relay = start(database, own.server)
      await relay.logged(RELAYING)
      own.host.faults.next({ delayMs: 1500 })
      await append(database, database.name, 10)
      await until(() => own.host.faults.pending === 0)
      expect(await leases(database)).toBeGreaterThan(0)
      relay.signal('SIGTERM')
      expect((await relay.ended).code).toBe(0)
      expect(await leases(database)).toBe(0)
      await reader.have(10)

      const next = start(database, own.server)
      await next.logged(RELAYING)
      await append(database, database.name, 1)
      await reader.have(11)
      next.signal('SIGTERM')
      await next.ended
      expect(reader.ids().size).toBe(11)
      expect(reader.payloads()).toHaveLength(11)
      await reader.stop()
      await own.server.close()
      await database.close()
    })

    test('is bounded: what does not settle in time is exit 1, and is sent again by the next one', async () => {
      const own = await ownBroker()
      const database = await createTestDatabase()
      const relay = start(database, own.server, '--shutdown-timeout-ms', '1000')
      await relay.logged(RELAYING)
      own.host.faults.next({ delayMs: 8000 })
      await append(database, database.name, 10)
      await until(() => own.host.faults.pending === 0)
      const began = performance.now()
      relay.signal('SIGTERM')
      expect((await relay.ended).code).toBe(1)
      expect(performance.now() - began).toBeLessThan(7000)
      expect(relay.log.some(({ level, message }) => level === 'error' && /drain/.test(String(message)))).toBe(true)

      const reader = await read(own.host, database.name)
      const next = start(database, own.server)
      await reader.haveIds(10)
      next.signal('SIGTERM')
      expect((await next.ended).code).toBe(0)
      await reader.stop()
      await own.server.close()
      await database.close()
    })

    test.each([
      ['SIGTERM', 143],
      ['SIGINT', 130],
    ] as const)('a second signal, %s, cuts it short: exit %i', async (signal, code) => {
      const own = await ownBroker()
      const database = await createTestDatabase()
      const relay = start(database, own.server)
      await relay.logged(RELAYING)
      own.host.faults.next({ delayMs: 8000 })
      await append(database, database.name, 10)
      await until(() => own.host.faults.pending === 0)
      relay.signal('SIGTERM')
      await relay.logged({ message: 'draining' })
      relay.signal(signal)
      expect((await relay.ended).code).toBe(code)
      await own.server.close()
      await database.close()
    })
  })

  describe('what it cannot do', () => {
    test('a relay that ends by itself is exit 1, with the reason in the log', async () => {
      const own = await ownBroker()
      const database = await createTestDatabase()
      const relay = start(database, own.server)
      await relay.logged(RELAYING)
      own.host.faults.next({ refuse: 'fatal' })
      await append(database, database.name, 1)
      expect((await relay.ended).code).toBe(1)
      const last = relay.log.find(({ message }) => message === 'the relay ended by itself')
      expect(last).toMatchObject({ level: 'error', error: { code: 'PUBLISH_FATAL' } })
      await own.server.close()
      await database.close()
    })

    test('a database without the schema is exit 1, with the command that makes it', async () => {
      const database = await createTestDatabase({ migrate: false })
      const { code, err } = await runCommand(['relay', '--database-url', database.url, '--broker', server.url])
      expect(err).toContain('npx millrace migrate --database-url')
      expect(code).toBe(1)
      await database.close()
    })

    test('a database that is not there, or does not exist, is exit 1 and clear', async () => {
      const nobody = 'postgres://joe:s3cret@127.0.0.1:1/none'
      const refused = await runCommand(['relay', '--database-url', nobody, '--broker', server.url])
      expect(refused.code).toBe(1)
      expect(refused.err).toContain('ECONNREFUSED 127.0.0.1:1')
      expect(refused.out + refused.err).not.toContain('s3cret')

      const database = await createTestDatabase()
      const url = new URL(database.url)
      url.pathname = '/not_there'
      const missing = await runCommand(['relay', '--database-url', url.href, '--broker', server.url])
      expect(missing.code).toBe(1)
      expect(missing.err).toContain('"not_there" does not exist')
      await database.close()
    })

    test.each(['memory://127.0.0.1:1', 'nats://127.0.0.1:1', 'kafka://127.0.0.1:1'])(
      'a broker that is not there, %s, is exit 1 and named',
      async (broker) => {
        const database = await createTestDatabase()
        const { code, err } = await runCommand(['relay', '--database-url', database.url, '--broker', broker])
        expect(err).toContain('127.0.0.1:1')
        expect(err).toContain('BROKER_UNREACHABLE')
        expect(code).toBe(1)
        await database.close()
      },
    )

    test('all that is wrong with the command line comes at once: exit 2, or 78 when only values are wrong', async () => {
      const usage = await runCommand(['relay', '--brokr', 'x', '--page-size', '0'])
      expect(usage.code).toBe(2)
      for (const part of ['--broker, if that', '--page-size: got', '--database-url: got nothing']) {
        expect(usage.err).toContain(part)
      }
      const values = await runCommand(['relay'], {
        DATABASE_URL: 'x',
        MILLRACE_BROKER: 'ftp://x',
        MILLRACE_CAPTURE: 'y',
      })
      expect(values.code).toBe(78)
      for (const name of ['DATABASE_URL', 'MILLRACE_BROKER', 'MILLRACE_CAPTURE']) expect(values.err).toContain(name)
    })
  })
})

describe.each(['kafka', 'nats'] as const)('to %s', (name) => {
  describeWith(['postgres18', name], 'millrace relay, with the URL of a real broker', () => {
    test('events arrive once and in order, and the drain is clean', async () => {
      const database = await createTestDatabase()
      const address = services()[name] as string
      const broker = name === 'kafka' ? kafkajs({ brokers: address.split(',') }) : nats({ servers: address.split(',') })
      const reader = await readFrom(broker, database.name)
      const url = `${name}://${address}`
      const relay = new CliProcess(['relay', '--database-url', database.url, '--broker', url])
      await relay.logged(RELAYING)
      await append(database, database.name, 2000)
      await reader.have(2000)
      relay.signal('SIGTERM')
      expect(await relay.ended).toMatchObject({ code: 0, err: '' })
      expect(reader.payloads()).toEqual(numbers(2000))
      await broker.admin.deleteTopic(database.name)
      await reader.stop()
      await database.close()
    })
  })
})

function start(database: TestDatabase, server: MemoryServer, ...more: readonly string[]): CliProcess {
  return new CliProcess([
    'relay',
    '--database-url',
    database.url,
    '--broker',
    server.url,
    '--capture',
    'polling',
    ...more,
  ])
}

async function ownBroker(): Promise<{ readonly host: MemoryBroker; readonly server: MemoryServer }> {
  const host = createMemoryBroker({ autoCreateTopics: true, partitions: 1 })
  return { host, server: await serveMemory(host) }
}

/** Appends `count` events of one key, `0` to `count - 1`, in one transaction of plain SQL. */
async function append(database: TestDatabase, topic: string, count: number): Promise<void> {
  await database.pool.query(
    `select outbox.append($1, 'k', 'test.number', convert_to(n::text, 'UTF8'), '{}')
       from (select n from generate_series(0, $2::int - 1) n order by n) numbers`,
    [topic, count],
  )
}

/** How many shards somebody owns. */
async function leases(database: TestDatabase): Promise<number> {
  const { rows } = await database.pool.query('select count(holder)::int as held from outbox.lease')
  return (rows[0] as { held: number }).held
}

function numbers(count: number): readonly string[] {
  return Array.from({ length: count }, (_, n) => String(n))
}

function read(host: MemoryBroker, topic: string): Promise<Reader> {
  return readFrom(memory({ host }), topic)
}

interface Reader {
  /** Resolves when this many messages were read. */
  have(count: number): Promise<void>
  /** Resolves when this many different messages were read. */
  haveIds(count: number): Promise<void>
  ids(): ReadonlySet<string>
  payloads(): readonly string[]
  stop(): Promise<void>
}

async function readFrom(broker: Broker, topic: string): Promise<Reader> {
  const messages: IncomingMessage[] = []
  const waiting = new Set<() => void>()
  await broker.admin.createTopic(topic, { partitions: 1 })
  const subscription = broker.subscription({
    group: `${topic}-reader`,
    onAssigned: () => undefined,
    onError: () => undefined,
    onLost: () => undefined,
    onMessages(_, batch) {
      messages.push(...batch)
      for (const wake of waiting) wake()
      waiting.clear()
    },
    onRevoking: () => Promise.resolve(),
    topics: [topic],
  })
  await subscription.start()
  const ids = (): ReadonlySet<string> => new Set(messages.map(({ id }) => id))
  const when = async (reached: () => boolean): Promise<void> => {
    while (!reached()) await new Promise<void>((resolve) => waiting.add(resolve))
  }
  return {
    have: (count) => when(() => messages.length >= count),
    haveIds: (count) => when(() => ids().size >= count),
    ids,
    payloads: () => messages.map(({ payload }) => String(payload)),
    async stop() {
      await subscription.stop()
      await broker.close()
    },
  }
}

/** For what tells nobody: looks again until it holds. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5))
}
