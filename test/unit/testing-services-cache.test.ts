import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { cached, cacheFolder } from '../../src/testing/services/cache.ts'

async function emptyCache(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'millrace-cache-test-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  return folder
}

test('two builds at once leave one whole result, and neither fails', async () => {
  const cache = await emptyCache()
  let building = 0
  let letGo = (): void => {}
  const both = new Promise<void>((resolve) => (letGo = resolve))
  const build = (value: string) => async (draft: string) => {
    await writeFile(join(draft, 'half'), value)
    if (++building === 2) letGo()
    await both
    expect(await readdir(cache)).not.toContain('thing')
    await writeFile(join(draft, 'whole'), value)
  }
  const results = await Promise.all([cached('thing', build('a'), cache), cached('thing', build('b'), cache)])
  expect(results).toEqual([join(cache, 'thing'), join(cache, 'thing')])
  expect(await readdir(cache)).toEqual(['thing'])
  const [half, whole] = await Promise.all(['half', 'whole'].map((name) => readFile(join(cache, 'thing', name), 'utf8')))
  expect(half).toBe(whole)
})

test('a build that fails leaves nothing, and the next one is made', async () => {
  const cache = await emptyCache()
  const failing = async (draft: string): Promise<void> => {
    await writeFile(join(draft, 'half'), '')
    throw new Error('no network')
  }
  await expect(cached('thing', failing, cache)).rejects.toThrow('no network')
  expect(await readdir(cache)).toEqual([])
  await cached('thing', (draft) => writeFile(join(draft, 'whole'), ''), cache)
  await cached('thing', failing, cache)
  expect(await readdir(join(cache, 'thing'))).toEqual(['whole'])
})

test('the cache is outside the repository, where the desktop standard has it', () => {
  expect(cacheFolder({ XDG_CACHE_HOME: '/caches' })).toBe('/caches/millrace')
  expect(cacheFolder({})).toMatch(/\/\.cache\/millrace$/)
})
