import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { expect, onTestFinished, test } from 'vitest'
import { isNewEnough } from '../../src/testing/services/nats-binary.ts'
import { startNats } from '../../src/testing/services/index.ts'
import { describeWith, services } from '../support/services.ts'

async function connected(servers: string): Promise<NatsConnection> {
  const connection = await connect({ servers })
  onTestFinished(() => connection.close())
  return connection
}

describeWith('nats', 'NATS of the run', () => {
  test('is new enough for atomic batches, and stores what it acknowledges', async () => {
    const connection = await connected(services().nats as string)
    expect(isNewEnough(connection.info?.version ?? '')).toBe(true)
    const manager = await jetstreamManager(connection)
    const name = `services-${process.pid}`
    await manager.streams.add({ name, subjects: [`${name}.>`], storage: 'file' })
    const ack = await jetstream(connection).publish(`${name}.a`, 'x')
    expect(ack).toMatchObject({ stream: name, seq: 1 })
    await manager.streams.delete(name)
  })
})

describeWith('private nats', 'a private NATS', () => {
  test('keeps its streams and its port over a restart and a SIGKILL', async () => {
    const server = await startNats({ settings: { jetstream: { sync_interval: 'always' } } })
    onTestFinished(() => server.dispose())
    const { pid, port } = server
    const before = await connect({ servers: server.address, reconnect: false })
    const manager = await jetstreamManager(before)
    await manager.streams.add({ name: 'kept', subjects: ['kept'], storage: 'file' })
    await jetstream(before).publish('kept', 'x')
    await server.restart()
    await server.kill()
    await expect(connect({ servers: server.address, reconnect: false })).rejects.toThrow()
    await server.start()
    const after = await connected(server.address)
    const { state } = await (await jetstreamManager(after)).streams.info('kept')
    expect(state.messages).toBe(1)
    expect(server.port).toBe(port)
    expect(server.pid).not.toBe(pid)
  })
})
