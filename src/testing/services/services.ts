import { dockerWay } from './docker.ts'
import { explicitWay } from './explicit.ts'
import { canStart, localWay } from './local.ts'
import { requireAll, resolveService, type ServiceName, type Way } from './resolver.ts'
import type { Resolution } from './resolver.ts'

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
  /** Those that `startPostgres`, `startKafka` and `startNats` can start privately on this machine. */
  readonly startable: readonly ServiceName[]
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
    // One that cannot be ended keeps no other from its end.
    const ends = await Promise.allSettled(resolutions.flatMap((one) => one.provided?.stop() ?? []))
    for (const one of ends) if (one.status === 'rejected') throw one.reason
  }
  try {
    for (const one of settled) if (one.status === 'rejected') throw one.reason
    if (options.env.REQUIRE_REAL === '1') requireAll(resolutions)
  } catch (error) {
    await stop()
    throw error
  }
  for (const one of resolutions) options.print(one.line)
  const startable = await Promise.all(wanted.map(async (name) => ((await canStart(name)) ? [name] : [])))
  return { addresses: Object.fromEntries(resolutions.flatMap(entry)), startable: startable.flat(), stop }
}

function entry(resolution: Resolution): [ServiceName, string][] {
  return resolution.provided === undefined ? [] : [[resolution.service, resolution.provided.address]]
}

function waysTo(service: ServiceName, env: NodeJS.ProcessEnv): Way[] {
  return [explicitWay(service, env), dockerWay(service, env), localWay(service)]
}
