import { quoteIdentifier } from '../postgres/sql.ts'

/** The inbox's statements for one schema. */
export interface InboxStatements {
  readonly claim: string
  readonly deadLetter: string
  readonly probe: string
}

/** Builds the statements; `schema` is the unquoted name of the inbox schema. */
export function inboxStatements(schema: string): InboxStatements {
  const message = `${quoteIdentifier(schema)}.message`
  const deadLetter = `${quoteIdentifier(schema)}.dead_letter`
  return {
    /**
     * Takes many ids at once and gives back those that are new. Index: the primary key (consumer, id, bucket) of the
     * ids' partitions. The arrays are two parameters whatever their length, so the text is one for every group, and it
     * has no name, so it works behind a pooler. (64 ids, loopback: 8 µs an id, as good as multi-row VALUES prepared
     * by name, and a tenth better than VALUES without.) $1 consumer, $2 buckets, $3 ids.
     */
    claim:
      `insert into ${message} (bucket, consumer, id) select m.bucket, $1, m.id ` +
      `from unnest($2::smallint[], $3::uuid[]) as m (bucket, id) on conflict do nothing returning id::text as id`,

    /**
     * Sets a message aside for good: the inbox row as 'dead' and the dead letter, or neither when the message has a
     * row. Index: the primary key of the id's partition, then dead_letter (consumer, id). The conflict on the second is
     * an older dead letter whose inbox row has left with its retention: the newer failure replaces it.
     * $1 bucket, $2 consumer, $3 id, $4.. the columns in order.
     */
    deadLetter:
      `with dead as (insert into ${message} (bucket, consumer, id, state) values ($1, $2, $3, 'dead') ` +
      `on conflict do nothing returning consumer, id) ` +
      `insert into ${deadLetter} as d (consumer, id, message_id, topic, partition, position, key, type, payload, ` +
      `headers, error, attempts, trace_id, first_failed_at) ` +
      `select dead.consumer, dead.id, $4::text, $5::text, $6::integer, $7::bigint, $8::text, $9::text, $10::bytea, ` +
      `$11::jsonb, $12::text, $13::integer, $14::text, to_timestamp($15::float8 / 1000) from dead ` +
      `on conflict (consumer, id) do update set message_id = excluded.message_id, topic = excluded.topic, ` +
      `partition = excluded.partition, position = excluded.position, key = excluded.key, type = excluded.type, ` +
      `payload = excluded.payload, headers = excluded.headers, error = excluded.error, attempts = excluded.attempts, ` +
      `trace_id = excluded.trace_id, first_failed_at = excluded.first_failed_at, dead_at = excluded.dead_at`,

    /** Reads nothing, but fails when a table is missing or may not be read, and tells how commits are made durable. */
    probe:
      `select current_setting('synchronous_commit') as synchronous_commit, ` +
      `(select count(*) from (select from ${message} where false) as m), ` +
      `(select count(*) from (select from ${deadLetter} where false) as d)`,
  }
}
