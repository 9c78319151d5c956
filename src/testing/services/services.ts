import { MillraceError } from '../../core/errors.ts'
import { findKafka } from './kafka-programs.ts'
import { startKafkaWith } from './kafka.ts'
import { findNats } from './nats-binary.ts'
import { startNatsWith } from './nats.ts'
import { startPostgres } from './postgres.ts'
import type { PostgresVersion } from './postgres-binaries.ts'
import { requireAll, resolveService, type Provided, type Resolution, type ServiceName, type Way } from './resolver.ts'

/** Where the services of a run are; a service that is missing is left out. */
export type ServiceAddresses = { readonly [service in ServiceName]?: string }

/** What to find, and how. */
export interface ServicesOptions {
  /** Where the explicit URLs, the cache and the engine are named: `process.env` as a rule. */
  readonly env: NodeJS.ProcessEnv
  /** Called with one line per service. */
  readonly print: (line: string) => void
  /** Which to find. Default: all four. */
  readonly services?: readonly ServiceName[]
}

/** The services of a run. */
export interface Services {
  readonly addresses: ServiceAddresses
  /** Ends those that were started for the run. */
  stop(): Promise<void>
}

const ALL: readonly ServiceName[] = ['postgres18', 'postgres15', 'kafka', 'nats']

/** Finds or starts the services of a test run, all at once. With `REQUIRE_REAL=1` a missing one is an error. */
export async function startServices(options: ServicesOptions): Promise<Services> {
  const wanted = options.services ?? ALL
  const settled = await Promise.allSettled(wanted.map((name) => resolveService(name, waysTo(name, options.env))))
  const resolutions = settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  const stop = async (): Promise<void> => {
    await Promise.all(resolutions.flatMap((one) => one.provided?.stop() ?? []))
  }
  try {
    for (const one of settled) if (one.status === 'rejected') throw one.reason
    if (options.env.REQUIRE_REAL === '1') requireAll(resolutions)
  } catch (error) {
    await stop()
    throw error
  }
  for (const one of resolutions) options.print(one.line)
  return { addresses: Object.fromEntries(resolutions.flatMap(entry)), stop }
}

function entry(resolution: Resolution): [ServiceName, string][] {
  return resolution.provided === undefined ? [] : [[resolution.service, resolution.provided.address]]
}

function waysTo(service: ServiceName, env: NodeJS.ProcessEnv): Way[] {
  switch (service) {
    case 'postgres15':
    case 'postgres18':
      return [byUrl(service, env), { name: 'local', provide: () => localPostgres(service === 'postgres15' ? 15 : 18) }]
    case 'nats':
      return [byUrl(service, env), { name: 'local', provide: localNats }]
    case 'kafka':
      return [byUrl(service, env), { name: 'local', provide: localKafka }]
  }
}

const VARIABLES: Readonly<Record<ServiceName, string>> = {
  kafka: 'MILLRACE_TEST_KAFKA',
  nats: 'MILLRACE_TEST_NATS',
  postgres15: 'MILLRACE_TEST_POSTGRES15',
  postgres18: 'MILLRACE_TEST_POSTGRES',
}

function byUrl(service: ServiceName, env: NodeJS.ProcessEnv): Way {
  const provide = async (): Promise<Provided | undefined> => {
    const variable = VARIABLES[service]
    const url = env[variable]
    if (url === undefined || url === '') return undefined
    if (service.startsWith('postgres') && !/^postgres(ql)?:\/\//.test(url)) {
      throw new MillraceError(
        'CONFIG_INVALID',
        `${variable} is not a connection string: postgres://user@host:port/database`,
      )
    }
    return { address: url, detail: variable, stop: async () => {} }
  }
  return { name: 'url', provide }
}

async function localPostgres(version: PostgresVersion): Promise<Provided> {
  const server = await startPostgres({ version })
  return {
    address: server.url,
    detail: `PostgreSQL ${server.version} (${server.origin}) on port ${server.port}`,
    stop: () => server.dispose(),
  }
}

async function localNats(): Promise<Provided> {
  const binary = await findNats()
  const server = await startNatsWith(binary, {})
  return {
    address: server.address,
    detail: `NATS ${server.version} (${binary.origin}) on port ${server.port}`,
    stop: () => server.dispose(),
  }
}

async function localKafka(): Promise<Provided> {
  const programs = await findKafka()
  const server = await startKafkaWith(programs, {})
  return {
    address: server.address,
    detail: `Kafka ${server.version} (${programs.origin}) on port ${server.port}`,
    stop: () => server.dispose(),
  }
}
