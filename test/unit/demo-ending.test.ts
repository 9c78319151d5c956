import { describe, expect, test } from 'vitest'
import { Cleanup } from '../../src/cli/demo/cleanup.ts'
import { Cut } from '../../src/cli/demo/cut.ts'

describe('what cuts the demo short', () => {
  test('ends every wait, and the first cause stands', async () => {
    const cut = new Cut()
    const waits = [cut.race(new Promise(() => {})), cut.until(() => false)]
    cut.now({ kind: 'failure', error: new Error('the relay is gone') })
    cut.now({ kind: 'time' })
    for (const wait of waits) await expect(wait).rejects.toThrow('the relay is gone')
    await expect(cut.until(() => false)).rejects.toThrow('the relay is gone')
    expect(cut.cause?.kind).toBe('failure')
  })

  test('is nothing as long as nothing happens', async () => {
    const cut = new Cut()
    let looks = 0
    await cut.until(() => ++looks === 3)
    expect(await cut.race(Promise.resolve('done'))).toBe('done')
    expect(cut.cause).toBeUndefined()
  })

  test('a wait that fails after the cut is nobody’s unhandled rejection', async () => {
    const cut = new Cut()
    const late = Promise.withResolvers<void>()
    const wait = cut.race(late.promise)
    cut.now({ kind: 'signal', signal: 'SIGINT' })
    await expect(wait).rejects.toThrow('cut short: signal')
    late.reject(new Error('too late'))
    await new Promise((resolve) => setImmediate(resolve))
  })
})

describe('the cleanup', () => {
  test('ends the last first, tells of what does not end well, and goes on', async () => {
    const cleanup = new Cleanup()
    const ended: string[] = []
    const troubles: string[] = []
    cleanup.add('first', async () => void ended.push('first'))
    cleanup.add('second', () => Promise.reject(new Error('it is stuck')))
    cleanup.add('third', async () => void ended.push('third'))
    await cleanup.run((trouble) => troubles.push(trouble))
    expect(ended).toEqual(['third', 'first'])
    expect(troubles).toEqual(['second did not end well: it is stuck'])
    await cleanup.run((trouble) => troubles.push(trouble))
    expect(ended).toHaveLength(2)
  })
})
