import { describe, expect, test } from 'vitest'
import { createView, type Progress, type View } from '../../src/cli/demo/live-view.ts'
import type { Clock } from '../../src/core/clock.ts'

const ESC = '\u001b'

const HALF: Progress = { committed: 600, dropped: 9, elapsedMs: 2000, handled: 500, kills: 1, published: 550 }

/** A view on a screen of its own, with a hand on the clock. */
function stage(options: { readonly colour?: boolean; readonly columns?: number; readonly live: boolean }): {
  readonly passMs: (ms: number) => void
  readonly timers: () => number
  readonly view: View
  readonly written: () => string
} {
  let written = ''
  let nowMs = 0
  let due: { readonly atMs: number; readonly callback: () => void }[] = []
  const clock: Clock = {
    now: () => nowMs,
    monotonic: () => nowMs,
    random: () => 0.5,
    setTimer(callback, delayMs) {
      const timer = { atMs: nowMs + delayMs, callback }
      due.push(timer)
      return { clear: () => void (due = due.filter((other) => other !== timer)) }
    },
  }
  const { colour = false, columns = 80, live } = options
  const view = createView({
    clock,
    colour,
    columns: () => columns,
    live,
    orders: 1000,
    out: (text) => (written += text),
  })
  return {
    passMs(ms) {
      nowMs += ms
      const ripe = due.filter(({ atMs }) => atMs <= nowMs)
      due = due.filter(({ atMs }) => atMs > nowMs)
      for (const { callback } of ripe) callback()
    },
    timers: () => due.length,
    view,
    written: () => written,
  }
}

/** What is on the screen after these bytes: lines, with what the cursor went back over written anew. */
function screen(bytes: string): readonly string[] {
  const lines = ['']
  for (const part of bytes.split(new RegExp(`(\\n|${ESC}\\[\\d+A${ESC}\\[J)`))) {
    const up = new RegExp(`^${ESC}\\[(\\d+)A`).exec(part)
    if (part === '\n') lines.push('')
    else if (up === null) lines[lines.length - 1] += part
    else lines.splice(lines.length - 1 - Number(up[1]), Infinity, '')
  }
  return lines
}

describe('the view of the demo, not on a terminal', () => {
  test('writes a line a second, and what is said between, without control characters', () => {
    const { passMs, view, written } = stage({ live: false })
    view.say('hello')
    view.start(() => HALF)
    passMs(999)
    expect(written().split('\n')).toHaveLength(3)
    passMs(1)
    view.say('the relay is dead')
    view.end()
    const line =
      '  2.0 s  committed 600  published 550  handled 500  duplicates dropped 9  lag 100  rate 0/s  relay kills 1'
    expect(written().split('\n')).toEqual(['hello', line, line, 'the relay is dead', line, ''])
  })

  test('the rate is that of the last seconds', () => {
    const { passMs, view, written } = stage({ live: false })
    let seconds = -1
    view.start(() => ({ ...HALF, elapsedMs: ++seconds * 1000, handled: seconds < 5 ? 0 : (seconds - 4) * 700 }))
    for (let i = 0; i < 8; i++) passMs(1000)
    const rates = [...written().matchAll(/rate (\d+)/g)].map(([, rate]) => Number(rate))
    expect(rates).toEqual([0, 0, 0, 0, 0, 350, 700, 700, 700])
  })
})

describe('the view of the demo, on a terminal', () => {
  test('stays in place, below what was said', () => {
    const { passMs, view, written } = stage({ live: true })
    view.say('hello')
    let handled = 500
    view.start(() => ({ ...HALF, handled }))
    passMs(100)
    handled = 501
    view.say('the relay is dead')
    passMs(100)
    view.end()
    view.say('the end')
    expect(screen(written())).toEqual([
      'hello',
      'the relay is dead',
      expect.stringMatching(/^ {2}committed {2}█{16}░{12} +600 /),
      expect.stringMatching(/^ {2}published {2}█{15}░{13} +550 /),
      expect.stringMatching(/^ {2}handled {4}█{14}░{14} +501 /),
      expect.stringMatching(/^ {2}lag 99 · \d+\/s · duplicates dropped 9 · relay kills 1 · 2\.0 s$/),
      'the end',
      '',
    ])
  })

  test.each([40, 60, 80, 200])('fits into %i columns, with and without colours', (columns) => {
    for (const colour of [true, false]) {
      const { view, written } = stage({ colour, columns, live: true })
      view.start(() => ({ ...HALF, committed: 1_000_000, handled: 1 }))
      const bare = written().replaceAll(new RegExp(`${ESC}\\[\\d+m`, 'g'), '')
      expect(bare === written()).toBe(!colour)
      for (const line of bare.split('\n')) expect(line.length).toBeLessThanOrEqual(columns)
    }
  })

  test('after the end nothing is drawn any more', () => {
    const { timers, view, written } = stage({ live: true })
    view.start(() => HALF)
    view.end()
    const before = written()
    expect(timers()).toBe(0)
    view.end()
    expect(written()).toBe(before)
  })
})
