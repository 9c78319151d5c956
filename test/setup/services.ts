/** Finds or starts the real services once per run, says which they are, and ends them with the run. */
import type { TestProject } from 'vitest/node'
import { startServices, type ServiceAddresses, type ServiceName } from '../../src/testing/services/index.ts'

declare module 'vitest' {
  interface ProvidedContext {
    runId: string
    services: ServiceAddresses
    startable: readonly ServiceName[]
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const started = await startServices({
    env: process.env,
    print: (line) => console.log(`  ${line}`),
    ...(isPure(process.argv) ? { services: [] } : {}),
  })
  project.provide('runId', `${process.pid}_${Date.now().toString(36)}`)
  project.provide('services', started.addresses)
  project.provide('startable', started.startable)
  return () => started.stop()
}

/** `vitest run test/unit …`: nothing there needs a server. */
function isPure(args: readonly string[]): boolean {
  const paths = args.filter((arg) => arg.startsWith('test/'))
  return paths.length > 0 && paths.every((path) => /^test\/(unit|types)\b/.test(path))
}
