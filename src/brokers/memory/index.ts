/**
 * The broker in memory (`millrace/memory`): a product, not a mock, held to the same conformance suite as the others.
 *
 * `memory-broker.ts` keeps topics (`topic-log.ts`) and groups (`group.ts` coordinates, `member.ts` hands over);
 * `local-client.ts` is the port onto it in this process, `remote/` the same over a local socket, so that a process
 * can be killed while the broker lives on in another.
 */
export { memory } from './memory.ts'
export type { MemoryOptions } from './memory.ts'
export { createMemoryBroker } from './memory-broker.ts'
export type { MemoryBroker, MemoryBrokerOptions, MemoryBrokerStats } from './memory-broker.ts'
export type { PublishFault, PublishFaults } from './publish-faults.ts'
export { serveMemory } from './remote/serve-memory.ts'
export type { MemoryServer, ServeMemoryOptions } from './remote/serve-memory.ts'
