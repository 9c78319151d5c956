import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findKafka, formatData, type KafkaPrograms } from './kafka-programs.ts'
import { kafkaProperties } from './kafka-properties.ts'
import { askKafka } from './kafka-protocol.ts'
import { freePort } from './ports.ts'
import { PrivateServer } from './private-server.ts'

/** How a private Kafka is made. */
export interface KafkaOptions {
  /** The port of the broker on 127.0.0.1. Default: a free one; it stays the same over restarts. */
  readonly port?: number
  /** More lines for server.properties; they win over the defaults here. Default: none. */
  readonly properties?: Readonly<Record<string, string>>
  /** How long a start may take until the broker answers, milliseconds; busy cores make it slow. Default: 90000. */
  readonly startTimeoutMs?: number
  /** How long a stop may take before the broker is killed, milliseconds. Default: 20000. */
  readonly stopTimeoutMs?: number
}

/**
 * Starts a private Apache Kafka of one node, broker and controller in one, on 127.0.0.1, its data in a temporary folder.
 * It ends with this process, whatever ends this process. The first call on a machine fetches it by Maven.
 *
 * @example
 * const kafka = await startKafka({ properties: { 'message.max.bytes': '2097152' } })
 * process.kill(kafka.pid, 'SIGSTOP')
 */
export async function startKafka(options: KafkaOptions = {}): Promise<PrivateServer> {
  return startKafkaWith(await findKafka(), options)
}

/** @internal */
export async function startKafkaWith(programs: KafkaPrograms, options: KafkaOptions): Promise<PrivateServer> {
  const port = options.port ?? (await freePort())
  const controllerPort = await freePort()
  const folder = await mkdtemp(join(tmpdir(), 'millrace-kafka-'))
  const data = join(folder, 'data')
  const file = join(folder, 'server.properties')
  await writeFile(file, kafkaProperties({ controllerPort, data, port, properties: options.properties }))
  await formatData(programs, data, 1)
  const address = `127.0.0.1:${port}`
  return PrivateServer.start({
    address,
    folder,
    launch: {
      args: [...programs.javaArgs, 'kafka.Kafka', file],
      command: programs.command,
      cwd: folder,
      logFile: join(folder, 'server.log'),
    },
    name: 'Kafka',
    port,
    probe: async () => ((await askKafka({ port })) === undefined ? undefined : programs.version),
    startTimeoutMs: options.startTimeoutMs ?? 90_000,
    stopTimeoutMs: options.stopTimeoutMs ?? 20_000,
    url: `kafka://${address}`,
  })
}
