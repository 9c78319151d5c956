import { MillraceError } from '../../../core/errors.ts'
import type { Module } from './apis.ts'
import { Client } from './client.ts'
import type { ClientOptions } from './client.ts'
import type { Settings } from './options.ts'

/** Makes clients, loading @platformatic/kafka at the first. */
export class Connector {
  readonly #load: () => Promise<Module>
  readonly #open = new Set<Client>()
  readonly #settings: Settings

  constructor(settings: Settings, load: () => Promise<Module> = loadPlatformatic) {
    this.#load = load
    this.#settings = settings
  }

  /** A client of its own for one publisher, one member or one task. Give it back with `release`. */
  async open(options: ClientOptions): Promise<Client> {
    const client = new Client(await this.#load(), this.#settings, options)
    this.#open.add(client)
    return client
  }

  /** Ends what the client still has open. */
  release(client: Client): void {
    client.kill()
    this.#open.delete(client)
  }

  /** Ends what every client still has open. */
  releaseAll(): void {
    for (const client of this.#open) this.release(client)
  }
}

/** Loads the optional peer, or says how to install it. `importPeer` stands in for `import('@platformatic/kafka')`. */
export async function loadPlatformatic(
  importPeer: () => Promise<unknown> = () => import('@platformatic/kafka'),
): Promise<Module> {
  try {
    return (await importPeer()) as Module
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ERR_MODULE_NOT_FOUND') throw error
    const fix = 'npm i @platformatic/kafka@^2.12.0'
    throw new MillraceError('PEER_MISSING', `This adapter needs @platformatic/kafka, which is not installed: ${fix}`, {
      cause: error,
    })
  }
}
