import { MillraceError } from '../../core/errors.ts'
import { onPath, run } from './commands.ts'

const OLDEST = 17

/** A Java runtime. */
export interface Java {
  readonly command: string
  /** As it prints it: `17.0.15`. */
  readonly version: string
}

/** Finds a Java runtime that is new enough for Kafka's broker. */
export async function findJava(): Promise<Java> {
  const command = await onPath('java')
  if (command === undefined) throw new MillraceError('SERVICE_UNAVAILABLE', 'java is not on the PATH')
  const [, version = '0'] = /version "([^"]+)"/.exec(await run(command, ['-version'], { timeoutMs: 20_000 })) ?? []
  if (Number.parseInt(version, 10) < OLDEST) {
    throw new MillraceError('SERVICE_UNAVAILABLE', `java is ${version}, Kafka needs ${OLDEST} or newer`)
  }
  return { command, version }
}
