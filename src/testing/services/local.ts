import { findKafka } from './kafka-programs.ts'
import { startKafkaWith } from './kafka.ts'
import { findNats } from './nats-binary.ts'
import { startNatsWith } from './nats.ts'
import { startPostgres } from './postgres.ts'
import { findPostgres, type PostgresVersion } from './postgres-binaries.ts'
import type { Provided, ServiceName, Way } from './resolver.ts'

/** The way of a service that the tools of this machine can run, fetched and built when they are not yet. */
export function localWay(service: ServiceName): Way {
  return { name: 'local', provide: STARTS[service] }
}

/** Whether this machine can run the service privately; what it takes is fetched and built by the way. */
export async function canStart(service: ServiceName): Promise<boolean> {
  return FINDS[service]().then(
    () => true,
    () => false,
  )
}

const FINDS: Readonly<Record<ServiceName, () => Promise<unknown>>> = {
  kafka: findKafka,
  nats: findNats,
  postgres15: () => findPostgres(15),
  postgres18: () => findPostgres(18),
}

const STARTS: Readonly<Record<ServiceName, () => Promise<Provided>>> = {
  kafka: async () => {
    const programs = await findKafka()
    return provided('Kafka', programs.origin, await startKafkaWith(programs, {}))
  },
  nats: async () => {
    const binary = await findNats()
    return provided('NATS', binary.origin, await startNatsWith(binary, {}))
  },
  postgres15: () => postgres(15),
  postgres18: () => postgres(18),
}

async function postgres(version: PostgresVersion): Promise<Provided> {
  const server = await startPostgres({ version })
  return provided('PostgreSQL', server.origin, {
    address: server.url,
    dispose: () => server.dispose(),
    port: server.port,
    version: server.version,
  })
}

function provided(
  name: string,
  origin: string,
  server: { readonly address: string; dispose(): Promise<void>; readonly port: number; readonly version: string },
): Provided {
  return {
    address: server.address,
    detail: `${name} ${server.version} (${origin}) on port ${server.port}`,
    stop: () => server.dispose(),
  }
}
