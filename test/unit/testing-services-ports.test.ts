import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { expect, onTestFinished, test, vi } from 'vitest'
import { freePort } from '../../src/testing/services/ports.ts'

/** What is given when this port comes first, and after it whichever chance brings. */
function given(port: number): Promise<number> {
  const random = vi.spyOn(Math, 'random').mockReturnValueOnce((port - 10_240 + 0.5) / (32_000 - 10_240))
  return freePort().finally(() => random.mockRestore())
}

test('a port is given once, though nobody listens there yet', async () => {
  const port = await freePort()
  expect(await given(port)).not.toBe(port)
})

test('a port that another process was given is not given', async () => {
  const sign = createSocket('udp4')
  onTestFinished(() => void sign.close())
  const port = await new Promise<number>((resolve) => {
    const bind = (): void => void sign.bind({ address: '127.0.0.1', exclusive: true, port: anyPort() })
    sign.on('error', bind).on('listening', () => resolve(sign.address().port))
    bind()
  })
  expect(await given(port)).not.toBe(port)
})

test('a port where somebody listens is not given', async () => {
  const server = createServer()
  onTestFinished(() => void server.close())
  const listening = once(server, 'listening')
  const listen = (): void => void server.listen(anyPort(), '127.0.0.1')
  server.on('error', listen)
  listen()
  await listening.catch(() => once(server, 'listening'))
  const { port } = server.address() as { port: number }
  expect(await given(port)).not.toBe(port)
})

function anyPort(): number {
  return 10_240 + Math.floor(Math.random() * (32_000 - 10_240))
}
