/** pgoutput messages made by hand, as a server would send them. */
import type { WalSink } from '../../src/outbox-relay/capture/replication/wal-sink.ts'

/** The columns of `outbox.record` in their order. */
export const RECORD_COLUMNS: readonly (readonly [name: string, oid: number])[] = [
  ['tx', 5069],
  ['seq', 20],
  ['bucket', 21],
  ['shard', 21],
  ['id', 2950],
  ['topic', 25],
  ['key', 25],
  ['type', 25],
  ['payload', 17],
  ['headers', 3802],
]

/** Bytes, `null` for SQL null, a string for a field that comes as text, but `'unchanged'` for one that is left out. */
export type Field = Buffer | string | null

const cstring = (text: string): Buffer => Buffer.from(`${text}\0`)
export const int = (value: number | bigint, bytes: 2 | 4 | 8): Buffer => {
  const buffer = Buffer.alloc(bytes)
  if (bytes === 8) buffer.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)))
  else if (bytes === 4) buffer.writeUInt32BE(Number(value))
  else buffer.writeUInt16BE(Number(value))
  return buffer
}

export const begin = (commitLsn: bigint, micros = 0n, xid = 7): Buffer =>
  Buffer.concat([Buffer.from('B'), int(commitLsn, 8), int(micros, 8), int(xid, 4)])

export const commit = (commitLsn: bigint, endLsn: bigint): Buffer =>
  Buffer.concat([Buffer.from('C\0'), int(commitLsn, 8), int(endLsn, 8), int(0, 8)])

export function relation(
  columns: readonly (readonly [name: string, oid: number])[] = RECORD_COLUMNS,
  { id = 16_400, name = 'record', schema = 'outbox' } = {},
): Buffer {
  const fields = columns.flatMap(([column, oid]) => [
    Buffer.from([0]),
    cstring(column),
    int(oid, 4),
    int(0xffff_ffff, 4),
  ])
  const head = [Buffer.from('R'), int(id, 4), cstring(schema), cstring(name), Buffer.from('d'), int(columns.length, 2)]
  return Buffer.concat([...head, ...fields])
}

export function insert(fields: readonly Field[], id = 16_400): Buffer {
  const parts = fields.map((field) => {
    if (field === null) return Buffer.from('n')
    if (field === 'unchanged') return Buffer.from('u')
    const bytes = typeof field === 'string' ? Buffer.from(field) : field
    return Buffer.concat([Buffer.from(typeof field === 'string' ? 't' : 'b'), int(bytes.length, 4), bytes])
  })
  return Buffer.concat([Buffer.from('I'), int(id, 4), Buffer.from('N'), int(fields.length, 2), ...parts])
}

/** A row in the order of {@link RECORD_COLUMNS}. */
export const row = (over: Partial<Record<string, Field>> = {}): Field[] => {
  const fields: Record<string, Field> = {
    tx: int(5_000_000_000n, 8),
    seq: int(42, 8),
    bucket: int(3, 2),
    shard: int(9, 2),
    id: Buffer.from('0199a3f40c017abc8def0123456789ab', 'hex'),
    topic: Buffer.from('orders'),
    key: Buffer.from('kéy'),
    type: Buffer.from('order.placed'),
    payload: Buffer.from([0, 1, 2, 255]),
    headers: Buffer.from('\u0001{"a": "b"}'),
    ...over,
  }
  return RECORD_COLUMNS.map(([name]) => fields[name] as Field)
}

export const logicalMessage = (transactional: boolean, lsn: bigint, prefix: string, content: Buffer): Buffer =>
  Buffer.concat([
    Buffer.from('M'),
    Buffer.from([transactional ? 1 : 0]),
    int(lsn, 8),
    cstring(prefix),
    int(content.length, 4),
    content,
  ])

/** A sink that writes down every call. */
export function recordingSink(): { readonly calls: unknown[][]; readonly sink: WalSink } {
  const calls: unknown[][] = []
  const note =
    (name: string) =>
    (...args: unknown[]): void =>
      void calls.push([name, ...args])
  const sink: WalSink = {
    onBegin: note('begin'),
    onCommit: note('commit'),
    onKeepalive: note('keepalive'),
    onLogicalMessage: note('logical'),
    onMessage: note('message'),
    onRelation: note('relation'),
  }
  return { calls, sink }
}
