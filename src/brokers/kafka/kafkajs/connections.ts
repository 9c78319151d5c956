/**
 * One kafkajs client and the sockets it opened. kafkajs reconnects on its own, also after it was told to disconnect (a
 * send that is being retried does), and gives no hold on its sockets. So the sockets are made here: after `kill` they
 * are gone, no new one is made, and nothing more can reach the broker. And kafkajs is given whole responses only
 * (`whole-responses.ts`); what it throws at one ends the connection.
 */
import { connect as connectTcp, isIP } from 'node:net'
import type { Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import type { ConnectionOptions } from 'node:tls'
import type { Kafka, KafkaConfig, RetryOptions, SASLOptions } from 'kafkajs'
import { MillraceError } from '../../../core/errors.ts'
import type { Logger } from '../../../core/logger.ts'
import type { Settings } from './options.ts'
import { WholeResponses } from './whole-responses.ts'

type Module = typeof import('kafkajs')

/** How long a connection may be silent before TCP asks whether the other side is there. */
const KEEP_ALIVE_MS = 60_000

/** How a client behaves. */
export interface ClientOptions {
  /** How long a request may stay unanswered. */
  readonly requestTimeoutMs: number
  readonly retry: RetryOptions
}

export class Connections {
  readonly kafka: Kafka
  readonly #sockets = new Set<Socket>()
  #killed = false

  constructor(module: Module, settings: Settings, options: ClientOptions) {
    const config: KafkaConfig = {
      brokers: settings.brokers,
      clientId: settings.clientId,
      connectionTimeout: settings.connectTimeoutMs,
      enforceRequestTimeout: true,
      requestTimeout: options.requestTimeoutMs,
      retry: options.retry,
      socketFactory: ({ host, port, ssl, onConnect }) => this.#connect(host, port, ssl, onConnect),
      ...logging(module, settings.logger),
    }
    if (settings.ssl !== undefined) config.ssl = settings.ssl
    if (settings.sasl !== undefined) config.sasl = settings.sasl as SASLOptions
    this.kafka = new module.Kafka(config)
  }

  /** True after `kill`. */
  get killed(): boolean {
    return this.#killed
  }

  /** Ends every connection at once; requests in flight are rejected, and nothing reconnects. */
  kill(): void {
    this.#killed = true
    // With an error, for that is what kafkajs listens to: without one its timers would run for ever.
    for (const socket of this.#sockets) socket.destroy(new Error('the client was closed'))
  }

  #connect(host: string, port: number, ssl: ConnectionOptions | boolean, onConnect: () => void): Socket {
    // kafkajs turns this into a failed attempt to connect.
    if (this.#killed) throw new Error('the client was closed')
    const tls = typeof ssl === 'object' && ssl !== null ? ssl : {}
    const socket = ssl
      ? connectTls({ host, port, ...(isIP(host) === 0 ? { servername: host } : {}), ...tls }, onConnect)
      : connectTcp({ host, port }, onConnect)
    socket.setKeepAlive(true, KEEP_ALIVE_MS)
    socket.setNoDelay(true)
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
    listenInWhole(socket)
    return socket
  }
}

/** Whoever listens to the socket's data from now on gets whole responses, and may throw. */
function listenInWhole(socket: Socket): void {
  const on = socket.on.bind(socket) as (event: string, listener: (...args: never[]) => void) => Socket
  socket.on = (event: string, listener: (...args: never[]) => void): Socket => {
    if (event !== 'data') return on(event, listener)
    const responses = new WholeResponses(listener as (chunk: Buffer) => void)
    return on(event, (chunk: Buffer) => {
      try {
        responses.push(chunk)
      } catch (error) {
        socket.destroy(error instanceof Error ? error : new Error(String(error)))
      }
    })
  }
}

/** Makes clients, loading kafkajs at the first. */
export class Connector {
  readonly #load: () => Promise<Module>
  readonly #open = new Set<Connections>()
  readonly #settings: Settings

  constructor(settings: Settings, load: () => Promise<Module> = loadKafkajs) {
    this.#load = load
    this.#settings = settings
  }

  /** A client of its own for one publisher, one member or one task. Give it back with `release`. */
  async open(options: ClientOptions): Promise<Connections> {
    const connections = new Connections(await this.#load(), this.#settings, options)
    this.#open.add(connections)
    return connections
  }

  /** Ends what the client still has open. */
  release(connections: Connections): void {
    connections.kill()
    this.#open.delete(connections)
  }

  /** Ends what every client still has open. */
  releaseAll(): void {
    for (const connections of this.#open) this.release(connections)
  }
}

/** Loads the optional peer, or says how to install it. `importPeer` stands in for `import('kafkajs')`. */
export async function loadKafkajs(importPeer: () => Promise<unknown> = () => import('kafkajs')): Promise<Module> {
  try {
    const module = (await importPeer()) as Module & { readonly default?: Module }
    return module.default ?? module
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ERR_MODULE_NOT_FOUND') throw error
    throw new MillraceError('PEER_MISSING', 'The Kafka adapter needs kafkajs, which is not installed: npm i kafkajs', {
      cause: error,
    })
  }
}

/** kafkajs writes to the console unless told otherwise, and names routine things (a rebalance) errors. */
function logging(module: Module, logger: Logger | undefined): Pick<KafkaConfig, 'logCreator' | 'logLevel'> {
  if (logger === undefined) return { logCreator: () => () => {}, logLevel: module.logLevel.NOTHING }
  // Not its debug level, which prints what brokers answer.
  return {
    logCreator: () => (entry) => logger.debug({ kafkajs: entry.namespace, level: entry.label }, entry.log.message),
    logLevel: module.logLevel.INFO,
  }
}
