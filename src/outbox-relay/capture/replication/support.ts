/** Whether this server and this role can stream the WAL. */
import { type Sql, quoteIdentifier } from '../../../postgres/sql.ts'
import { createPublicationSql, fingerprintParams } from './publication.ts'

interface Settings {
  readonly walLevel: string
  readonly role: string
  readonly mayReplicate: boolean
  readonly published: boolean
  readonly mayPublish: boolean
}

const SETTINGS_SQL = `
  select current_setting('wal_level') as "walLevel", r.rolname as role, r.rolreplication or r.rolsuper as "mayReplicate",
         exists (select from pg_publication where pubname = $1) as published,
         pg_has_role(c.relowner, 'usage') and has_database_privilege(current_database(), 'create') as "mayPublish"
  from pg_roles r, pg_class c where r.rolname = current_user and c.oid = to_regclass($2)`

/** Why the WAL cannot be streamed, with what would change that; undefined when it can. */
export async function replicationHindrance(sql: Sql, schema: string): Promise<string | undefined> {
  const { rows } = await sql.query(SETTINGS_SQL, fingerprintParams(schema))
  const { walLevel, role, mayReplicate, published, mayPublish } = rows[0] as Settings
  if (walLevel !== 'logical') {
    return `wal_level is ${walLevel}; run alter system set wal_level = 'logical' and restart the server`
  }
  if (!mayReplicate) {
    return `the role ${role} may not replicate; run: alter role ${quoteIdentifier(role)} replication`
  }
  if (!published && !mayPublish) {
    return `there is no publication, and the role ${role} may not make it; let the owner run: ${createPublicationSql(schema)}`
  }
  return undefined
}
