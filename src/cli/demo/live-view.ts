import { systemClock, type Clock, type Timer } from '../../core/clock.ts'

/** What is shown of a running demo. */
export interface Progress {
  readonly committed: number
  /** Duplicates that the inbox dropped. */
  readonly dropped: number
  readonly elapsedMs: number
  readonly handled: number
  readonly kills: number
  readonly published: number
}

/** How to show it. */
export interface ViewOptions {
  readonly clock?: Clock
  readonly colour: boolean
  readonly columns: () => number | undefined
  /** Whether lines may be written over: a terminal. */
  readonly live: boolean
  readonly orders: number
  out(text: string): void
}

/** The output of the demo: a few lines in place on a terminal, a line a second elsewhere, and whatever is said between. */
export interface View {
  /** Shows no more progress; the last state stays. */
  end(): void
  say(text: string): void
  /** Shows the progress from now on. */
  start(progress: () => Progress): void
}

const LIVE_INTERVAL_MS = 100
const PLAIN_INTERVAL_MS = 1000
/** The rate is that of the last seconds. */
const RATE_WINDOW_MS = 2000

/** Makes the view; nothing is written before somebody says something. */
export function createView(options: ViewOptions): View {
  return new LiveView(options)
}

class LiveView implements View {
  readonly #clock: Clock
  readonly #options: ViewOptions
  #drawnLines = 0
  #progress: (() => Progress) | undefined
  #samples: { readonly atMs: number; readonly handled: number }[] = []
  #timer: Timer | undefined

  constructor(options: ViewOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  start(progress: () => Progress): void {
    this.#progress = progress
    this.#tick()
  }

  say(text: string): void {
    this.#options.out(`${this.#erase()}${text}\n`)
    if (this.#options.live && this.#progress !== undefined) this.#draw()
  }

  end(): void {
    if (this.#progress === undefined) return
    this.#timer?.clear()
    this.#options.out(this.#erase())
    this.#draw()
    this.#drawnLines = 0
    this.#progress = undefined
  }

  #tick(): void {
    this.#draw()
    this.#timer = this.#clock.setTimer(() => this.#tick(), this.#options.live ? LIVE_INTERVAL_MS : PLAIN_INTERVAL_MS)
  }

  #draw(): void {
    if (this.#progress === undefined) return
    const progress = this.#progress()
    const perSecond = this.#rate(progress)
    if (!this.#options.live) return this.#options.out(`${plainLine(progress, perSecond)}\n`)
    const columns = Math.max(this.#options.columns() ?? 80, 40)
    const lines = liveLines(progress, perSecond, this.#options, columns)
    this.#options.out(`${this.#erase()}${lines.join('\n')}\n`)
    this.#drawnLines = lines.length
  }

  /** Takes the lines away that are written over. */
  #erase(): string {
    const lines = this.#drawnLines
    this.#drawnLines = 0
    return lines === 0 ? '' : `\u001b[${lines}A\u001b[J`
  }

  #rate({ elapsedMs, handled }: Progress): number {
    this.#samples.push({ atMs: elapsedMs, handled })
    while (this.#samples.length > 2 && (this.#samples[1]?.atMs ?? 0) <= elapsedMs - RATE_WINDOW_MS)
      this.#samples.shift()
    const first = this.#samples[0]
    if (first === undefined || elapsedMs - first.atMs < 1) return 0
    return Math.round(((handled - first.handled) / (elapsedMs - first.atMs)) * 1000)
  }
}

function plainLine(progress: Progress, perSecond: number): string {
  const { committed, dropped, elapsedMs, handled, kills, published } = progress
  return (
    `${(elapsedMs / 1000).toFixed(1).padStart(5)} s  committed ${committed}  published ${published}  handled ${handled}  ` +
    `duplicates dropped ${dropped}  lag ${committed - handled}  rate ${perSecond}/s  relay kills ${kills}`
  )
}

function liveLines(progress: Progress, perSecond: number, options: ViewOptions, columns: number): readonly string[] {
  const { committed, dropped, elapsedMs, handled, kills, published } = progress
  const { colour, orders } = options
  const bars = [
    ['committed', committed, '34', 'by the shop'],
    ['published', published, '33', "by the relay's checkpoint"],
    ['handled', handled, '32', 'by billing, in its database'],
  ] as const
  // A row without its bar and its label has 21 columns, the longest label with its gap 30.
  const labelled = columns >= 72
  const width = Math.min(30, columns - (labelled ? 52 : 22))
  const lines = bars.map(([name, count, code, by]) => {
    const filled = Math.min(width, Math.floor((count / orders) * width))
    const bar = paint('█'.repeat(filled), code, colour) + paint('░'.repeat(width - filled), '2', colour)
    return `  ${name.padEnd(10)} ${bar} ${String(count).padStart(7)}${labelled ? `   ${paint(by, '2', colour)}` : ''}`
  })
  const rest =
    `  lag ${committed - handled} · ${perSecond}/s · duplicates dropped ${dropped} · relay kills ${kills} · ` +
    `${(elapsedMs / 1000).toFixed(1)} s`
  return [...lines, rest.slice(0, columns - 1)]
}

function paint(text: string, code: string, colour: boolean): string {
  return colour && text !== '' ? `\u001b[${code}m${text}\u001b[0m` : text
}
