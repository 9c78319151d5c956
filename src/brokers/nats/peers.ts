import { MillraceError } from '../../core/errors.ts'

/** The two optional peers of this adapter, loaded. */
export interface NatsPeers {
  readonly jetstream: typeof import('@nats-io/jetstream')
  readonly transport: typeof import('@nats-io/transport-node')
}

let loading: Promise<NatsPeers> | undefined

/** Loads the peers on first use, so that whoever does not use NATS needs neither. */
export function loadPeers(): Promise<NatsPeers> {
  loading ??= Promise.all([import('@nats-io/transport-node'), import('@nats-io/jetstream')]).then(
    ([transport, jetstream]) => ({ jetstream, transport }),
    (cause: unknown) => {
      loading = undefined
      throw isMissing(cause) ? missingPeer(cause) : cause
    },
  )
  return loading
}

/** A peer that is there and broken is another matter. */
function isMissing(cause: unknown): boolean {
  return (cause as { readonly code?: unknown } | null)?.code === 'ERR_MODULE_NOT_FOUND'
}

function missingPeer(cause: unknown): MillraceError {
  return new MillraceError(
    'PEER_MISSING',
    'millrace/nats needs its two peers: npm i @nats-io/transport-node @nats-io/jetstream',
    { cause },
  )
}
