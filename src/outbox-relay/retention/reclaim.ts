/** Empties one bucket, if under its lock everything still is as it was found. */
import type { PgClient, SqlResult } from '../../postgres/sql.ts'
import type { Snapshot } from '../capture/polling/snapshot.ts'
import { holdsUnseen } from './published.ts'
import { NOW_SECONDS, type Turn } from './ring.ts'

/** How an attempt ended. `elsewhere`: another relay is at it. */
export type Attempt = 'freed' | 'locked' | 'changed' | 'elsewhere'

/**
 * How long the request for the lock may stand in the queue: later inserts into this bucket, and pages of the relay, wait
 * behind it. A page is read in less.
 */
const LOCK_TIMEOUT_MS = 50

// One message to the server, so that a client that stands still cannot keep the lock: the implicit transaction of both
// statements ends with the message. A do block takes no parameters: a quoted identifier, numbers and checked snapshots.
// The setting is local to that transaction; it is how a do block answers.
const reclaimSql = (partition: string, turn: Turn, bases: readonly Snapshot[]): string => `
  do ${tagFor(partition)}
  declare
    outcome text := 'changed';
  begin
    if not pg_try_advisory_xact_lock((${ADVISORY_CLASS}::bigint << 32) | ${quoteLiteral(partition)}::regclass::oid::bigint) then
      perform set_config('millrace.retention', 'elsewhere', true);
      return;
    end if;
    begin
      set local lock_timeout = '${LOCK_TIMEOUT_MS}ms';
      lock table only ${partition} in access exclusive mode;
      if ${NOW_SECONDS} >= ${turn.dueAt} and ${NOW_SECONDS} < ${turn.closedAt}
         and exists (select from ${partition})
         and not exists (select from unnest(array[${bases.map(({ text }) => `'${text}'`).join(',')}]::pg_snapshot[]) s (base)
                         where ${holdsUnseen(partition, 's.base')}) then
        truncate ${partition};
        outcome := 'freed';
      end if;
    exception when lock_not_available then
      outcome := 'locked';
    end;
    perform set_config('millrace.retention', outcome, true);
  end ${tagFor(partition)};
  select current_setting('millrace.retention') as outcome`

/** The first half of the advisory lock's key; the other is the partition. It is tried only, so nobody waits for it. */
const ADVISORY_CLASS = 0x6d696c6c

/** A dollar quote that no schema's name can end. */
function tagFor(partition: string): string {
  let tag = '$do$'
  for (let n = 1; partition.includes(tag); n++) tag = `$do_${n}$`
  return tag
}

function quoteLiteral(text: string): string {
  return `${text.includes('\\') ? 'E' : ''}'${text.replaceAll('\\', '\\\\').replaceAll("'", "''")}'`
}

/** Tries to empty the bucket. `bases` are those of all shards. */
export async function reclaim(
  client: PgClient,
  partition: string,
  turn: Turn,
  bases: readonly Snapshot[],
): Promise<Attempt> {
  if (bases.length === 0) throw new RangeError('no shard says what is published')
  // `pg` answers several statements with an array of results.
  const [, answer] = (await client.query(reclaimSql(partition, turn, bases))) as unknown as [SqlResult, SqlResult]
  return (answer.rows[0] as { outcome: Attempt }).outcome
}
