import type { Clock } from '../../core/clock.ts'
import { systemClock } from '../../core/clock.ts'
import { MillraceError } from '../../core/errors.ts'
import { OptionCheck } from '../../core/options.ts'
import type { Broker } from '../broker.ts'
import { LocalClient } from './local-client.ts'
import { createMemoryBroker, MemoryBroker } from './memory-broker.ts'
import { parseAddress } from './remote/address.ts'
import { RemoteClient } from './remote/remote-client.ts'

/** Which memory broker to use. */
export interface MemoryOptions {
  /** Time, for a broker in another process. Default: the machine's. */
  readonly clock?: Clock
  /** A broker in this process, so that several clients share it. Default: a broker of its own. */
  readonly host?: MemoryBroker
  /** With `url`: the largest message to send, bytes; as the broker's own. Default: 1048576. */
  readonly maxMessageBytes?: number
  /** A broker that another process serves: `memory://127.0.0.1:PORT` or `memory:///path/of/socket`. Default: none. */
  readonly url?: string
}

/**
 * The broker in memory: topics with partitions, groups, rebalance and redelivery, and nothing that outlives its
 * process. For tests, demos and services that are one process.
 *
 * @example
 * const broker = memory()                                        // its own
 * const two = [memory({ host }), memory({ host })]               // host = createMemoryBroker()
 * const far = memory({ url: 'memory://127.0.0.1:41234' })        // served by serveMemory(host)
 */
export function memory(options: MemoryOptions = {}): Broker {
  const check = new OptionCheck('memory', options, ['clock', 'host', 'maxMessageBytes', 'url'])
  check.integer('maxMessageBytes', 1, 16 * 1024 * 1024)
  check.satisfies('host', (value) => value instanceof MemoryBroker, 'what createMemoryBroker() returned')
  check.satisfies('url', (value) => typeof value === 'string', 'a URL')
  check.done()
  if (options.url === undefined) return new LocalClient(options.host ?? createMemoryBroker())
  if (options.host !== undefined) {
    throw new MillraceError('CONFIG_INVALID', 'memory: give `host` (in this process) or `url` (in another), not both')
  }
  return new RemoteClient(
    parseAddress(options.url),
    options.clock ?? systemClock,
    options.maxMessageBytes ?? 1024 * 1024,
  )
}
