import { OptionCheck } from '../../core/options.ts'

/** How streams are made by `admin.createTopic`. Streams that are there already are taken as they are. */
export interface NatsStreamOptions {
  /**
   * For how long the server drops a second message with a known id, milliseconds. It also is what
   * `capabilities.dedupeWindowMs` says, so give the value of your own streams here when you make them yourself. Raise it
   * when the relay may retry for longer; the server keeps every id of the window in memory. The alarm of a retry that
   * comes later goes by what the stream itself says, and by this when the account may not ask. Default: 120000, as the
   * server's own.
   */
  readonly duplicateWindowMs?: number
  /** How long messages are kept, milliseconds. Default: without limit. */
  readonly maxAgeMs?: number
  /** Copies of each message in a cluster, 1 to 5. More survive more; each costs a round trip per publish. Default: 1. */
  readonly replicas?: number
  /** Where messages are kept. `memory` is gone with the server. Default: `file`. */
  readonly storage?: 'file' | 'memory'
}

/** When a message counts as stored. */
export type NatsDurability = 'ack' | 'fsync'

/** TLS as nats.js takes it. Certificates are verified. */
export interface NatsTlsOptions {
  readonly ca?: string
  readonly caFile?: string
  readonly cert?: string
  readonly certFile?: string
  /** Begin with TLS instead of after the server's greeting; the server must have `handshake_first`. */
  readonly handshakeFirst?: boolean
  readonly key?: string
  readonly keyFile?: string
}

/** How to reach NATS, and how much may be in flight. */
export interface NatsOptions {
  /** How long one attempt to connect may take, milliseconds. Default: 5000. */
  readonly connectTimeoutMs?: number
  /**
   * What it takes for a message to count as stored.
   *
   * - `ack`: the server's acknowledgement. By default a server acknowledges before it syncs to disk, and syncs every two
   *   minutes (`sync_interval`): a machine that loses power can lose what it acknowledged. A killed server loses nothing.
   * - `fsync`: as `ack`, for a server that syncs before it acknowledges: `jetstream { sync_interval: always }` in *its*
   *   configuration, which no client can read, so this is yours to see to. Such a server syncs every publish by itself;
   *   so pages are published by atomic batches, which a recent server syncs once each: about ten times as fast (measured
   *   on 2.15; 2.12 still syncs each message of a batch, which is as durable and no faster). Needs nats-server 2.12.1 or
   *   newer, and streams on file with `allow_atomic`; all of this is checked, and what is missing is named in the error
   *   that ends the relay. The account must be allowed to ask `$JS.API.STREAM.NAMES` and `$JS.API.STREAM.INFO.*`. On a
   *   server without `sync_interval: always` it costs a third of the speed and gains nothing.
   *
   * Default: `ack`.
   */
  readonly durability?: NatsDurability
  /** The name the server shows for the connections. Default: `millrace`. */
  readonly name?: string
  /** Password that goes with `user`. */
  readonly pass?: string
  /**
   * The servers, `host:port` or `nats://host:port`; any one of a cluster will do, the others are learned from it.
   * `tls://` asks for TLS; a user or token inside the URL counts as `user` and `pass`, or `token`.
   */
  readonly servers: string | readonly string[]
  /** How `admin.createTopic` makes streams. */
  readonly stream?: NatsStreamOptions
  /** TLS; `{}` asks for it with the machine's own certificate authorities. Default: when the server offers it. */
  readonly tls?: NatsTlsOptions
  readonly token?: string
  readonly user?: string
  /**
   * The most bytes that may be published and unanswered at once. One message larger than this goes alone.
   * Default: 16777216.
   */
  readonly windowBytes?: number
  /**
   * The most messages that may be published and unanswered at once. Lower it for a server that others need too; raise
   * it when the way there is long: rate = window / round trip. Default: 2048.
   */
  readonly windowMessages?: number
}

/** Options with defaults in place; secrets are taken out of the URLs. */
export interface ResolvedNatsOptions {
  readonly connectTimeoutMs: number
  readonly durability: NatsDurability
  readonly name: string
  readonly pass: string | undefined
  readonly servers: readonly string[]
  readonly stream: Required<Omit<NatsStreamOptions, 'maxAgeMs'>> & Pick<NatsStreamOptions, 'maxAgeMs'>
  readonly tls: NatsTlsOptions | undefined
  readonly token: string | undefined
  readonly user: string | undefined
  readonly windowBytes: number
  readonly windowMessages: number
}

const KNOWN = [
  'connectTimeoutMs',
  'durability',
  'name',
  'pass',
  'servers',
  'stream',
  'tls',
  'token',
  'user',
  'windowBytes',
  'windowMessages',
] as const satisfies readonly (keyof NatsOptions)[]

const KNOWN_STREAM = [
  'duplicateWindowMs',
  'maxAgeMs',
  'replicas',
  'storage',
] as const satisfies readonly (keyof NatsStreamOptions)[]

/** Checks the options, all problems at once, and fills in the defaults. */
export function resolveNatsOptions(options: NatsOptions): ResolvedNatsOptions {
  const check = new OptionCheck('nats', options, KNOWN)
  check.required('servers', "'host:port' or an array of them")
  check.integer('connectTimeoutMs', 1, 600_000)
  check.satisfies('durability', (value) => value === 'ack' || value === 'fsync', "'ack' or 'fsync'")
  check.integer('windowBytes', 1024, 1 << 30)
  check.integer('windowMessages', 1, 65_536)
  for (const name of ['name', 'pass', 'token', 'user'] as const) {
    // Never printed: it may be a secret.
    if (options?.[name] !== undefined && typeof options[name] !== 'string')
      check.add(name, typeof options[name], 'text')
  }
  const listed = [options?.servers ?? []].flat()
  const parsed = listed.map(parseServer)
  // Nothing of a server that does not parse is printed: a password may be in it.
  if (options?.servers !== undefined && (listed.length === 0 || parsed.includes(undefined))) {
    check.add('servers', listed.length === 0 ? 'none' : 'an address that is none', "'host:port' or 'nats://host:port'")
  }
  check.done()
  const stream = options.stream ?? {}
  const checkStream = new OptionCheck('nats.stream', stream, KNOWN_STREAM)
  checkStream.integer('duplicateWindowMs', 100, 30 * 86_400_000)
  checkStream.integer('maxAgeMs', 100, Number.MAX_SAFE_INTEGER)
  checkStream.integer('replicas', 1, 5)
  checkStream.satisfies('storage', (value) => value === 'file' || value === 'memory', "'file' or 'memory'")
  checkStream.done()
  const servers = parsed as readonly ParsedServer[]
  const login = servers.find((server) => server.user !== undefined || server.token !== undefined)
  return {
    connectTimeoutMs: options.connectTimeoutMs ?? 5000,
    durability: options.durability ?? 'ack',
    name: options.name ?? 'millrace',
    pass: options.pass ?? login?.pass,
    servers: servers.map((server) => server.address),
    stream: { duplicateWindowMs: 120_000, replicas: 1, storage: 'file', ...stream },
    tls: options.tls ?? (servers.some((server) => server.tls) ? {} : undefined),
    token: options.token ?? login?.token,
    user: options.user ?? login?.user,
    windowBytes: options.windowBytes ?? 16 << 20,
    windowMessages: options.windowMessages ?? 2048,
  }
}

interface ParsedServer {
  readonly address: string
  readonly pass: string | undefined
  readonly tls: boolean
  readonly token: string | undefined
  readonly user: string | undefined
}

const DEFAULT_PORT = '4222'

function parseServer(server: unknown): ParsedServer | undefined {
  if (typeof server !== 'string') return undefined
  const [, scheme = 'nats', rest = ''] = /^(?:(nats|tls):\/\/)?(\S+)$/.exec(server) ?? []
  // As http, because the parser of URLs keeps user, password, host and port apart only for schemes it knows.
  const url = URL.parse(`http://${rest}`)
  if (url === null || url.hostname === '' || (url.pathname !== '/' && url.pathname !== '')) return undefined
  const user = url.username === '' ? undefined : decodeURIComponent(url.username)
  const pass = url.password === '' ? undefined : decodeURIComponent(url.password)
  const port = url.port !== '' ? url.port : /:80\/?$/.test(rest) ? '80' : DEFAULT_PORT
  return {
    address: `${url.hostname}:${port}`,
    pass,
    tls: scheme === 'tls',
    // `nats://secret@host` is a token.
    token: pass === undefined ? user : undefined,
    user: pass === undefined ? undefined : user,
  }
}
