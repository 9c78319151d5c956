-- The outbox: what a service appends inside its own transactions, and how far the relay is.
-- ":outbox" and ":inbox" stand for the schema names, quoted; the migrator puts them in and makes the schemas.

-- hash(key) mod 16 shards, where hash is the first two bytes of SHA-256 over the UTF-8 key, big end first: the same in
-- every language and on every server version. 16 divides 256, so the second byte decides. Stable and not immutable,
-- because convert_to is; that lets the planner inline it into an insert.
create function :outbox.shard_of(key text) returns smallint
language sql stable parallel safe
return (get_byte(sha256(convert_to(key, 'UTF8')), 1) % 16)::smallint;

-- A uuid v7 (RFC 9562) that every supported server can make: 48 bits of milliseconds over a random uuid v4, whose
-- version nibble 4 becomes 7 by two more bits. It is not monotonic within a millisecond; seq is the order.
create function :outbox.new_id() returns uuid
language sql volatile parallel safe
return encode(
  set_bit(set_bit(
    overlay(uuid_send(gen_random_uuid()) placing
      substring(int8send(floor(date_part('epoch', clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
    52, 1), 53, 1), 'hex')::uuid;

-- tx stands before seq: defaults are evaluated in column order, so the transaction id is assigned before the sequence
-- moves. The proof of the polling capture rests on it.
create table :outbox.record (
  tx      xid8     not null default pg_current_xact_id(),
  seq     bigint   not null generated always as identity,
  bucket  smallint not null default (date_part('epoch', transaction_timestamp())::bigint / 14400 % 8)::smallint,
  shard   smallint not null,
  id      uuid     not null,
  topic   text     not null check (topic <> ''),
  key     text,
  type    text     not null check (type <> ''),
  payload bytea    not null,
  headers jsonb    not null default '{}'
) partition by list (bucket);

create table :outbox.record_0 partition of :outbox.record for values in (0);
create table :outbox.record_1 partition of :outbox.record for values in (1);
create table :outbox.record_2 partition of :outbox.record for values in (2);
create table :outbox.record_3 partition of :outbox.record for values in (3);
create table :outbox.record_4 partition of :outbox.record for values in (4);
create table :outbox.record_5 partition of :outbox.record for values in (5);
create table :outbox.record_6 partition of :outbox.record for values in (6);
create table :outbox.record_7 partition of :outbox.record for values in (7);

create index record_seq_shard on :outbox.record (seq, shard);
create index record_tx_seq on :outbox.record (tx, seq);

-- One row a shard: who owns it, by which epoch, until when. Every write that depends on ownership locks these rows and
-- names epoch and token.
create table :outbox.lease (
  shard         smallint    primary key,
  epoch         bigint      not null default 0,
  token         uuid,
  holder        text,
  backend_pid   integer,
  backend_start timestamptz,
  expires_at    timestamptz not null default '-infinity'
);
insert into :outbox.lease (shard) select generate_series(0, 15);

-- One row a living relay, by which the relays divide the shards: those that share take an equal number each, one that
-- does not share wants all of them or none. token is that of its lease rows, and is made anew with every term.
create table :outbox.member (
  token         uuid        primary key,
  holder        text        not null,
  sharing       boolean     not null,
  backend_pid   integer     not null,
  backend_start timestamptz,
  expires_at    timestamptz not null
);

-- How far the shards are published: a log that only grows, in two buckets that are truncated in turn. The newest row
-- that names a shard is that shard's checkpoint. writer and system certify the row: it is valid while its xmin is that
-- xid, in the cluster that wrote it or one that was upgraded from it.
-- base is a snapshot whose records all are published. What goes beyond it is the open delta of a relay that polls
-- (target to after), or the place in the WAL of one that streams: all before wal is published, and of the transaction
-- that commits at wal_tx the first wal_rows changes; publication is the fingerprint under which that was read.
create table :outbox.checkpoint (
  bucket       smallint    not null,
  n            bigint      not null generated always as identity,
  shards       smallint[]  not null,
  epoch        bigint      not null,
  base         pg_snapshot not null,
  base_floor   bigint      not null,
  target       pg_snapshot,
  target_floor bigint,
  high         bigint,
  after        bigint,
  wal          pg_lsn,
  wal_tx       pg_lsn,
  wal_rows     bigint,
  publication  text,
  writer       xid8        not null default pg_current_xact_id(),
  system       bigint      not null default (pg_control_system()).system_identifier,
  written_at   timestamptz not null default clock_timestamp()
) partition by list (bucket);
create table :outbox.checkpoint_0 partition of :outbox.checkpoint for values in (0);
create table :outbox.checkpoint_1 partition of :outbox.checkpoint for values in (1);
create index checkpoint_n on :outbox.checkpoint (n);

-- Parking: events that the broker refuses for good, and every later one of their keys, in the order they shall go out.
-- A lane is a key, or one event without a key: the first 16 bytes of SHA-256 over "key:" and the key, or "id:" and the
-- id, because a key may be longer than an index takes. A row of parked_key stands while its lane is parked: it is written
-- with the first record and deleted with the last. asked_at says that somebody asked for something, which the shard's owner
-- carries out: to discard the records that are marked, and with replay to publish the rest.
create table :outbox.parked_key (
  lane       uuid        primary key,
  shard      smallint    not null,
  key        text,
  id         uuid        not null,
  topic      text        not null,
  reason     text        not null check (reason in ('poison', 'crash', 'behind')),
  error      text        not null,
  attempts   integer     not null default 1,
  parked_at  timestamptz not null default now(),
  replay     boolean     not null default false,
  asked_at   timestamptz
);
create index parked_key_shard on :outbox.parked_key (shard);
create index parked_key_asked on :outbox.parked_key (asked_at, shard);

create table :outbox.parked_record (
  n              bigint      primary key generated always as identity,
  lane           uuid        not null,
  shard          smallint    not null,
  seq            bigint      not null,
  id             uuid        not null,
  topic          text        not null,
  key            text,
  type           text        not null,
  payload        bytea       not null,
  headers        jsonb       not null,
  time_ms        bigint      not null,
  bytes          integer     not null,
  parked_at      timestamptz not null default now(),
  discard_at     timestamptz,
  discard_by     text,
  discard_reason text,
  unique (lane, id)
);
create index parked_record_lane_n on :outbox.parked_record (lane, n);
create index parked_record_id on :outbox.parked_record (id);
create index parked_record_shard on :outbox.parked_record (shard);
create index parked_record_discard on :outbox.parked_record (discard_at, lane);

-- What was discarded: who, when and why, without the payload.
create table :outbox.parked_discard (
  n            bigint      primary key generated always as identity,
  shard        smallint    not null,
  seq          bigint      not null,
  id           uuid        not null,
  topic        text        not null,
  key          text,
  type         text        not null,
  bytes        integer     not null,
  parked_at    timestamptz not null,
  discarded_at timestamptz not null default now(),
  discarded_by text        not null,
  reason       text        not null
);
create index parked_discard_parked_at on :outbox.parked_discard (parked_at);

-- The crash counter: how often a process began to relay a shard at one position without progress, and the records in
-- whose publishing processes died.
create table :outbox.crash_start (
  shard    smallint primary key,
  position text     not null,
  starts   integer  not null
);
create table :outbox.crash_suspect (
  id     uuid     primary key,
  shard  smallint not null,
  calls  integer  not null default 1
);

-- append() for triggers and other languages: the checks of the library, the same shard, one row. It is called inside
-- the caller's transaction, after the statement that locks the aggregate. The caller needs INSERT on record, no more.
create function :outbox.append(topic text, key text, type text, payload bytea, headers jsonb default '{}')
returns uuid language plpgsql volatile as $function$
declare
  event_id     uuid := :outbox.new_id();
  header_count bigint := 0;
  header_bytes bigint := 0;
  bad_header   text;
begin
  if append.topic is null or append.topic = '' then
    raise exception 'outbox.append: the topic is empty' using errcode = '22023', hint = 'Name the topic the event goes to.';
  end if;
  if append.type is null or append.type = '' then
    raise exception 'outbox.append: the type is empty' using errcode = '22023', hint = 'Name the type of the event, such as order.placed.';
  end if;
  if octet_length(append.topic) > 255 or octet_length(append.type) > 255 or octet_length(append.key) > 2048 then
    raise exception 'outbox.append: the topic has % bytes, the type %, the key %',
      octet_length(append.topic), octet_length(append.type), coalesce(octet_length(append.key), 0)
      using errcode = '22023', hint = 'A topic and a type have at most 255 bytes, a key has at most 2048.';
  end if;
  if append.topic ~ '[\u0001-\u001f\u007f]' or append.type ~ '[\u0001-\u001f\u007f]' or append.key ~ '[\r\n]' then
    raise exception 'outbox.append: the topic, the type or the key holds a control character' using errcode = '22023',
      hint = 'A topic and a type have no control characters, a key has no CR or LF.';
  end if;
  if append.payload is null then
    raise exception 'outbox.append: the payload is null' using errcode = '22023',
      hint = 'Give the event as bytea: convert_to(json::text, ''UTF8'').';
  end if;
  if append.headers <> '{}' then
    if jsonb_typeof(append.headers) <> 'object' then
      raise exception 'outbox.append: the headers are a JSON %', jsonb_typeof(append.headers) using errcode = '22023',
        hint = 'Headers are a JSON object of strings.';
    end if;
    select count(*), sum(octet_length(h.key) + octet_length(h.value #>> '{}')), min(h.key) filter (where
             jsonb_typeof(h.value) <> 'string' or (h.value #>> '{}') ~ '[\r\n]' or octet_length(h.key) > 255
             or h.key !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$' or lower(h.key collate pg_catalog."C") like 'millrace-%')
      into header_count, header_bytes, bad_header from jsonb_each(append.headers) h;
    if bad_header is not null then
      raise exception 'outbox.append: the header % has a bad name or a bad value', to_json(left(bad_header, 60))
        using errcode = '22023', hint = 'Headers are a JSON object of strings; names are HTTP tokens of at most 255 '
          'characters that do not begin with millrace-; values have no CR or LF.';
    end if;
    if header_count > 64 then
      raise exception 'outbox.append: the event has % headers', header_count using errcode = '22023',
        hint = 'An event has at most 64 headers. Put the rest into the payload.';
    end if;
  end if;
  if octet_length(append.payload) + octet_length(append.topic) + octet_length(append.type)
     + coalesce(octet_length(append.key), 0) + header_bytes > 1000000 then
    raise exception 'outbox.append: the event has more than 1000000 bytes (payload %, headers %)',
      octet_length(append.payload), header_bytes
      using errcode = '22023', hint = 'Store the large part elsewhere and append a reference to it.';
  end if;
  insert into :outbox.record (shard, id, topic, key, type, payload, headers)
  values (:outbox.shard_of(coalesce(append.key, event_id::text)), event_id,
          append.topic, append.key, append.type, append.payload, coalesce(append.headers, '{}'));
  return event_id;
end
$function$;

-- append_json() is append() for a payload that is at hand as JSON, as in a trigger: to_jsonb(new). A header of the same
-- name goes before the content-type.
create function :outbox.append_json(topic text, key text, type text, payload jsonb, headers jsonb default '{}')
returns uuid language sql volatile
return :outbox.append(topic, key, type, convert_to(payload::text, 'UTF8'),
                      jsonb '{"content-type": "application/json"}' || coalesce(headers, '{}'));

-- The inbox: which messages a consumer has handled. The row is written in the transaction of the effect.
-- bucket: from the time in the uuid v7, so that one id always meets the same unique index; -1 for ids without a time.
create table :inbox.message (
  bucket     smallint    not null,
  consumer   text        not null,
  id         uuid        not null,
  state      text        not null default 'done' check (state in ('done', 'parked', 'dead')),
  handled_at timestamptz not null default now(),
  primary key (consumer, id, bucket)
) partition by list (bucket);
create table :inbox.message_untimed partition of :inbox.message for values in (-1);
create table :inbox.message_0 partition of :inbox.message for values in (0);
create table :inbox.message_1 partition of :inbox.message for values in (1);
create table :inbox.message_2 partition of :inbox.message for values in (2);
create table :inbox.message_3 partition of :inbox.message for values in (3);
create table :inbox.message_4 partition of :inbox.message for values in (4);
create table :inbox.message_5 partition of :inbox.message for values in (5);
create table :inbox.message_6 partition of :inbox.message for values in (6);
create table :inbox.message_7 partition of :inbox.message for values in (7);

-- Messages set aside for good, until an operator replays or discards them. id is the inbox's id of the message;
-- message_id is what its producer called it, which may be no uuid and of any length, so no index is on it.
create table :inbox.dead_letter (
  n               bigint      not null generated always as identity primary key,
  consumer        text        not null,
  id              uuid        not null,
  message_id      text        not null,
  topic           text        not null,
  partition       integer     not null,
  position        bigint      not null,
  key             text,
  type            text        not null,
  payload         bytea,
  headers         jsonb       not null,
  error           text        not null,
  attempts        integer     not null,
  trace_id        text,
  first_failed_at timestamptz not null,
  dead_at         timestamptz not null default now(),
  unique (consumer, id)
);
