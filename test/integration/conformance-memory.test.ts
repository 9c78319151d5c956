import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { randomUUID } from 'node:crypto'
import { createMemoryBroker, memory, serveMemory } from '../../src/brokers/memory/index.ts'
import { runConformance } from '../support/conformance.ts'

runConformance('the memory broker in this process', () => {
  const host = createMemoryBroker()
  return { broker: async () => memory({ host }) }
})

runConformance('the memory broker over a TCP socket', async () => {
  const server = await serveMemory(createMemoryBroker())
  return { broker: async () => memory({ url: server.url }), dispose: () => server.close() }
})

runConformance('the memory broker over a unix socket', async () => {
  const path = join(tmpdir(), `millrace-${randomUUID()}.sock`)
  const server = await serveMemory(createMemoryBroker(), { path })
  return { broker: async () => memory({ url: server.url }), dispose: () => server.close() }
})
