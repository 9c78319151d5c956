import { execFile } from 'node:child_process'
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { MillraceError } from '../../core/errors.ts'

/** The file that a shell would run for this name, if there is one. */
export async function onPath(name: string, env: NodeJS.ProcessEnv = process.env): Promise<string | undefined> {
  for (const folder of (env.PATH ?? '').split(delimiter)) {
    if (folder !== '' && (await isExecutable(join(folder, name)))) return join(folder, name)
  }
  return undefined
}

/** True for a file that we may run. */
export async function isExecutable(file: string): Promise<boolean> {
  return access(file, constants.X_OK).then(
    () => true,
    () => false,
  )
}

/** How to run a command. */
export interface RunOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  readonly timeoutMs: number
  readonly user?: { readonly uid: number; readonly gid: number } | undefined
}

/** Runs a command to its end and returns what it wrote, both streams. A failure carries the end of that. */
export function run(command: string, args: readonly string[], options: RunOptions): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(
      command,
      args,
      {
        ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
        env: options.env ?? process.env,
        maxBuffer: 16 * 1_048_576,
        timeout: options.timeoutMs,
        killSignal: 'SIGKILL',
        ...options.user,
      },
      (error, stdout, stderr) => {
        if (error === null) return resolve(stdout + stderr)
        const said = (stdout + stderr).slice(-2_000).trimEnd()
        const why = error.killed ? `did not end within ${options.timeoutMs} ms` : 'failed'
        reject(
          new MillraceError('SERVICE_START_FAILED', `${command} ${why}: ${said === '' ? error.message : said}`, {
            cause: error,
          }),
        )
      },
    )
  })
}
