/**
 * The daemon: a relay as a process of its own. It does what a library must not do: it makes the pool and the broker
 * from URLs, writes JSON logs with the secrets taken out, listens for signals, and turns how the relay ended into an
 * exit code. `relay-daemon.ts` tells its life; the command line (`src/cli`) reads flags and environment and starts it.
 */
export { createBrokerFromUrl, parseBrokerUrl } from './broker-url.ts'
export type { BrokerAddress } from './broker-url.ts'
export { runRelayDaemon, SHUTDOWN_TIMEOUT_MS } from './relay-daemon.ts'
export type { RelayDaemonOptions } from './relay-daemon.ts'
