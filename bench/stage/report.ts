/** The table as it grows, and its place in bench/RESULTS.md. */
import { readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Row } from './row.ts'
import type { StageOptions } from './stage.ts'

const FILE = path.join(import.meta.dirname, '..', 'RESULTS.md')

/** Prints what it is told, and remembers it. */
export class Report {
  readonly #lines: string[] = []
  readonly #options: StageOptions
  readonly #startedAt = performance.now()
  #missed = 0
  #met = 0

  constructor(options: StageOptions) {
    this.#options = options
  }

  /** The machine, and how busy it is already. */
  heading(postgres: string): void {
    const cpu = os.cpus()[0]?.model.trim()
    const memory = Math.round(os.totalmem() / 2 ** 30)
    const { full, rounds, scale } = this.#options
    this.#print(`## ${new Date().toISOString().slice(0, 10)}`)
    this.#print('')
    this.#print(
      `${os.availableParallelism()} cores (${cpu}), ${memory} GiB, ${os.type()}; Node ${process.version}, PostgreSQL ${postgres}; everything`,
    )
    this.#print(
      `on this machine, load ${loads()} at the start (1, 5, 15 minutes). Events of 1 KB; medians of ${rounds}${scale === 1 ? '' : `; ${scale} of the events`}${full ? '; the long way' : ''}.`,
    )
    this.#print('')
    this.#print('| measure | figure | goal | |')
    this.#print('|---|---|---|---|')
  }

  rows(rows: readonly Row[]): void {
    for (const { figure, goal, met, what } of rows) {
      if (met === true) this.#met++
      if (met === false) this.#missed++
      this.#print(`| ${what} | ${figure} | ${goal} | ${met === undefined ? '' : met ? 'met' : '**missed**'} |`)
    }
  }

  /** Not for the file. */
  aside(text: string): void {
    console.log(`<!-- ${text}, load ${loads()} -->`)
  }

  end(): void {
    const minutes = ((performance.now() - this.#startedAt) / 60_000).toFixed(1)
    this.#print('')
    this.#print(`${this.#met} goals met, ${this.#missed} missed; ${minutes} minutes, load ${loads()} at the end.`)
  }

  /** The newest goes first. */
  write(): void {
    const earlier = readFileSync(FILE, 'utf8').split(/^(?=## )/m)
    writeFileSync(FILE, [earlier[0], `${this.#lines.join('\n')}\n\n`, ...earlier.slice(1)].join(''))
  }

  #print(line: string): void {
    this.#lines.push(line)
    console.log(line)
  }
}

function loads(): string {
  return os
    .loadavg()
    .map((load) => load.toFixed(1))
    .join(', ')
}
