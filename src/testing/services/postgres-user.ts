import { readFile, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { MillraceError } from '../../core/errors.ts'

/** The numbers of a user. */
export interface SystemUser {
  readonly gid: number
  readonly uid: number
}

/** Who runs PostgreSQL, which refuses to be run by root: undefined for ourselves, else `postgres` or `nobody`. */
export async function postgresUser(): Promise<SystemUser | undefined> {
  if (process.getuid?.() !== 0) return undefined
  const passwd = await readFile('/etc/passwd', 'utf8')
  for (const name of ['postgres', 'nobody']) {
    const fields = passwd.split('\n').find((line) => line.startsWith(`${name}:`))
    const [, , uid, gid] = fields?.split(':') ?? []
    if (Number(uid) > 0 && Number(gid) > 0) return { uid: Number(uid), gid: Number(gid) }
  }
  throw new MillraceError(
    'SERVICE_UNAVAILABLE',
    'PostgreSQL does not run as root, and /etc/passwd names neither `postgres` nor `nobody`: add one, or run as another user.',
  )
}

/** Whether the user may enter or run `path` and every folder above it; the home of root, say, keeps others out. */
export async function isReachable(path: string, user: SystemUser | undefined): Promise<boolean> {
  if (user === undefined) return true
  for (let folder = path; ; folder = dirname(folder)) {
    const { gid, mode, uid } = await stat(folder)
    const bit = uid === user.uid ? 0o100 : gid === user.gid ? 0o010 : 0o001
    if ((mode & bit) === 0) return false
    if (folder === dirname(folder)) return true
  }
}
