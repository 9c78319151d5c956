-- The outbox: what a service appends inside its own transactions, and how far the relay is.
-- ":outbox" and ":inbox" stand for the schema names, quoted; the migrator puts them in and makes the schemas.

-- hash(key) mod shards, from the first two bytes of SHA-256 over the UTF-8 key: the same for every language and every
-- server version. Stable and not immutable, because convert_to is; that lets the planner inline it into an insert.
create function :outbox.shard_of(key text) returns smallint
language sql stable parallel safe
return ((get_byte(sha256(convert_to(key, 'UTF8')), 0) * 256 + get_byte(sha256(convert_to(key, 'UTF8')), 1)) % 16)::smallint;

-- A uuid v7 (RFC 9562) on servers before 18, which have no uuidv7().
create function :outbox.new_id() returns uuid
language sql volatile parallel safe
return encode(
  set_bit(set_bit(
    overlay(uuid_send(gen_random_uuid()) placing
      substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
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

-- How far the shards are published: a log that only grows, in two buckets that are truncated in turn. The newest row
-- that names a shard is that shard's checkpoint. writer certifies the row: it is valid while its xmin is that xid.
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
  writer       xid8        not null default pg_current_xact_id(),
  written_at   timestamptz not null default clock_timestamp()
) partition by list (bucket);
create table :outbox.checkpoint_0 partition of :outbox.checkpoint for values in (0);
create table :outbox.checkpoint_1 partition of :outbox.checkpoint for values in (1);
create index checkpoint_n on :outbox.checkpoint (n);

-- append() for triggers and other languages: the checks of the library, the same shard, one row. It is called inside
-- the caller's transaction, after the statement that locks the aggregate.
create function :outbox.append(topic text, key text, type text, payload bytea, headers jsonb default '{}')
returns uuid language plpgsql volatile as $function$
declare
  event_id uuid := :outbox.new_id();
begin
  if append.topic is null or append.topic = '' then
    raise exception 'outbox.append: the topic is empty' using errcode = '22023', hint = 'Name the topic the event goes to.';
  end if;
  if append.type is null or append.type = '' then
    raise exception 'outbox.append: the type is empty' using errcode = '22023', hint = 'Name the type of the event, such as order.placed.';
  end if;
  if append.payload is null then
    raise exception 'outbox.append: the payload is null' using errcode = '22023', hint = 'Give the event as bytea: convert_to(json::text, ''UTF8'').';
  end if;
  if octet_length(append.payload) + octet_length(coalesce(append.key, '')) + octet_length(coalesce(append.headers, '{}')::text) > 1000000 then
    raise exception 'outbox.append: the event has more than 1000000 bytes (payload %)', octet_length(append.payload)
      using errcode = '22023', hint = 'Store the large part elsewhere and append a reference to it.';
  end if;
  if append.headers is not null and (jsonb_typeof(append.headers) <> 'object' or exists (
    select from jsonb_each(append.headers) h
    where jsonb_typeof(h.value) <> 'string' or h.key !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$' or h.key ~* '^millrace-'
       or (h.value #>> '{}') ~ '[\r\n]'
  )) then
    raise exception 'outbox.append: a header has a bad name or a bad value' using errcode = '22023',
      hint = 'Headers are a JSON object of strings; names are HTTP tokens that do not begin with millrace-; values have no CR or LF.';
  end if;
  insert into :outbox.record (shard, id, topic, key, type, payload, headers)
  values (:outbox.shard_of(coalesce(append.key, event_id::text)), event_id,
          append.topic, append.key, append.type, append.payload, coalesce(append.headers, '{}'));
  return event_id;
end
$function$;

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
