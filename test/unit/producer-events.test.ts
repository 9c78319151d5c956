import { describe, expect, test } from 'vitest'
import type { MillraceError } from '../../src/core/errors.ts'
import { timeOfId } from '../../src/core/ids.ts'
import type { Clock } from '../../src/core/clock.ts'
import { systemClock } from '../../src/core/clock.ts'
import { createOutbox } from '../../src/producer/index.ts'
import type { Outbox, OutboxEvent, OutboxOptions, StandardSchema } from '../../src/producer/index.ts'

const good = { topic: 't', key: 'k', type: 'x', payload: {} }

describe('an event that is wrong', () => {
  const circular: Record<string, unknown> = {}
  circular['self'] = circular
  test.each<[what: string, event: unknown, path: string]>([
    ['an empty topic', { ...good, topic: '' }, 'topic'],
    ['no topic', { ...good, topic: undefined }, 'topic'],
    ['a topic with a line break', { ...good, topic: 'a\r\nb' }, 'topic'],
    ['a topic of 256 bytes', { ...good, topic: 'é'.repeat(128) }, 'topic'],
    ['an empty type', { ...good, type: '' }, 'type'],
    ['a type with NUL', { ...good, type: 'a\0' }, 'type'],
    ['a type with half of a surrogate pair', { ...good, type: 'a\ud800' }, 'type'],
    ['a key with NUL', { ...good, key: 'a\0' }, 'key'],
    ['a key with LF', { ...good, key: 'a\nb' }, 'key'],
    ['a key with half of a surrogate pair', { ...good, key: '\udc00' }, 'key'],
    ['a key of 2049 bytes', { ...good, key: 'a'.repeat(2049) }, 'key'],
    ['a key that is a number', { ...good, key: 7 }, 'key'],
    ['no payload', { ...good, payload: undefined }, 'payload'],
    ['a payload that is a function', { ...good, payload: () => 1 }, 'payload'],
    ['a circular payload', { ...good, payload: circular }, 'payload'],
    ['a payload with a bigint', { ...good, payload: { n: 1n } }, 'payload'],
    ['a payload that is an ArrayBuffer', { ...good, payload: new ArrayBuffer(1) }, 'payload'],
    ['a payload of other numbers', { ...good, payload: new Float64Array(1) }, 'payload'],
    ['an id that is no uuid', { ...good, id: 'order-1' }, 'id'],
    ['headers that are a list', { ...good, headers: ['a'] }, 'headers'],
    ['a header with CR', { ...good, headers: { a: 'b\r' } }, 'headers["a"]'],
    ['a header with NUL', { ...good, headers: { a: '\0' } }, 'headers["a"]'],
    ['a header with half of a surrogate pair', { ...good, headers: { a: '\ud800' } }, 'headers["a"]'],
    ['a header that is a number', { ...good, headers: { a: 1 } }, 'headers["a"]'],
    ['a header whose name is no token', { ...good, headers: { 'a:b': '' } }, 'headers["a:b"]'],
    ['a header without a name', { ...good, headers: { '': '' } }, 'headers[""]'],
    ['a header of ours', { ...good, headers: { 'Millrace-Id': '' } }, 'headers["Millrace-Id"]'],
    [
      '65 headers',
      { ...good, headers: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`h${i}`, ''])) },
      'headers',
    ],
    ['more bytes than allowed', { ...good, payload: new Uint8Array(999_998) }, ''],
    ['no object', 'order.placed', ''],
    ['null', null, ''],
  ])('%s is refused with its place, and nothing is written', async (_, event, path) => {
    const { error, statements } = await tryAppend(createOutbox(), [good, event as OutboxEvent])
    expect(error.code).toBe('APPEND_INVALID_EVENT')
    expect(problemsOf(error).map((problem) => [problem.index, problem.path])).toEqual([[1, path]])
    expect(error.message).toContain(`events[1]${path === '' ? '' : `.${path}`}`)
    expect(statements).toEqual([])
  })

  test('is told together with every other problem of every event', async () => {
    const events = [
      { ...good, topic: '', headers: { 'a b': 'c\n' } },
      good,
      { ...good, type: '', key: '\0', payload: undefined },
    ]
    const { error } = await tryAppend(createOutbox(), events)
    expect(problemsOf(error).map(({ index, path }) => `${index} ${path}`)).toEqual([
      '0 topic',
      '0 headers["a b"]',
      '0 headers["a b"]',
      '2 type',
      '2 key',
      '2 payload',
    ])
  })

  test('never shows what it holds, and thousands of them make a short message', async () => {
    const secret = 'hunter2\n'
    const bad = { topic: secret, key: secret, type: secret, payload: 1n, headers: { a: secret } }
    const { error } = await tryAppend(
      createOutbox(),
      Array.from({ length: 3_000 }, () => bad),
    )
    expect(error.message).not.toContain('hunter2')
    expect(JSON.stringify(error.details)).not.toContain('hunter2')
    expect(error.message.split('\n')).toHaveLength(22)
    expect(problemsOf(error)).toHaveLength(1_000)
    expect(error.details['count']).toBe(15_000)
  })

  test('is also one whose id another event of the call has', async () => {
    const id = '01890a5d-ac96-774b-bcce-b302099a8057'
    const { error } = await tryAppend(createOutbox(), [
      { ...good, id },
      { ...good, id: id.toUpperCase() },
    ])
    expect(problemsOf(error)).toMatchObject([{ index: 1, path: 'id' }])
  })
})

describe('an event that is right', () => {
  test('of exactly the allowed bytes is taken, and one more is not', async () => {
    const outbox = createOutbox({ maxEventBytes: 100 })
    const event = (bytes: number) => ({
      topic: 'tt',
      key: 'é',
      type: 'x',
      payload: new Uint8Array(bytes),
      headers: { ab: 'ü' },
    })
    await append(outbox, [event(100 - 2 - 2 - 1 - 4)])
    const { error } = await tryAppend(outbox, [event(100 - 2 - 2 - 1 - 4 + 1)])
    expect(error.message).toContain('101 bytes')
    expect(error.message).toContain('maxEventBytes')
  })

  test('names its content type unless it brings one or is bytes', async () => {
    const { headers } = await append(createOutbox(), [
      good,
      { ...good, payload: Buffer.from('x') },
      { ...good, headers: { 'CONTENT-TYPE': 'a/b' } },
    ])
    expect(headers).toEqual([{ 'content-type': 'application/json' }, {}, { 'CONTENT-TYPE': 'a/b' }])
  })

  test('gets the time of its id from the clock', async () => {
    const clock: Clock = { ...systemClock, now: () => 1_700_000_000_123 }
    const { ids } = await append(createOutbox({ clock }), [good, good])
    expect(ids.map(timeOfId)).toEqual([1_700_000_000_123, 1_700_000_000_123])
    expect(new Set(ids).size).toBe(2)
  })

  test('needs no list when it is alone, and an empty list writes nothing', async () => {
    expect((await append(createOutbox(), good)).ids).toHaveLength(1)
    expect(await append(createOutbox(), [])).toMatchObject({ ids: [], headers: [] })
  })
})

describe('a catalog of events', () => {
  const positive = schema<number, { n: number }>((value) =>
    typeof value === 'number' && value > 0
      ? { value: { n: value } }
      : { issues: [{ message: 'not positive', path: ['a', { key: 0 }] }, { message: 'really' }] },
  )
  const events = {
    'order.placed': positive,
    slow: schema<string>((value) => Promise.resolve({ value: `${value as string}!` })),
  }

  test('stores what the schema makes of the payload, also when it answers later', async () => {
    const outbox = createOutbox({ events })
    const { payloads } = await append(outbox, [
      { topic: 't', type: 'order.placed', payload: 3 },
      { topic: 't', type: 'slow', payload: 'a' },
    ])
    expect(payloads).toEqual(['{"n":3}', '"a!"'])
  })

  test('tells the issues of a schema by their path, and a type it does not have', async () => {
    const outbox = createOutbox({ events })
    const { error } = await tryAppend(outbox, [
      { topic: 't', type: 'order.placed', payload: -1 },
      { topic: 't', type: 'order.plcaed', payload: 1 },
      { topic: 't', type: 'constructor', payload: 1 },
    ])
    expect(problemsOf(error).map(({ path, problem }) => `${path}: ${problem}`)).toEqual([
      'payload.a.0: not positive',
      'payload: really',
      "type: not in the events of this outbox; did you mean 'order.placed'?",
      'type: not in the events of this outbox. Add its schema to createOutbox({ events })',
    ])
  })

  test('refuses a payload whose schema refuses without a reason', async () => {
    const outbox = createOutbox({ events: { x: schema(() => ({ issues: [] })) } })
    const { error } = await tryAppend(outbox, [good])
    expect(problemsOf(error)).toMatchObject([{ index: 0, path: 'payload' }])
  })
})

test.each([
  [{ maxEventBytes: 0 }, 'maxEventBytes'],
  [{ maxEventByte: 5 }, 'did you mean `maxEventBytes`?'],
  [{ events: { a: {} } }, 'events'],
  [{ schemas: { outbox: '' } }, 'schemas.outbox'],
])('options %j are refused', (options, text) => {
  expect(() => createOutbox(options as unknown as OutboxOptions)).toThrow(text)
})

function schema<Input, Output = Input>(
  validate: StandardSchema<Input, Output>['~standard']['validate'],
): StandardSchema<Input, Output> {
  return { '~standard': { validate, vendor: 'test', version: 1 } }
}

type Appendable = Parameters<Outbox<never>['append']>[1]

async function append(outbox: unknown, events: unknown) {
  const statements: unknown[][] = []
  const tx = {
    query: (_text: string, params: unknown[] = []) => {
      statements.push(params)
      return Promise.resolve({ rows: [] })
    },
  }
  const { ids } = await (outbox as Outbox<never>).append(tx, events as Appendable)
  if (statements[0]?.length === 7) {
    const [lane, id, , key, , payload, one] = statements[0] as [
      string,
      string,
      string,
      string | null,
      string,
      Buffer,
      string,
    ]
    expect(lane).toBe(key ?? id)
    return { ids, headers: [JSON.parse(one) as unknown], payloads: [payload.toString('utf8')], statements }
  }
  const [bytes, , , , , headers, starts, lengths] = (statements[0] ?? [
    Buffer.alloc(0),
    '',
    '',
    '',
    '',
    '{}',
    '{}',
    '{}',
  ]) as [Buffer, ...string[]]
  const sizes = list(lengths)
  return {
    ids,
    headers: (JSON.parse(`[${(headers as string).slice(1, -1)}]`) as string[]).map(
      (text) => JSON.parse(text) as unknown,
    ),
    payloads: list(starts).map((start, n) => bytes.toString('utf8', start - 1, start - 1 + (sizes[n] as number))),
    statements,
  }
}

async function tryAppend(outbox: unknown, events: readonly unknown[]) {
  const statements: unknown[] = []
  const tx = { query: (text: string) => Promise.resolve({ rows: [statements.push(text)] }) }
  const error = await (outbox as Outbox<never>).append(tx, events as Appendable).then(
    () => expect.unreachable('it was taken'),
    (caught: unknown) => caught as MillraceError,
  )
  return { error, statements }
}

function list(text: string | undefined): number[] {
  return JSON.parse(`[${(text ?? '{}').slice(1, -1)}]`) as number[]
}

function problemsOf(error: MillraceError) {
  return error.details['problems'] as { index: number; path: string; problem: string }[]
}
