import { converse } from './conversation.ts'

/**
 * Asks a server for a session, as every client does, and resolves with the version it names when it is ready for a
 * query; undefined while it is not.
 */
export function askPostgres(port: number): Promise<string | undefined> {
  const parameters = Buffer.from('user\0postgres\0database\0postgres\0\0')
  const head = Buffer.alloc(8)
  head.writeInt32BE(head.length + parameters.length, 0)
  head.writeInt32BE(0x0003_0000, 4)
  return converse({ port }, Buffer.concat([head, parameters]), versionWhenReady)
}

/** Walks the messages of the server: parameter status (`S`) names the version, ready for query (`Z`) ends the start. */
function versionWhenReady(heard: Buffer): string | undefined {
  let version = ''
  for (let at = 0; at + 5 <= heard.length; at += 1 + heard.readInt32BE(at + 1)) {
    const type = String.fromCharCode(heard[at] as number)
    if (type === 'Z') return version
    if (type !== 'S') continue
    const [name, value] = heard.toString('utf8', at + 5, at + 1 + heard.readInt32BE(at + 1)).split('\0')
    if (name === 'server_version') version = value ?? ''
  }
  return undefined
}
