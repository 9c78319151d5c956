import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import { converse } from '../../src/testing/services/conversation.ts'

async function greeter(greeting: string): Promise<number> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.write(greeting)
  })
  onTestFinished(() => void server.close())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}

test('what cannot be read is told to whoever asked, and not to the process', async () => {
  const asked = converse({ port: await greeter('INFO {') }, undefined, (heard) => JSON.parse(String(heard)) as unknown)
  await expect(asked).rejects.toThrow(SyntaxError)
})

test('a peer that says nothing of use in time is no answer', async () => {
  expect(await converse({ port: await greeter('?') }, undefined, () => undefined, 50)).toBeUndefined()
})
