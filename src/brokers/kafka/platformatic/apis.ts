/**
 * The requests of the protocol that are used here, each at the newest version that the client package has and at the
 * older ones that are written alike. A broker that has none of them is older than 3.5.
 */
import { MillraceError } from '../../../core/errors.ts'

/** The client package. */
export type Module = typeof import('@platformatic/kafka')

const NEWEST = {
  createTopics: ['createTopicsV', 7, 5],
  deleteTopics: ['deleteTopicsV', 6, 6],
  describeConfigs: ['describeConfigsV', 4, 4],
  fetch: ['fetchV', 17, 15],
  findCoordinator: ['findCoordinatorV', 6, 4],
  heartbeat: ['heartbeatV', 4, 4],
  initProducerId: ['initProducerIdV', 5, 4],
  joinGroup: ['joinGroupV', 9, 8],
  leaveGroup: ['leaveGroupV', 5, 5],
  listOffsets: ['listOffsetsV', 9, 7],
  metadata: ['metadataV', 12, 12],
  offsetCommit: ['offsetCommitV', 9, 8],
  offsetFetch: ['offsetFetchV', 9, 8],
  produce: ['produceV', 11, 9],
  syncGroup: ['syncGroupV', 5, 5],
} as const satisfies Record<string, readonly [prefix: string, newest: number, oldest: number]>

/** A request by its name. */
export type ApiName = keyof typeof NEWEST

type NewestModule<N extends ApiName> = `${(typeof NEWEST)[N][0]}${(typeof NEWEST)[N][1]}` extends infer K extends
  keyof Module
  ? Module[K]
  : never
type Call<N extends ApiName> = NewestModule<N> extends { readonly api: { readonly async: infer F } } ? F : never

/** What a request takes. */
export type ApiArguments<N extends ApiName> =
  Call<N> extends (connection: never, ...args: infer A) => Promise<unknown> ? A : never
/** What a request is answered with. */
export type ApiAnswer<N extends ApiName> =
  Call<N> extends (connection: never, ...args: never[]) => Promise<infer R> ? Exclude<R, boolean> : never

/** The versions a broker takes, by the number of the request. */
export type Ranges = ReadonlyMap<number, { readonly maxVersion: number; readonly minVersion: number }>

interface Candidate {
  readonly api: {
    readonly async: (...args: unknown[]) => Promise<unknown>
    readonly key: number
    readonly version: number
  }
  readonly parseResponse: (id: number, key: number, version: number, reader: unknown) => unknown
}

/** The request at the newest version that both sides know. */
export function chooseApi(module: Module, name: ApiName, ranges: Ranges): Candidate {
  const [prefix, newest, oldest] = NEWEST[name]
  const versions = module as unknown as Readonly<Record<string, Candidate | undefined>>
  for (let version = newest; version >= oldest; version--) {
    const candidate = versions[`${prefix}${version}`]
    const range = candidate === undefined ? undefined : ranges.get(candidate.api.key)
    if (candidate === undefined || range === undefined) continue
    if (version >= range.minVersion && version <= range.maxVersion) return candidate
  }
  throw new MillraceError(
    'SERVER_TOO_OLD',
    `The Kafka broker does not know ${name} as @platformatic/kafka speaks it: use Kafka 3.5 or newer, or millrace/kafkajs.`,
  )
}
