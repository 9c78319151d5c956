import { chmod, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { Kafka, logLevel } from 'kafkajs'
import { expect, onTestFinished, test } from 'vitest'
import { allGone, childrenOf } from '../../src/testing/services/processes.ts'
import { describeWith, services } from '../support/services.ts'
import { CliProcess, type Ended } from './cli-process.ts'

const ORDERS = 2000
const TIMEOUT_MS = 120_000

/** Nothing is in the folder, or soon: what the demo has no time to wait for goes by itself, a moment after it. */
async function nothingLeftIn(folder: string): Promise<void> {
  await expect.poll(() => readdir(folder), { timeout: 30_000 }).toEqual([])
}

describeWith('private postgres18', 'millrace demo', () => {
  test(
    'with the broker in memory: the relay dies three times, every order is billed once and in order',
    async () => {
      const { environment, folder } = await privateFolder()
      expectPassed(await new CliProcess(demo(), environment).ended)
      await nothingLeftIn(folder)
    },
    TIMEOUT_MS,
  )

  test(
    'Ctrl-C ends everything it started',
    async () => {
      const running = await midStream()
      running.demo.signal('SIGINT')
      const { code, out } = await running.demo.ended
      expect(code).toBe(130)
      expect(out).toContain('SIGINT: ending everything.')
      expect(await allGone(running.pids, 30_000)).toBe(true)
      await nothingLeftIn(running.folder)
    },
    TIMEOUT_MS,
  )

  test(
    'kill -9 leaves nothing behind: relay, PostgreSQL and files go by themselves',
    async () => {
      const running = await midStream()
      running.demo.signal('SIGKILL')
      expect(await allGone(running.pids, 30_000)).toBe(true)
      await nothingLeftIn(running.folder)
    },
    TIMEOUT_MS,
  )

  test(
    'kill -9 while PostgreSQL is being made leaves no file behind',
    async () => {
      const { environment, folder } = await privateFolder()
      const started = new CliProcess(demo(), environment)
      await expect
        .poll(() => readdir(folder, { recursive: true }), { interval: 10, timeout: 60_000 })
        .toContainEqual(expect.stringMatching(/\/data\/base\/4$/))
      await started.kill()
      await nothingLeftIn(folder)
    },
    TIMEOUT_MS,
  )

  test(
    'a reader that goes away ends it without a word',
    async () => {
      const { environment, folder } = await privateFolder()
      const started = new CliProcess(['demo', '--orders', '500000'], environment)
      await started.printed(/^Millrace: /)
      started.closeOutput()
      expect(await started.ended).toMatchObject({ code: 143, err: '' })
      await nothingLeftIn(folder)
    },
    TIMEOUT_MS,
  )

  test(
    'a relay that ends by itself fails the demo with its last words',
    async () => {
      const running = await midStream()
      process.kill(running.relay, 'SIGKILL')
      const { code, out } = await running.demo.ended
      expect(code).toBe(1)
      expect(out).toMatch(/\nFAILED: The relay failed: signal SIGKILL\. Its last words:\n[\s\S]*"state":"relaying"/)
      expect(await allGone(running.pids, 30_000)).toBe(true)
    },
    TIMEOUT_MS,
  )

  test(
    'the time limit ends it: a clear failure, the verdict of what is there, and nothing left behind',
    async () => {
      const { environment, folder } = await privateFolder()
      // Long enough to be under way, on a busy machine as well, and far too short for so many.
      const run = (seconds: number): Promise<Ended> =>
        new CliProcess(['demo', '--orders', '500000', '--timeout-ms', `${seconds}000`], environment).ended
      let seconds = 15
      let ended = await run(seconds)
      while (seconds < 60 && !/ handled [1-9]/.test(ended.out)) ended = await run((seconds *= 2))
      const { code, out } = ended
      expect(code).toBe(1)
      expect(out).toContain(`FAILED: it did not come to its end within ${seconds} s. Raise --timeout-ms`)
      const verdict = /\nNOT COMPLETE: committed (\d+), effects (\d+), lost (\d+), double 0, out of order 0, /.exec(out)
      // What is under way when the time is up has no invoice yet; nothing else may lack one.
      const [committed, effects, lost] = (verdict ?? []).slice(1).map(Number) as [number, number, number]
      expect(committed - effects, out).toBe(lost)
      await nothingLeftIn(folder)
    },
    TIMEOUT_MS,
  )

  test.each(['nats://127.0.0.1:1', 'kafka://127.0.0.1:1'])(
    '%s, where nothing listens, is said at once',
    async (broker) => {
      const { environment, folder } = await privateFolder()
      const { code, out } = await new CliProcess(demo('--broker', broker), environment).ended
      expect(code).toBe(1)
      expect(out).toMatch(/\nFAILED: .*127\.0\.0\.1:1\b/)
      await nothingLeftIn(folder)
    },
    TIMEOUT_MS,
  )

  test('its lines are for people: no colours and no cursor movements in a pipe', async () => {
    const { environment } = await privateFolder()
    const { code, out } = await new CliProcess(['demo', '--orders', '100'], environment).ended
    expect(code).toBe(0)
    expect(out).not.toContain('\u001b')
    expect(out).toMatch(/^Millrace: 100 orders are committed in one database and billed in another/)
  })
})

/** The topics, or streams by their subjects, that a broker has. */
const topicsOf = {
  async kafka(address: string): Promise<readonly string[]> {
    const admin = new Kafka({ brokers: address.split(','), logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    const topics = await admin.listTopics()
    await admin.disconnect()
    return topics
  },
  async nats(address: string): Promise<readonly string[]> {
    const connection = await connect({ servers: address })
    const streams = await (await jetstreamManager(connection)).streams.list().next()
    await connection.close()
    return streams.flatMap(({ config }) => config.subjects)
  },
}

for (const name of ['kafka', 'nats'] as const) {
  describeWith(['private postgres18', name], `millrace demo --broker ${name}://…`, () => {
    test(
      'every order is billed once and in order, and the topic is gone afterwards',
      async () => {
        const url = `${name}://${services()[name]}`
        const { environment, folder } = await privateFolder()
        const ended = await new CliProcess(demo('--broker', url), environment).ended
        expectPassed(ended)
        await nothingLeftIn(folder)
        const topic = /topic (millrace-demo-[0-9a-f]{12}) is made/.exec(ended.out)?.[1]
        expect(topic).toBeDefined()
        expect(await topicsOf[name](services()[name] as string)).not.toContain(topic)
      },
      TIMEOUT_MS,
    )
  })
}

describeWith(['private postgres18', 'nats'], 'millrace demo --broker, with a password', () => {
  test(
    'a password in the URL of the broker is shown to nobody',
    async () => {
      const running = await midStream({ MILLRACE_BROKER: `nats://joe:s3cret@${services().nats}` })
      for (const pid of running.pids) expect(await commandOf(pid)).not.toContain('s3cret')
      running.demo.signal('SIGTERM')
      const { code, err, out } = await running.demo.ended
      expect([code, err]).toEqual([143, ''])
      expect(out).toContain('nats://joe:***@')
      expect(out).not.toContain('s3cret')
    },
    TIMEOUT_MS,
  )
})

function demo(...more: readonly string[]): readonly string[] {
  return ['demo', '--orders', String(ORDERS), '--timeout-ms', String(TIMEOUT_MS), ...more]
}

function expectPassed({ code, err, out }: Ended): void {
  expect(err).toBe('')
  expect(out.match(/^kill -9 \d+: the relay is dead/gm)).toHaveLength(3)
  expect(out).toContain('The relay was killed 3 times by kill -9')
  const [, twice = 0, dropped = 0] =
    /(\d+) messages were delivered twice[\s\S]* dropped (\d+) duplicates/.exec(out) ?? []
  expect(Number(twice)).toBeGreaterThanOrEqual(ORDERS / 50)
  expect(Number(dropped)).toBeGreaterThanOrEqual(Number(twice))
  expect(out).toMatch(
    /^ +\d+\.\d s {2}committed \d+ {2}published \d+ {2}handled \d+ {2}duplicates dropped \d+ {2}lag \d+/m,
  )
  expect(out.split('\n').slice(-8)).toEqual([
    expect.stringMatching(/^ {2}committed +2000 /),
    expect.stringMatching(/^ {2}effects +2000 /),
    expect.stringMatching(/^ {2}lost +0 /),
    expect.stringMatching(/^ {2}double +0 /),
    expect.stringMatching(/^ {2}out of order +0 /),
    expect.stringMatching(/^ {2}rolled back +222 .*; 0 of them billed$/),
    'PASSED: committed 2000, effects 2000, lost 0, double 0, out of order 0, rolled back and not published 222',
    '',
  ])
  expect(code).toBe(0)
}

/** A demo that has begun to bill orders, and all processes it started. */
async function midStream(more: Readonly<Record<string, string>> = {}): Promise<{
  readonly demo: CliProcess
  readonly folder: string
  readonly pids: readonly number[]
  readonly relay: number
}> {
  const { environment, folder } = await privateFolder()
  const process_ = new CliProcess(['demo', '--orders', '500000', '--timeout-ms', String(TIMEOUT_MS)], {
    ...environment,
    ...more,
  })
  await process_.printed(/ handled [1-9]/)
  const pids = await descendantsOf(process_.pid)
  const commands = await Promise.all(pids.map(async (pid) => [pid, await commandOf(pid)] as const))
  const relay = commands.find(([, command]) => command.includes('relay\0--database-url'))?.[0]
  expect(relay).toBeDefined()
  expect(commands.some(([, command]) => command.includes('/bin/postgres'))).toBe(true)
  return { demo: process_, folder, pids, relay: relay as number }
}

async function descendantsOf(pid: number): Promise<readonly number[]> {
  const children = await childrenOf(pid)
  return [...children, ...(await Promise.all(children.map(descendantsOf))).flat()]
}

function commandOf(pid: number): Promise<string> {
  return readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
}

/** A folder for the demo's temporary files, which PostgreSQL's user may enter. */
async function privateFolder(): Promise<{
  readonly environment: { readonly TMPDIR: string }
  readonly folder: string
}> {
  const folder = await mkdtemp(path.join(tmpdir(), 'millrace-demo-test-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  await chmod(folder, 0o755)
  return { environment: { TMPDIR: folder }, folder }
}
