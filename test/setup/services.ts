/** Finds or starts the real services once per run, says which they are, and ends them with the run. */
import pg from 'pg'
import type { TestProject } from 'vitest/node'
import { quoteIdentifier } from '../../src/postgres/sql.ts'
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
  const runId = `${process.pid}_${Date.now().toString(36)}`
  project.provide('runId', runId)
  project.provide('services', started.addresses)
  project.provide('startable', started.startable)
  return async () => {
    // A server that was here before us is left as it was found; ours go with all they hold.
    const { MILLRACE_TEST_POSTGRES, MILLRACE_TEST_POSTGRES15 } = process.env
    for (const url of [MILLRACE_TEST_POSTGRES, MILLRACE_TEST_POSTGRES15]) if (url) await dropDatabases(url, runId)
    await started.stop()
  }
}

async function dropDatabases(url: string, runId: string): Promise<void> {
  const admin = new pg.Client({ connectionString: url })
  await admin.connect()
  const { rows } = await admin.query<{ name: string }>(
    "select datname as name from pg_database where datname ~ ('^(test|template)_' || $1 || '(_|$)')",
    [runId],
  )
  for (const { name } of rows) await admin.query(`drop database ${quoteIdentifier(name)} with (force)`)
  await admin.end()
}

/** `vitest run test/unit …`: nothing there needs a server. */
function isPure(args: readonly string[]): boolean {
  const paths = args.filter((arg) => arg.startsWith('test/'))
  return paths.length > 0 && paths.every((path) => /^test\/(unit|types)\b/.test(path))
}
