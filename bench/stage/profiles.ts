/** Profiles of the children's processor time, and what stands at the top of each. */
import { mkdtempSync, readFileSync, readdirSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const TOP = 14

interface Profile {
  readonly nodes: readonly {
    readonly id: number
    readonly callFrame: { readonly functionName: string; readonly lineNumber: number; readonly url: string }
  }[]
  readonly samples: readonly number[]
  readonly timeDeltas: readonly number[]
}

/** The folder they are left in, and the telling of what is new there. */
export class Profiles {
  readonly folder = mkdtempSync(path.join(os.tmpdir(), 'millrace-profiles-'))
  readonly #told = new Set<string>()

  /** Prints the functions that took the most time by themselves, of each child since the last call. */
  tell(measure: string): void {
    for (const name of readdirSync(this.folder)) {
      if (this.#told.has(name)) continue
      this.#told.add(name)
      console.log(`\n${measure}: ${path.join(this.folder, name)}`)
      for (const line of topOf(JSON.parse(readFileSync(path.join(this.folder, name), 'utf8')) as Profile))
        console.log(line)
    }
  }
}

function topOf({ nodes, samples, timeDeltas }: Profile): readonly string[] {
  const names = new Map(nodes.map(({ callFrame, id }) => [id, nameOf(callFrame)]))
  const self = new Map<string, number>()
  let total = 0
  for (const [i, id] of samples.entries()) {
    const name = names.get(id) ?? ''
    const took = timeDeltas[i] ?? 0
    total += took
    self.set(name, (self.get(name) ?? 0) + took)
  }
  return [...self]
    .toSorted((a, b) => b[1] - a[1])
    .slice(0, TOP)
    .map(([name, took]) => `  ${((took / total) * 100).toFixed(1).padStart(5)} %  ${name}`)
}

function nameOf({ functionName, lineNumber, url }: Profile['nodes'][number]['callFrame']): string {
  const file = url.split('/').slice(-2).join('/')
  return `${functionName === '' ? '(anonymous)' : functionName} ${file === '' ? '' : `${file}:${lineNumber + 1}`}`
}
