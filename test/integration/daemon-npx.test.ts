/** The daemon as npx starts it: behind a shell that gets the signals and hands none on. */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { expect, test } from 'vitest'
import { createMemoryBroker, serveMemory } from '../../src/brokers/memory/index.ts'
import { track } from '../support/leaks.ts'
import { createTestDatabase, describeWith } from '../support/services.ts'

const MAIN = path.resolve(import.meta.dirname, '../../src/cli/main.ts')

describeWith('postgres18', 'millrace relay behind the shell of npx', () => {
  test('drains when the shell is ended by SIGTERM, and gives the lease back', async () => {
    const database = await createTestDatabase()
    const server = await serveMemory(createMemoryBroker(), { port: 0 })
    const command = `'${process.execPath}' '${MAIN}' relay --database-url '${database.url}' --broker '${server.url}'; true`
    const shell = spawn('sh', ['-c', command], { env: { PATH: process.env['PATH'], npm_command: 'exec' } })
    const release = track('the shell', async () => shell.kill('SIGKILL'))
    let out = ''
    const said = (text: string): Promise<void> =>
      new Promise((resolve) => {
        const look = (): void => {
          if (!out.includes(text)) return
          shell.stdout.off('data', look)
          resolve()
        }
        shell.stdout.on('data', look)
        look()
      })
    shell.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()))
    await said('"state":"relaying"')
    const closed = new Promise((resolve) => shell.on('close', resolve))
    shell.kill('SIGTERM')
    await said('"event":"drained"')
    // The pipe closes when the last process that holds it has ended.
    await closed
    const { rows } = await database.pool.query('select count(*)::int as held from outbox.lease where token is not null')
    expect(rows).toEqual([{ held: 0 }])
    release()
    await server.close()
    await database.close()
  })
})
