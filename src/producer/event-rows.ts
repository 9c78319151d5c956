/**
 * Turns events into the parameters of rows, and finds everything that is wrong with them on the way. The rules are those
 * of the SQL function `outbox.append`; a rule that changes here changes there.
 */
import type { Clock } from '../core/clock.ts'
import { isUuid, newId } from '../core/ids.ts'
import { nearest } from '../core/options.ts'
import { HEADER_PREFIX } from '../core/wire.ts'
import { captureContext } from '../tracing/propagation.ts'
import { EventProblems } from './event-problems.ts'
import type { EventCatalog, OutboxEvent, SchemaIssue } from './event.ts'

/** A record as `append` writes it. */
export interface EventRow {
  readonly id: string
  readonly topic: string
  readonly key: string | null
  readonly type: string
  readonly payload: Buffer
  /** A JSON object of strings. */
  readonly headers: string
  /** What counts against `maxEventBytes`. */
  readonly sizeBytes: number
}

/** What the rows depend on besides the events. */
export interface RowOptions {
  readonly clock: Clock | undefined
  readonly events: EventCatalog | undefined
  readonly maxEventBytes: number
}

const MAX_HEADERS = 64
const MAX_KEY_BYTES = 2048
const MAX_NAME_BYTES = 255
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/
const LINE_BREAK = /[\r\n\0]/
// oxlint-disable-next-line no-control-regex -- control characters are what it looks for
const CONTROL = /[\u0000-\u001f\u007f]/
const JSON_TYPE = 'application/json'

/**
 * The rows of the events, in order; at once, unless a schema checks asynchronously.
 *
 * @throws APPEND_INVALID_EVENT with every problem of every event.
 */
export function eventRows(
  events: readonly OutboxEvent[],
  options: RowOptions,
): readonly EventRow[] | Promise<readonly EventRow[]> {
  const { events: catalog } = options
  if (catalog === undefined) return build(events, undefined, options)
  const checks = events.map((event) => check(event, catalog))
  if (checks.every(isSettled)) return build(events, checks, options)
  return Promise.all(checks.map(async (result) => result)).then((results) => build(events, results, options))
}

function build(events: readonly OutboxEvent[], checks: readonly Check[] | undefined, options: RowOptions): EventRow[] {
  const problems = new EventProblems()
  const trace: Record<string, string> = { ...captureContext() }
  const rows: EventRow[] = []
  const givenIds = new Set<string>()
  for (let index = 0; index < events.length; index++) {
    const event = events[index] as OutboxEvent
    const report = (path: string, problem: string): void => problems.add(index, path, problem)
    if (typeof event !== 'object' || event === null) {
      report('', `an event is an object { topic, key, type, payload }; got ${event === null ? 'null' : typeof event}`)
      continue
    }
    checkName('topic', event.topic, 'the topic the event goes to', report)
    checkName('type', event.type, 'the type of the event, such as order.placed', report)
    const key = checkKey(event.key, report)
    const id = event.id === undefined ? newId(options.clock?.now()) : checkId(event.id, givenIds, report)
    const { problem, value, issues } = checks?.[index] ?? { value: event.payload }
    if (problem !== undefined) report('type', problem)
    for (const issue of issues ?? []) report(pathOf(issue), issue.message)
    if (issues?.length === 0) report('payload', 'refused by its schema, which does not say why')
    const json = !(value instanceof Uint8Array)
    const checked = problem === undefined && issues === undefined
    const payload = !checked ? EMPTY : json ? toJson(value, report) : bytesOf(value)
    const headers = headersOf(event.headers, json, trace, report)
    const sizeBytes =
      payload.length + byteLength(event.topic) + byteLength(event.type) + byteLength(key) + headers.sizeBytes
    if (sizeBytes > options.maxEventBytes) {
      report(
        '',
        `${sizeBytes} bytes (payload ${payload.length}, headers ${headers.sizeBytes}) of at most ` +
          `${options.maxEventBytes}. Store the large part elsewhere and append a reference to it, or raise maxEventBytes`,
      )
    }
    rows.push({ id, topic: event.topic, key, type: event.type, payload, headers: headers.json, sizeBytes })
  }
  problems.done()
  return rows
}

/** What the catalog says of an event: the payload to store, or what is wrong with its type or its payload. */
interface Check {
  readonly issues?: readonly SchemaIssue[] | undefined
  readonly problem?: string
  readonly value?: unknown
}

function check(event: OutboxEvent, catalog: EventCatalog): Check | PromiseLike<Check> {
  // What is no event with a type is reported as such later.
  if (typeof event !== 'object' || event === null) return {}
  if (typeof event.type !== 'string' || event.type === '') return { value: event.payload }
  const schema = Object.hasOwn(catalog, event.type) ? catalog[event.type] : undefined
  if (schema !== undefined) return schema['~standard'].validate(event.payload)
  const near = nearest(event.type, Object.keys(catalog))
  const fix = near === undefined ? '. Add its schema to createOutbox({ events })' : `; did you mean '${near}'?`
  return { problem: `not in the events of this outbox${fix}` }
}

function isSettled(result: Check | PromiseLike<Check>): result is Check {
  return !('then' in result)
}

function pathOf({ path }: SchemaIssue): string {
  return ['payload', ...(path ?? []).map((step) => String(typeof step === 'object' ? step.key : step))].join('.')
}

type Report = (path: string, problem: string) => void

const EMPTY = Buffer.alloc(0)
function checkName(path: 'topic' | 'type', name: unknown, what: string, report: Report): void {
  if (typeof name !== 'string' || name === '') return report(path, `empty. Name ${what}`)
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    report(path, `${Buffer.byteLength(name)} bytes of at most ${MAX_NAME_BYTES}`)
  if (CONTROL.test(name) || !name.isWellFormed())
    report(path, 'holds a control character or half of a surrogate pair; leave it out')
}

function checkKey(key: unknown, report: Report): string | null {
  if (key === undefined || key === null) return null
  if (typeof key !== 'string') {
    report('key', `got a ${typeof key}. A key is a string or null: String(key)`)
    return null
  }
  if (Buffer.byteLength(key) > MAX_KEY_BYTES)
    report('key', `${Buffer.byteLength(key)} bytes of at most ${MAX_KEY_BYTES}. Use a digest of it`)
  if (LINE_BREAK.test(key) || !key.isWellFormed())
    report('key', 'holds a NUL, CR, LF or half of a surrogate pair. Encode it, for instance as base64url')
  return key
}

function checkId(id: unknown, given: Set<string>, report: Report): string {
  const canonical = typeof id === 'string' ? id.toLowerCase() : ''
  if (!isUuid(canonical)) report('id', 'not a uuid. Give a uuid, or none to get a new uuid v7')
  else if (given.has(canonical))
    report('id', 'another event of this call has this id, and the inbox would drop one of them')
  given.add(canonical)
  return canonical
}

function toJson(payload: unknown, report: Report): Buffer {
  if (payload === undefined) report('payload', 'undefined. Give the event, or null for one without content')
  else if (payload instanceof ArrayBuffer || ArrayBuffer.isView(payload))
    report('payload', 'bytes come as a Uint8Array or Buffer: new Uint8Array(buffer)')
  else {
    try {
      const json = JSON.stringify(payload) as string | undefined
      if (json !== undefined) return Buffer.from(json)
      report('payload', `a ${typeof payload} has no JSON form`)
    } catch (error) {
      // The message of a circular structure names its properties, over several lines; the first says it all.
      report(
        'payload',
        `cannot become JSON: ${error instanceof Error ? error.message.split('\n', 1)[0] : 'toJSON threw'}`,
      )
    }
  }
  return EMPTY
}

function bytesOf(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** The headers as JSON, with the trace and the content type unless the event brings its own. */
function headersOf(
  given: unknown,
  json: boolean,
  trace: Readonly<Record<string, string>>,
  report: Report,
): { json: string; sizeBytes: number } {
  const headers = Object.create(null) as Record<string, string>
  let hasType = !json
  let hasTrace = false
  if (given !== undefined && (typeof given !== 'object' || given === null || Array.isArray(given))) {
    report('headers', 'headers are an object of strings')
  } else if (given !== undefined) {
    for (const [name, value] of Object.entries(given as Record<string, unknown>)) {
      checkHeader(name, value, report)
      const lower = name.toLowerCase()
      hasType ||= lower === 'content-type'
      hasTrace ||= lower === 'traceparent'
      headers[name] = value as string
    }
  }
  if (!hasType) headers['content-type'] = JSON_TYPE
  if (!hasTrace) Object.assign(headers, trace)
  let sizeBytes = 0
  let count = 0
  for (const name in headers) {
    count++
    sizeBytes += name.length + byteLength(headers[name])
  }
  if (count > MAX_HEADERS)
    report('headers', `${count} headers of at most ${MAX_HEADERS}. Put the rest into the payload`)
  return { json: JSON.stringify(headers), sizeBytes }
}

function checkHeader(name: string, value: unknown, report: Report): void {
  const path = `headers[${JSON.stringify(name.slice(0, 60))}]`
  if (!TOKEN.test(name) || name.length > MAX_NAME_BYTES) {
    report(
      path,
      `a name is letters, digits and any of !#$%&'*+.^_\`|~- (an HTTP token), at most ${MAX_NAME_BYTES} of them`,
    )
  }
  if (name.toLowerCase().startsWith(HEADER_PREFIX))
    report(path, `names that begin with ${HEADER_PREFIX} belong to Millrace. Rename it`)
  if (typeof value !== 'string') report(path, `got a ${typeof value}. A value is a string`)
  else if (LINE_BREAK.test(value) || !value.isWellFormed()) {
    report(path, 'the value holds a NUL, CR, LF or half of a surrogate pair. Encode it, for instance as base64url')
  }
}

function byteLength(text: unknown): number {
  return typeof text === 'string' ? Buffer.byteLength(text) : 0
}
