import { MillraceError } from '../../../core/errors.ts'

/** Where a served memory broker listens: always on this machine. */
export type Address = { readonly host: string; readonly port: number } | { readonly path: string }

/** Reads `memory://127.0.0.1:PORT` or `memory:///path/of/socket`. */
export function parseAddress(url: string): Address {
  const path = /^memory:\/\/(\/.+)$/.exec(url)?.[1]
  if (path !== undefined) return { path: decodeURI(path) }
  const [, host, port] = /^memory:\/\/(127\.0\.0\.1|localhost|\[::1\]):(\d{1,5})\/?$/.exec(url) ?? []
  if (host === undefined || Number(port) < 1 || Number(port) > 65_535) {
    throw new MillraceError(
      'CONFIG_INVALID',
      'the URL of a memory broker is memory://127.0.0.1:PORT or memory:///path/of/socket: it is served on this machine',
    )
  }
  return { host: host === '[::1]' ? '::1' : host, port: Number(port) }
}

/** The URL of an address. */
export function formatAddress(address: Address): string {
  return 'path' in address ? `memory://${encodeURI(address.path)}` : `memory://${address.host}:${address.port}`
}
