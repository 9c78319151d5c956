import { join } from 'node:path'
import { MillraceError } from '../../core/errors.ts'
import { cached } from './cache.ts'
import { onPath, run } from './commands.ts'

const VERSION = '2.15.2'
const OLDEST: readonly [major: number, minor: number] = [2, 12]

/** Where a nats-server is, and where it came from. */
export interface NatsBinary {
  readonly command: string
  readonly origin: string
}

/** Finds a nats-server: one on the PATH that is new enough for atomic batches, or one built by Go, once. */
export async function findNats(): Promise<NatsBinary> {
  const installed = await onPath('nats-server')
  if (installed !== undefined && isNewEnough(await run(installed, ['--version'], { timeoutMs: 10_000 }))) {
    return { command: installed, origin: installed }
  }
  const folder = await cached(`nats-server-${VERSION}`, build)
  return { command: join(folder, 'nats-server'), origin: `go install v${VERSION}` }
}

/** Whether a version as nats-server prints it has atomic batches. */
export function isNewEnough(version: string): boolean {
  const [, major, minor] = /v?(\d+)\.(\d+)\./.exec(version) ?? []
  if (major === undefined || minor === undefined) return false
  return Number(major) > OLDEST[0] || (Number(major) === OLDEST[0] && Number(minor) >= OLDEST[1])
}

async function build(draft: string): Promise<void> {
  const go = await onPath('go')
  if (go === undefined) {
    throw new MillraceError('SERVICE_UNAVAILABLE', 'neither nats-server >= 2.12 nor go is on the PATH')
  }
  await run(go, ['install', `github.com/nats-io/nats-server/v2@v${VERSION}`], {
    cwd: draft,
    env: { ...process.env, GOBIN: draft, GOFLAGS: '' },
    timeoutMs: 600_000,
  })
}
