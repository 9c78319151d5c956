import { MillraceError } from '../../core/errors.ts'
import { accepts } from './conversation.ts'
import type { Provided, ServiceName, Way } from './resolver.ts'

const VARIABLES: Readonly<Record<ServiceName, string>> = {
  kafka: 'MILLRACE_TEST_KAFKA',
  nats: 'MILLRACE_TEST_NATS',
  postgres15: 'MILLRACE_TEST_POSTGRES15',
  postgres18: 'MILLRACE_TEST_POSTGRES',
}

const PATIENCE_MS = 5_000

/** The way of a service that somebody named in the environment. */
export function explicitWay(service: ServiceName, env: NodeJS.ProcessEnv): Way {
  const variable = VARIABLES[service]
  const provide = async (): Promise<Provided | undefined> => {
    const given = env[variable]
    if (given === undefined || given === '') return undefined
    const address = service.startsWith('postgres') ? given : given.replace(/^[a-z]+:\/\//, '').replace(/\/$/, '')
    const peer = parsePeer(service, address)
    if (peer === undefined) {
      const form = service.startsWith('postgres') ? 'postgres://user@host:port/database' : 'host:port[,host:port]'
      throw new MillraceError('CONFIG_INVALID', `${variable} has the form ${form}`)
    }
    if (!(await accepts(peer, PATIENCE_MS))) {
      throw new MillraceError(
        'SERVICE_UNAVAILABLE',
        `nobody answers at ${peer.host}:${peer.port}, which ${variable} names: start it, or unset the variable`,
      )
    }
    return { address, detail: `${variable}, ${peer.host}:${peer.port}`, stop: async () => {} }
  }
  return { name: 'url', provide }
}

/** The first host and port; undefined when the text is not an address. */
function parsePeer(service: ServiceName, address: string): { host: string; port: number } | undefined {
  const isPostgres = service.startsWith('postgres')
  if (isPostgres && !/^postgres(ql)?:\/\//.test(address)) return undefined
  const url = URL.parse(isPostgres ? address : `tcp://${address.split(',')[0]}`)
  if (url === null || url.hostname === '') return undefined
  const port = Number(url.port === '' && isPostgres ? 5432 : url.port)
  return port > 0 ? { host: url.hostname.replace(/^\[|\]$/g, ''), port } : undefined
}
