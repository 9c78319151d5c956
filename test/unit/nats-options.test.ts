import { execFile } from 'node:child_process'
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { nats } from '../../src/brokers/nats/index.ts'
import { resolveNatsOptions } from '../../src/brokers/nats/nats-options.ts'

test('servers come as host and port, with or without a scheme; a login in the URL is taken out of it', () => {
  const plain = resolveNatsOptions({ servers: ['a', 'b:4223', 'nats://c:80', 'nats://[::1]:4222'] })
  expect(plain.servers).toEqual(['a:4222', 'b:4223', 'c:80', '[::1]:4222'])
  expect(plain.tls).toBeUndefined()
  const login = resolveNatsOptions({ servers: 'tls://relay:p%40ss@nats.example:4222' })
  expect(login).toMatchObject({ pass: 'p@ss', servers: ['nats.example:4222'], tls: {}, user: 'relay' })
  expect(resolveNatsOptions({ servers: 'nats://secret@host' })).toMatchObject({ token: 'secret', user: undefined })
})

test('all that is wrong is said at once, without a secret in it', () => {
  const wrong = { pass: 7, servers: 'nats://relay:hunter2@', serverz: 1, windowMessages: 0 }
  let message = ''
  try {
    nats(wrong as unknown as Parameters<typeof nats>[0])
  } catch (error) {
    message = (error as Error).message
  }
  for (const word of ['pass', 'servers', 'did you mean `servers`', 'windowMessages']) expect(message).toContain(word)
  expect(message).not.toContain('hunter2')
})

test('making a broker connects to nothing, and its largest message is not known before a connection', () => {
  const broker = nats({ servers: 'nowhere.invalid' })
  expect(broker.capabilities.maxMessageBytes).toBeUndefined()
  expect(broker.capabilities.dedupeWindowMs).toBe(120_000)
})

test('a missing peer is named by the line that installs it', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'millrace-nats-peers-'))
  try {
    // The sources alone, where no package can be found.
    await cp('src/core', join(folder, 'src/core'), { recursive: true })
    await cp('src/brokers', join(folder, 'src/brokers'), { recursive: true })
    const script = `import { nats } from './src/brokers/nats/index.ts'
      await nats({ servers: 'localhost' }).admin.createTopic('t').catch((e) => console.log(e.code, e.message))`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], {
      cwd: folder,
    })
    expect(stdout).toMatch(/^PEER_MISSING .*npm i @nats-io\/transport-node @nats-io\/jetstream$/m)
  } finally {
    await rm(folder, { force: true, recursive: true })
  }
})
