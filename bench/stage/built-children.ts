/**
 * The children run as what is shipped: JavaScript. From its sources a process also holds the compiler that takes the
 * types out, 30 MiB that no daemon has.
 */
import { execFileSync } from 'node:child_process'
import { cpSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'

const ROOT = path.join(import.meta.dirname, '../..')

/** As in `tsconfig.bench.json`. */
const BUILT = path.join(ROOT, 'node_modules/.cache/millrace-bench')

/** Builds them, from the sources as they are. */
export function buildChildren(): void {
  rmSync(BUILT, { force: true, recursive: true })
  const compiler = path.join(ROOT, 'node_modules/typescript/bin/tsc')
  execFileSync(process.execPath, [compiler, '-p', path.join(ROOT, 'tsconfig.bench.json')], { stdio: 'inherit' })
  cpSync(path.join(ROOT, 'drizzle/migrations'), path.join(BUILT, 'drizzle/migrations'), { recursive: true })
  writeFileSync(path.join(BUILT, 'package.json'), '{ "type": "module" }\n')
}

/** Where a child's program is, once it is built. */
export function builtChild(program: string): string {
  return path.join(BUILT, 'bench/children', `${program}.js`)
}
