/** A private Kafka cluster, for tests in which one of its nodes dies. */
import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { delay, systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { findKafka, formatData, type KafkaPrograms } from './kafka-programs.ts'
import { KAFKA_CLUSTER_DEFAULTS, kafkaProperties } from './kafka-properties.ts'
import { brokersOf, partitionState, type PartitionState } from './kafka-protocol.ts'
import { freePort } from './ports.ts'
import { PrivateServer } from './private-server.ts'

/** How a private cluster is made. */
export interface KafkaClusterOptions {
  /** How many nodes, each broker and controller in one; each takes about 150 MiB idle. Default: 3. */
  readonly nodes?: number
  /** More lines for every server.properties; they win over the defaults here. Default: none. */
  readonly settings?: Readonly<Record<string, string>>
  /** How long a node may take until it is in its cluster, milliseconds; busy cores make it slow. Default: 120000. */
  readonly startTimeoutMs?: number
  /** How long a node may take to stop before it is killed, milliseconds. Default: 20000. */
  readonly stopTimeoutMs?: number
}

/** One node of a cluster: killed, stopped and started by itself. */
export type KafkaClusterNode = PrivateServer & {
  /** Its `node.id`, from 1. */
  readonly id: number
}

const POLL_MS = 50
const PATIENCE_MS = 60_000

/**
 * Starts a private Apache Kafka of several nodes on 127.0.0.1: replication factor 3, `min.insync.replicas` 2, and a dead
 * node noticed within two seconds. It ends with this process, whatever ends this process.
 *
 * @example
 * const cluster = await startKafkaCluster()
 * const leader = await cluster.leaderOf('orders', 0)
 * await leader.kill()
 */
export async function startKafkaCluster(options: KafkaClusterOptions = {}): Promise<KafkaCluster> {
  const programs = await findKafka()
  const ids = Array.from({ length: options.nodes ?? 3 }, (_, i) => i + 1)
  const ports: { readonly controllerPort: number; readonly id: number; readonly port: number }[] = []
  for (const id of ids) ports.push({ controllerPort: await freePort(), id, port: await freePort() })
  const voters = ports.map(({ controllerPort, id }) => `${id}@127.0.0.1:${controllerPort}`).join(',')
  const replicas = String(Math.min(3, ids.length))
  const settings = {
    ...KAFKA_CLUSTER_DEFAULTS,
    ...(ids.length < 3 ? fewer(replicas) : {}),
    ...options.settings,
    'controller.quorum.voters': voters,
  }
  // Together, for none of them is ready before a majority is.
  const started = await Promise.allSettled(ports.map((one) => startNode(programs, { ...one, settings }, options)))
  const nodes = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  const cluster = new KafkaCluster(nodes)
  try {
    for (const one of started) if (one.status === 'rejected') throw one.reason
    await cluster.whole()
  } catch (error) {
    await cluster.dispose()
    throw error
  }
  return cluster
}

/** A private cluster. Made by {@link startKafkaCluster}. */
export class KafkaCluster implements AsyncDisposable {
  /** Where clients connect: every node, `host:port`. */
  readonly brokers: readonly string[]
  readonly nodes: readonly KafkaClusterNode[]
  /** The address as the command line takes it. */
  readonly url: string

  /** @internal */
  constructor(nodes: readonly KafkaClusterNode[]) {
    this.nodes = nodes
    this.brokers = nodes.map((one) => one.address)
    this.url = `kafka://${this.brokers.join(',')}`
  }

  /** The node that leads the partition, as soon as there is one that runs. */
  async leaderOf(topic: string, partition: number): Promise<KafkaClusterNode> {
    return this.#until(`partition ${topic}/${partition} has a leader`, async (node) => {
      const state = await partitionState({ port: node.port }, topic, partition)
      return this.nodes.find((one) => one.id === state?.leader && one.running)
    })
  }

  /** Resolves when as many replicas of the partition are in sync, by default all. */
  async inSync(topic: string, partition: number, count: number = this.nodes.length): Promise<PartitionState> {
    return this.#until(`partition ${topic}/${partition} has ${count} replicas in sync`, async (node) => {
      const state = await partitionState({ port: node.port }, topic, partition)
      return state !== undefined && state.inSync.length >= count ? state : undefined
    })
  }

  /** Resolves when every running node knows every running node, and no other. */
  async whole(): Promise<void> {
    const expected = this.#running().map((one) => one.id)
    for (const node of this.#running()) {
      await this.#until(`node ${node.id} knows the others`, async () => {
        const known = await brokersOf({ port: node.port })
        return known !== undefined && known.toSorted((a, b) => a - b).join() === expected.join() ? true : undefined
      })
    }
  }

  /** Kills every node and removes their folders. */
  async dispose(): Promise<void> {
    await Promise.all(this.nodes.map((one) => one.dispose()))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  #running(): KafkaClusterNode[] {
    return this.nodes.filter((one) => one.running)
  }

  /** Asks the running nodes in turn until one has an answer. */
  async #until<T>(what: string, look: (node: KafkaClusterNode) => Promise<T | undefined>): Promise<T> {
    const end = systemClock.monotonic() + PATIENCE_MS
    do {
      for (const node of this.#running()) {
        const found = await look(node)
        if (found !== undefined) return found
      }
      await delay(systemClock, POLL_MS)
    } while (systemClock.monotonic() < end)
    throw new MillraceError('SERVICE_UNAVAILABLE', `${what}: not within ${PATIENCE_MS} ms`)
  }
}

async function startNode(
  programs: KafkaPrograms,
  node: {
    readonly controllerPort: number
    readonly id: number
    readonly port: number
    readonly settings: Readonly<Record<string, string>>
  },
  options: KafkaClusterOptions,
): Promise<KafkaClusterNode> {
  const { controllerPort, id, port } = node
  const folder = await mkdtemp(join(tmpdir(), `millrace-kafka-${id}-`))
  const data = join(folder, 'data')
  const file = join(folder, 'server.properties')
  const properties = { ...node.settings, 'node.id': String(id) }
  await writeFile(file, kafkaProperties({ controllerPort, data, port, properties }))
  await formatData(programs, data, id)
  const address = `127.0.0.1:${port}`
  const server = await PrivateServer.start({
    address,
    folder,
    launch: {
      args: [...programs.javaArgs, 'kafka.Kafka', file],
      command: programs.command,
      cwd: folder,
      logFile: join(folder, 'server.log'),
    },
    name: `Kafka node ${id}`,
    port,
    // A node that was away is back when it is in the cluster again; before, it names the others.
    probe: async () => ((await brokersOf({ port }))?.includes(id) === true ? programs.version : undefined),
    startTimeoutMs: options.startTimeoutMs ?? 120_000,
    stopTimeoutMs: options.stopTimeoutMs ?? 20_000,
    url: `kafka://${address}`,
  })
  return Object.assign(server, { id })
}

/** A cluster of fewer than three nodes cannot hold three replicas. */
function fewer(replicas: string): Record<string, string> {
  return Object.fromEntries(
    Object.keys(KAFKA_CLUSTER_DEFAULTS)
      .filter((name) => name.endsWith('replication.factor'))
      .map((name) => [name, replicas]),
  )
}
