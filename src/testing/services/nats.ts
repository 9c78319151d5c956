import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { converse } from './conversation.ts'
import { findNats, type NatsBinary } from './nats-binary.ts'
import { freePort } from './ports.ts'
import { PrivateServer } from './private-server.ts'

/** How a private NATS server is made. */
export interface NatsOptions {
  /** The port on 127.0.0.1. Default: a free one; it stays the same over restarts. */
  readonly port?: number
  /**
   * More of the server's configuration, as its file has it: `{ max_payload: 8_388_608, jetstream: { sync_interval:
   * 'always' } }`. Default: none.
   */
  readonly settings?: Readonly<Record<string, unknown>>
  /** How long a start may take until the server answers, milliseconds. Default: 30000. */
  readonly startTimeoutMs?: number
  /** How long a stop may take before the server is killed, milliseconds. Default: 15000. */
  readonly stopTimeoutMs?: number
}

/**
 * Starts a private NATS server with JetStream, on 127.0.0.1, its streams in a temporary folder. It ends with this
 * process, whatever ends this process. The first call on a machine may build the server, which takes a minute or two.
 *
 * @example
 * const nats = await startNats({ settings: { jetstream: { sync_interval: 'always' } } })
 * await nats.kill()
 * await nats.start()
 */
export async function startNats(options: NatsOptions = {}): Promise<PrivateServer> {
  return startNatsWith(await findNats(), options)
}

/** @internal */
export async function startNatsWith(binary: NatsBinary, options: NatsOptions): Promise<PrivateServer> {
  const port = options.port ?? (await freePort())
  const folder = await mkdtemp(join(tmpdir(), 'millrace-nats-'))
  const { jetstream, ...others } = options.settings ?? {}
  // The configuration's language includes JSON.
  const configuration = {
    listen: `127.0.0.1:${port}`,
    jetstream: { store_dir: join(folder, 'streams'), ...(jetstream as object | undefined) },
    ...others,
  }
  const file = join(folder, 'nats.conf')
  await writeFile(file, JSON.stringify(configuration))
  const address = `127.0.0.1:${port}`
  return PrivateServer.start({
    address,
    folder,
    launch: { args: ['--config', file], command: binary.command, cwd: folder, logFile: join(folder, 'server.log') },
    name: 'NATS',
    port,
    probe: () => askNats({ port }),
    startTimeoutMs: options.startTimeoutMs ?? 30_000,
    stopTimeoutMs: options.stopTimeoutMs ?? 15_000,
    url: `nats://${address}`,
  })
}

/** Resolves with the server's version when it answers a ping and has JetStream; undefined while it does not. */
export function askNats(target: { readonly host?: string; readonly port: number }): Promise<string | undefined> {
  return converse(target, Buffer.from('CONNECT {"verbose":false}\r\nPING\r\n'), (heard) => {
    const text = heard.toString()
    const information = /^INFO (\{.*\})\s*\r\n/.exec(text)?.[1]
    if (information === undefined || !text.includes('PONG\r\n')) return undefined
    const { jetstream, version } = JSON.parse(information) as { jetstream?: boolean; version: string }
    return jetstream === true ? version : undefined
  })
}
