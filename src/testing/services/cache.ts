/**
 * What is fetched or built once and kept for the next run, outside the repository: `$XDG_CACHE_HOME/millrace`, or
 * `~/.cache/millrace`. Runs may start at once: each builds in a folder of its own and moves the result into place in one
 * step, so what stands at its final name is whole, and whoever comes second throws the own result away.
 */
import { mkdir, mkdtemp, readdir, rename, rm, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../core/clock.ts'

const DRAFT = '.draft-'
const STALE_MS = 3_600_000

/** The folder of the cache. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  const base = env.XDG_CACHE_HOME
  return join(base === undefined || base === '' ? join(homedir(), '.cache') : base, 'millrace')
}

/** The folder `name` of the cache, filled by `build` when it is not there. */
export async function cached(
  name: string,
  build: (draft: string) => Promise<void>,
  cache = cacheFolder(),
): Promise<string> {
  const final = join(cache, name)
  if (await isThere(final)) return final
  await mkdir(cache, { recursive: true })
  await removeStaleDrafts(cache)
  const draft = await mkdtemp(join(cache, `${name}${DRAFT}`))
  try {
    await build(draft)
    await rename(draft, final)
  } catch (error) {
    await rm(draft, { recursive: true, force: true })
    if (await isThere(final)) return final
    throw error
  }
  return final
}

/** Drafts of builds that died. One that is still at work is younger than that. */
async function removeStaleDrafts(cache: string): Promise<void> {
  for (const name of await readdir(cache)) {
    if (!name.includes(DRAFT)) continue
    const draft = join(cache, name)
    const { mtimeMs } = await stat(draft).catch(() => ({ mtimeMs: Infinity }))
    if (systemClock.now() - mtimeMs > STALE_MS) await rm(draft, { recursive: true, force: true })
  }
}

function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  )
}
