/** Finds or starts the real services once per run, says which they are, and ends them with the run. */
import type { TestProject } from 'vitest/node'
import { startServices, type ServiceAddresses } from '../../src/testing/services/index.ts'

declare module 'vitest' {
  interface ProvidedContext {
    runId: string
    services: ServiceAddresses
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const started = await startServices({ env: process.env, print: (line) => console.log(`  ${line}`) })
  project.provide('runId', `${process.pid}_${Date.now().toString(36)}`)
  project.provide('services', started.addresses)
  return () => started.stop()
}
