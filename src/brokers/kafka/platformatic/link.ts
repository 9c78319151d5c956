/**
 * One connection to one broker, and what that broker can do. The client package's own pool is not used: a connection
 * that nobody listens to any more raises its errors as uncaught ones.
 */
import type { Connection, Writer } from '@platformatic/kafka'
import { chooseApi } from './apis.ts'
import type { ApiAnswer, ApiArguments, ApiName, Module, Ranges } from './apis.ts'
import { answerOf } from './error-class.ts'

/** How long a connection may be silent before TCP asks whether the other side is there. */
const KEEP_ALIVE_MS = 60_000

/** Where a broker listens. */
export interface Address {
  readonly host: string
  readonly port: number
}

export class Link {
  readonly connection: Connection
  readonly #module: Module
  #chosen = new Map<ApiName, ReturnType<typeof chooseApi>>()
  #closed = false
  #ranges: Ranges = new Map()

  constructor(module: Module, connection: Connection) {
    this.#module = module
    this.connection = connection
    connection.on('error', () => (this.#closed = true))
    connection.on('close', () => (this.#closed = true))
  }

  /** True when nothing more can be sent on it. */
  get closed(): boolean {
    return this.#closed
  }

  async open({ host, port }: Address): Promise<this> {
    await this.connection.connect(host, port)
    this.connection.socket.setKeepAlive(true, KEEP_ALIVE_MS)
    const { apiKeys } = await this.#module.apiVersionsV3.api.async(this.connection, 'millrace', '1')
    this.#ranges = new Map(apiKeys.map((one) => [one.apiKey, one]))
    return this
  }

  /** Resolves with the broker's answer, also with one that carries error codes; rejects when there is none. */
  async request<N extends ApiName>(name: N, ...args: ApiArguments<N>): Promise<ApiAnswer<N>> {
    const { api } = this.#choose(name)
    try {
      return (await api.async(this.connection, ...args)) as ApiAnswer<N>
    } catch (error) {
      const answer = answerOf(error)
      if (answer === undefined) throw error
      return answer as ApiAnswer<N>
    }
  }

  /** Sends a produce request that is encoded already. */
  produce(body: Writer): Promise<ApiAnswer<'produce'>> {
    const { api, parseResponse } = this.#choose('produce')
    return new Promise((resolve, reject) => {
      this.connection.send<unknown>(
        api.key,
        api.version,
        () => body,
        parseResponse,
        true,
        true,
        (error: Error | null, answer?: unknown) => {
          const found = error === null ? answer : answerOf(error)
          if (found === undefined) reject(error ?? new Error('an empty answer'))
          else resolve(found as ApiAnswer<'produce'>)
        },
      )
    })
  }

  /** Ends it at once; what waits for an answer is rejected. */
  kill(): void {
    this.#closed = true
    this.connection.close(() => {})
    // Undefined before the first attempt to connect.
    ;(this.connection.socket as Connection['socket'] | undefined)?.destroy()
  }

  #choose(name: ApiName): ReturnType<typeof chooseApi> {
    let chosen = this.#chosen.get(name)
    if (chosen === undefined) this.#chosen.set(name, (chosen = chooseApi(this.#module, name, this.#ranges)))
    return chosen
  }
}
