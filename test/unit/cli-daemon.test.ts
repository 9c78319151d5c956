import { EventEmitter } from 'node:events'
import { describe, expect, test } from 'vitest'
import { parseBrokerUrl } from '../../src/daemon/broker-url.ts'
import { createDaemonLogger } from '../../src/daemon/daemon-logger.ts'
import { errorFields, explainError } from '../../src/daemon/explain-error.ts'
import { createRedactor, redactUrls, secretsOf } from '../../src/daemon/redact.ts'
import { reportStats } from '../../src/daemon/stats-report.ts'
import { listenForStop } from '../../src/daemon/stop-signals.ts'
import { MillraceError } from '../../src/core/errors.ts'
import type { Clock } from '../../src/core/clock.ts'

describe('broker URLs', () => {
  test.each([
    ['kafka://k1:9092,k2:9093', 'kafka', ['k1:9092', 'k2:9093']],
    ['kafka://k1,k2/', 'kafka', ['k1:9092', 'k2:9092']],
    ['kafka://[::1]:9092', 'kafka', ['[::1]:9092']],
    ['nats://127.0.0.1:4222', 'nats', ['127.0.0.1:4222']],
    ['nats://n1,n2:4223', 'nats', ['n1:4222', 'n2:4223']],
    ['nats://u:p@n1,n2:4223', 'nats', ['u:p@n1:4222', 'u:p@n2:4223']],
    ['memory://127.0.0.1:4000', 'memory', []],
    ['memory:///run/demo.sock', 'memory', []],
  ])('%s is read', (url, system, servers) => {
    expect(parseBrokerUrl(url)).toEqual({ system, servers, url })
  })

  test('kafka+platformatic:// names the client package', () => {
    const url = 'kafka+platformatic://k1:9092,k2'
    const servers = ['k1:9092', 'k2:9092']
    expect(parseBrokerUrl(url)).toEqual({ client: 'platformatic', servers, system: 'kafka', url })
  })

  test('NATS: what a stored event means is in the query', () => {
    const url = 'nats://t@n1,n2?durability=fsync'
    const servers = ['t@n1:4222', 't@n2:4222']
    expect(parseBrokerUrl(url)).toEqual({ durability: 'fsync', servers, system: 'nats', url })
  })

  test.each([
    'kafka',
    'kafka+',
    'kafka+other://k1:9092',
    'kafka+platformatic://u:p@k1:9092',
    'nats+platformatic://k1:9092',
    'kafka://',
    'kafka:///',
    'kafka://k1:0',
    'kafka://k1:65536',
    'kafka://k1:9092,',
    'kafka://k1:x',
    'kafka://k 1',
    'http://k1:9092',
    'kafka://u:p@k1:9092',
    'nats://u:p@',
    'nats://h?durability=always',
    'nats://h?',
    'kafka://h?durability=fsync',
    'memory:',
    'memory://somewhere:4000',
    'memory://',
    '',
  ])('%j is refused', (url) => {
    expect(() => parseBrokerUrl(url)).toThrow(RangeError)
  })
})

describe('secrets', () => {
  test.each([
    ['postgres://joe:pw@h/db', 'postgres://joe:***@h/db'],
    ['postgres://joe@h/db', 'postgres://joe@h/db'],
    ['postgres://joe:p@w:x@h/db', 'postgres://joe:***@h/db'],
    ['postgres://joe:p/w@h/db', 'postgres://joe:***@h/db'],
    ['nats://token@h:4222', 'nats://***@h:4222'],
    ['kafka://joe:pw@h:1,h:2', 'kafka://joe:***@h:1,h:2'],
    ['postgres://h/db?user=joe&password=pw&x=1', 'postgres://h/db?user=joe&password=***&x=1'],
    ['kafka+platformatic://joe:pw@h:1', 'kafka+platformatic://joe:***@h:1'],
    ['kafka://h:9092,h:9093', 'kafka://h:9092,h:9093'],
    ['tried postgres://a:b@c/d and nats://e@f', 'tried postgres://a:***@c/d and nats://***@f'],
  ])('%s is shown as %s', (text, shown) => {
    expect(redactUrls(text)).toBe(shown)
  })

  test('a secret is hidden wherever it stands, as it was written and decoded', () => {
    const redact = createRedactor([...secretsOf('postgres://joe:a%2Fb@h/db'), undefined, ''])
    expect(redact('a%2Fb and a/b, joe')).toBe('*** and ***, joe')
  })

  test('a log line hides them in every text and stays what it was otherwise', () => {
    const lines: string[] = []
    const log = createDaemonLogger('info', createRedactor(['12345', 'hush']), { write: (line) => lines.push(line) })
    const error = new Error('refused: hush', { cause: new Error('hush again') })
    log.info({ url: 'postgres://joe:other@h', deep: [{ hush: 'hush', size: 12345 }], error }, 'hush 12345')
    log.debug({}, 'not said')
    expect(lines).toHaveLength(1)
    expect(lines[0]?.endsWith('\n')).toBe(true)
    expect(JSON.parse(lines[0] as string)).toEqual({
      deep: [{ hush: '***', size: 12345 }],
      error: { cause: { message: '*** again', name: 'Error' }, message: 'refused: ***', name: 'Error' },
      level: 'info',
      message: '*** ***',
      pid: process.pid,
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/) as string,
      url: 'postgres://joe:***@h',
    })
  })
})

describe('errors in words', () => {
  test('the code, the causes, and no stack', () => {
    const error = new MillraceError('CONNECTION_LOST', 'the connection broke', {
      cause: Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }),
    })
    expect(explainError(error)).toBe('the connection broke (CONNECTION_LOST): read ECONNRESET')
    expect(errorFields(error)).toEqual({
      cause: { code: 'ECONNRESET', message: 'read ECONNRESET', name: 'Error' },
      code: 'CONNECTION_LOST',
      message: 'the connection broke',
      name: 'MillraceError',
      retryable: true,
    })
  })

  test('a host with several addresses that all refuse', () => {
    const refused = [new Error('connect ECONNREFUSED ::1:1'), new Error('connect ECONNREFUSED 127.0.0.1:1')]
    expect(explainError(new AggregateError(refused))).toBe(
      'connect ECONNREFUSED ::1:1, connect ECONNREFUSED 127.0.0.1:1',
    )
  })

  test('what is no error, a circle of causes, a cause that says the same', () => {
    expect(explainError('text')).toBe('text')
    const circle = new Error('round')
    circle.cause = circle
    expect(explainError(circle)).toBe('round')
    expect(explainError(new Error('a: b', { cause: new Error('b') }))).toBe('a: b')
  })
})

describe('signals', () => {
  test('the first and the second are told apart, whichever they are, and nobody listens after disposal', async () => {
    const emitter = new EventEmitter()
    const signals = listenForStop(emitter as never)
    emitter.emit('SIGTERM', 'SIGTERM')
    expect(await signals.first).toBe('SIGTERM')
    emitter.emit('SIGINT', 'SIGINT')
    expect(await signals.second).toBe('SIGINT')
    signals[Symbol.dispose]()
    expect(emitter.eventNames()).toEqual([])
  })
})

describe('the stats line', () => {
  test('is written when a number changed, never while idle, and not after disposal', () => {
    const lines: unknown[] = []
    const log = createDaemonLogger('info', (text) => text, { write: (line) => lines.push(JSON.parse(line)) })
    let tick = (): void => undefined
    let cleared = 0
    const clock: Clock = {
      monotonic: () => 0,
      now: () => 0,
      random: () => 0,
      setTimer: (callback) => {
        tick = callback
        return { clear: () => void cleared++ }
      },
    }
    let published = 0
    const report = reportStats(log, () => ({ published }), clock)
    tick()
    expect(lines).toEqual([])
    published = 3
    tick()
    tick()
    expect(lines).toMatchObject([{ event: 'stats', message: 'progress', stats: { published: 3 } }])
    report[Symbol.dispose]()
    expect(cleared).toBe(1)
  })
})
