/** Whether this server and this role can stream the WAL. */
import type { Sql } from '../../../postgres/sql.ts'

interface Settings {
  readonly walLevel: string
  readonly role: string
  readonly mayReplicate: boolean
  readonly version: number
}

const SETTINGS_SQL = `
  select current_setting('wal_level') as "walLevel", r.rolname as role, r.rolreplication or r.rolsuper as "mayReplicate",
         current_setting('server_version_num')::int as version
  from pg_roles r where r.rolname = current_user`

/** Why the WAL cannot be streamed, with what would change that; undefined when it can. */
export async function replicationHindrance(sql: Sql): Promise<string | undefined> {
  const { rows } = await sql.query(SETTINGS_SQL)
  const { walLevel, role, mayReplicate } = rows[0] as Settings
  if (walLevel !== 'logical') {
    return `wal_level is ${walLevel}; set it to logical and restart the server: alter system set wal_level = 'logical'`
  }
  if (!mayReplicate) return `the role ${role} may not replicate; run: alter role "${role}" replication`
  return undefined
}
