/**
 * Services in containers, through testcontainers, which is loaded only when an engine answers. The published port is a
 * fixed one, so that Kafka can advertise it; a published port accepts connections before the server does, so the
 * server itself is asked.
 */
import { homedir } from 'node:os'
import { join } from 'node:path'
import { delay, systemClock, withDeadline } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { converse, type Peer } from './conversation.ts'
import { KAFKA_DEFAULTS } from './kafka-properties.ts'
import { askKafka } from './kafka-protocol.ts'
import { askNats } from './nats.ts'
import { freePort } from './ports.ts'
import { askPostgres } from './postgres-protocol.ts'
import type { Provided, ServiceName, Way } from './resolver.ts'

const ENGINE_TIMEOUT_MS = 400
const IMAGE_TIMEOUT_MS = 120_000
const START_TIMEOUT_MS = 60_000

interface ContainerPlan {
  readonly address: (port: number) => string
  readonly command?: readonly string[]
  readonly environment: (port: number) => Record<string, string>
  readonly image: string
  readonly internalPort: number
  readonly log: RegExp
  readonly logTimes?: number
  readonly probe: (port: number) => Promise<string | undefined>
}

const PLANS: Readonly<Record<ServiceName, ContainerPlan>> = {
  kafka: {
    address: (port) => `127.0.0.1:${port}`,
    environment: kafkaEnvironment,
    image: 'apache/kafka:4.3.0',
    internalPort: 9092,
    log: /Kafka Server started/,
    probe: (port) => askKafka({ port }),
  },
  nats: {
    address: (port) => `127.0.0.1:${port}`,
    command: ['--jetstream', '--store_dir', '/tmp/streams'],
    environment: () => ({}),
    image: 'nats:2.12-alpine',
    internalPort: 4222,
    log: /Server is ready/,
    probe: (port) => askNats({ port }),
  },
  postgres15: postgresPlan('postgres:15-alpine'),
  postgres18: postgresPlan('postgres:18-alpine'),
}

function postgresPlan(image: string): ContainerPlan {
  const settings = ['max_connections=200', 'max_replication_slots=64', 'max_wal_senders=64', 'wal_level=logical']
  return {
    address: (port) => `postgres://postgres@127.0.0.1:${port}/postgres`,
    command: ['postgres', ...settings.flatMap((setting) => ['-c', setting])],
    environment: () => ({ POSTGRES_HOST_AUTH_METHOD: 'trust' }),
    image,
    internalPort: 5432,
    // The first time is the server that runs the image's own set-up.
    log: /database system is ready to accept connections/,
    logTimes: 2,
    probe: askPostgres,
  }
}

function kafkaEnvironment(port: number): Record<string, string> {
  const properties = {
    ...KAFKA_DEFAULTS,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${port}`,
    'controller.quorum.voters': '1@localhost:9093',
    'listener.security.protocol.map': 'CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT',
    listeners: 'PLAINTEXT://:9092,CONTROLLER://:9093',
    'log.dirs': '/tmp/kafka-data',
  }
  const entries = Object.entries(properties)
  return Object.fromEntries(entries.map(([name, value]) => [`KAFKA_${name.toUpperCase().replaceAll('.', '_')}`, value]))
}

/** The way of a service in a container. */
export function dockerWay(service: ServiceName, env: NodeJS.ProcessEnv): Way {
  return { name: 'docker', provide: () => startContainer(PLANS[service], env) }
}

/** Whether an engine answers at one of the places where testcontainers looks for it. */
export async function engineAnswers(env: NodeJS.ProcessEnv): Promise<boolean> {
  const request = Buffer.from('GET /_ping HTTP/1.0\r\n\r\n')
  const isHttp = (heard: Buffer): true | undefined => (heard.toString('latin1', 0, 5) === 'HTTP/' ? true : undefined)
  const asked = enginePeers(env).map((peer) => converse(peer, request, isHttp, ENGINE_TIMEOUT_MS))
  return (await Promise.all(asked)).includes(true)
}

function enginePeers(env: NodeJS.ProcessEnv): Peer[] {
  const given = env.DOCKER_HOST
  if (given?.startsWith('unix://')) return [{ path: given.slice('unix://'.length) }]
  if (given !== undefined && given !== '') {
    const url = URL.parse(given)
    return url === null ? [] : [{ host: url.hostname, port: Number(url.port === '' ? 2375 : url.port) }]
  }
  const folders = [...(env.XDG_RUNTIME_DIR ? [env.XDG_RUNTIME_DIR] : []), join(homedir(), '.docker', 'run')]
  return ['/var/run/docker.sock', ...folders.map((folder) => join(folder, 'docker.sock'))].map((path) => ({ path }))
}

async function startContainer(plan: ContainerPlan, env: NodeJS.ProcessEnv): Promise<Provided> {
  if (!(await engineAnswers(env))) throw new MillraceError('SERVICE_UNAVAILABLE', 'no engine answers')
  // Without it, a stray /.dockerenv makes testcontainers believe that it runs in a container itself.
  process.env.TESTCONTAINERS_HOST_OVERRIDE ??= '127.0.0.1'
  const { GenericContainer, ImageName, Wait, getContainerRuntimeClient } = await import('testcontainers')
  const client = await getContainerRuntimeClient()
  const image = ImageName.fromString(plan.image)
  if (!(await client.image.exists(image))) {
    await withDeadline(systemClock, client.image.pull(image), IMAGE_TIMEOUT_MS, () =>
      tooLate(plan, 'did not arrive', IMAGE_TIMEOUT_MS),
    )
  }
  const port = await freePort()
  const container = await new GenericContainer(plan.image)
    .withCommand([...(plan.command ?? [])])
    .withEnvironment(plan.environment(port))
    .withExposedPorts({ container: plan.internalPort, host: port })
    .withWaitStrategy(Wait.forLogMessage(plan.log, plan.logTimes ?? 1))
    .withStartupTimeout(START_TIMEOUT_MS)
    .start()
  const stop = async (): Promise<void> => {
    await container.stop({ timeout: 0 })
  }
  try {
    const version = await untilReady(plan, port)
    return { address: plan.address(port), detail: `${plan.image} (${version}) on port ${port}`, stop }
  } catch (error) {
    await stop()
    throw error
  }
}

async function untilReady(plan: ContainerPlan, port: number): Promise<string> {
  const end = systemClock.monotonic() + START_TIMEOUT_MS
  while (systemClock.monotonic() < end) {
    const answer = await plan.probe(port)
    if (answer !== undefined) return answer
    await delay(systemClock, 50)
  }
  throw tooLate(plan, 'did not answer', START_TIMEOUT_MS)
}

function tooLate(plan: ContainerPlan, what: string, afterMs: number): MillraceError {
  return new MillraceError('SERVICE_START_FAILED', `${plan.image} ${what} within ${afterMs / 1_000} s`)
}
