import { userInfo } from 'node:os'
import type { Pool } from 'pg'
import { MillraceError } from '../core/errors.ts'
import { createPostgresPool, requireDatabase } from '../daemon/postgres-pool.ts'
import {
  type ParkedCount,
  type ParkedEvent,
  type ParkedSelection,
  type Parking,
  createParking,
} from '../outbox-relay/parking/index.ts'
import { requireSchema } from '../postgres/migrator.ts'
import { resolveSchemas } from '../postgres/schemas.ts'
import { type CommandIo, defineCommand } from './command.ts'
import { databaseUrlFlag, outboxSchemaFlag } from './database-flags.ts'
import { EXIT } from './exit-code.ts'
import { integerFlag, switchFlag, textFlag } from './flag.ts'

const filterFlags = {
  id: textFlag({ environment: ['MILLRACE_ID'], summary: 'One event, by its id.', value: '<uuid>' }),
  key: textFlag({ environment: ['MILLRACE_KEY'], summary: 'The events of one key.', value: '<key>' }),
  topic: textFlag({ environment: ['MILLRACE_TOPIC'], summary: 'The events of one topic.', value: '<topic>' }),
  type: textFlag({ environment: ['MILLRACE_TYPE'], summary: 'The events of one type.', value: '<type>' }),
}

const json = switchFlag({ environment: ['MILLRACE_JSON'], summary: 'Print JSON, one line an event.' })

const askFlags = {
  all: switchFlag({ environment: ['MILLRACE_ALL'], summary: 'Every parked event, within the other filters.' }),
  dryRun: switchFlag({ environment: ['MILLRACE_DRY_RUN'], summary: 'Change nothing; print how many it would be.' }),
  yes: switchFlag({ environment: ['MILLRACE_YES'], summary: 'Do not ask. Required where nobody sits at a terminal.' }),
}

/** `millrace parked list`: what is parked, a page at a time. */
export const parkedListCommand = defineCommand({
  name: 'parked list',
  summary: 'Lists events that were parked, in their order, without what they say.',
  description: `An event is parked when the broker refuses it for good (poison) or when the relay dies of it again and
again (crash); every later event of its key waits behind it. Filters must hold together.`,
  examples: [
    'millrace parked list --database-url postgres://relay@db/shop --topic orders',
    'millrace parked list --database-url postgres://relay@db/shop --limit 1000 --after 2345 --json',
  ],
  flags: {
    after: textFlag({
      environment: ['MILLRACE_AFTER'],
      summary: 'Go on after this place, the first column.',
      value: '<n>',
    }),
    databaseUrl: databaseUrlFlag,
    id: filterFlags.id,
    json,
    key: filterFlags.key,
    limit: integerFlag({
      byDefault: '100',
      environment: ['MILLRACE_LIMIT'],
      max: 1000,
      min: 1,
      summary: 'At most so many.',
      value: '<count>',
    }),
    outboxSchema: outboxSchemaFlag,
    topic: filterFlags.topic,
    type: filterFlags.type,
  },
  run: ({ after, databaseUrl, json: asJson = false, limit = 100, outboxSchema, ...filter }, io) =>
    withParking(databaseUrl, outboxSchema, async (parking) => {
      const wanted = filterOf(filter)
      const events = await parking.list({ ...wanted, limit, ...(after === undefined ? {} : { after }) })
      for (const event of events) io.out(asJson ? `${JSON.stringify(event)}\n` : lineOf(event))
      if (asJson) return EXIT.ok
      const { keys, records } = await parking.count({ all: true, ...wanted })
      io.out(`${amount({ keys, records })} parked\n`)
      const last = events.at(-1)
      if (last !== undefined && events.length === limit) io.out(`go on with --after ${last.n}\n`)
      return EXIT.ok
    }),
})

/** `millrace parked show`: one event. */
export const parkedShowCommand = defineCommand({
  name: 'parked show',
  summary: 'Shows one parked event; its payload when that is asked for.',
  description: `The payload is printed as text where it is UTF-8, else as base64. It may hold what must not end up in a log.`,
  examples: ['millrace parked show --database-url postgres://relay@db/shop --id 0199… --payload'],
  flags: {
    databaseUrl: databaseUrlFlag,
    id: textFlag({ environment: ['MILLRACE_ID'], required: true, summary: 'The id of the event.', value: '<uuid>' }),
    json,
    outboxSchema: outboxSchemaFlag,
    payload: switchFlag({ environment: ['MILLRACE_PAYLOAD'], summary: 'Print the payload too.' }),
  },
  run: ({ databaseUrl, id = '', json: asJson = false, outboxSchema, payload: withPayload = false }, io) =>
    withParking(databaseUrl, outboxSchema, async (parking) => {
      const event = await parking.show(id, { payload: withPayload })
      if (event === undefined) {
        io.err(`millrace parked show: no event ${id} is parked\n`)
        return EXIT.failure
      }
      const { payload, ...rest } = event
      const shown = payload === undefined ? rest : { ...rest, ...printable(payload) }
      io.out(asJson ? `${JSON.stringify(shown)}\n` : `${JSON.stringify(shown, null, 2)}\n`)
      return EXIT.ok
    }),
})

/** `millrace parked replay`: asks the relay to publish keys. */
export const parkedReplayCommand = defineCommand({
  name: 'parked replay',
  summary: 'Asks the relay to publish parked keys: all of each, in order.',
  description: `Filters choose events, and the whole keys of those are replayed, because a later event must not overtake
an earlier one. The relay begins within about a second; with none at work the request waits. A key whose first event is
refused again stays parked, with the new error.`,
  examples: [
    'millrace parked replay --database-url postgres://relay@db/shop --topic orders --yes',
    'millrace parked replay --database-url postgres://relay@db/shop --key order-7',
  ],
  flags: {
    all: askFlags.all,
    databaseUrl: databaseUrlFlag,
    dryRun: askFlags.dryRun,
    id: filterFlags.id,
    json,
    key: filterFlags.key,
    outboxSchema: outboxSchemaFlag,
    topic: filterFlags.topic,
    type: filterFlags.type,
    yes: askFlags.yes,
  },
  run: ({ all, databaseUrl, dryRun = false, json: asJson = false, outboxSchema, yes = false, ...filter }, io) =>
    withParking(databaseUrl, outboxSchema, async (parking) => {
      const selection = selectionOf(all, filter)
      const wanted = await parking.countReplay(selection)
      if (dryRun) return told(io, asJson, 'would replay', wanted)
      if (wanted.records > 0 && !(await agreed(io, yes, `Replay ${amount(wanted)}?`))) return EXIT.failure
      return told(io, asJson, 'asked to replay', await parking.replay(selection))
    }),
})

/** `millrace parked discard`: gives events up. */
export const parkedDiscardCommand = defineCommand({
  name: 'parked discard',
  summary: 'Gives parked events up, for a reason that is kept.',
  description: `The relay drops them within about a second, and notes in the table parked_discard who wanted it, when
and why; with none at work the request waits. The other events of their keys stay parked: replay those keys after.`,
  examples: [
    "millrace parked discard --database-url postgres://relay@db/shop --id 0199… --reason 'too large, sent by hand'",
    "millrace parked discard --database-url postgres://relay@db/shop --topic tests --all --reason 'not wanted' --yes",
  ],
  flags: {
    all: askFlags.all,
    databaseUrl: databaseUrlFlag,
    dryRun: askFlags.dryRun,
    id: filterFlags.id,
    json,
    key: filterFlags.key,
    outboxSchema: outboxSchemaFlag,
    reason: textFlag({
      environment: ['MILLRACE_REASON'],
      required: true,
      summary: 'Why they are given up.',
      value: '<text>',
    }),
    topic: filterFlags.topic,
    type: filterFlags.type,
    yes: askFlags.yes,
  },
  run: (flags, io) => {
    const { all, databaseUrl, dryRun = false, json: asJson = false, outboxSchema, reason = '', yes = false } = flags
    return withParking(databaseUrl, outboxSchema, async (parking) => {
      const selection = selectionOf(all, flags)
      const wanted = await parking.count(selection)
      if (dryRun) return told(io, asJson, 'would discard', wanted)
      if (wanted.records > 0 && !(await agreed(io, yes, `Discard ${amount(wanted)} for good?`))) return EXIT.failure
      return told(io, asJson, 'asked to discard', await parking.discard(selection, reason, userName()))
    })
  },
})

async function withParking(
  databaseUrl: string | undefined,
  outboxSchema: string | undefined,
  work: (parking: Parking) => Promise<number>,
): Promise<number> {
  const pool: Pool = await createPostgresPool({
    applicationName: 'millrace-parked',
    databaseUrl,
    max: 1,
    onError: () => undefined, // the next statement fails with the reason
  })
  try {
    await requireDatabase(pool)
    const schemas = outboxSchema === undefined ? {} : { outbox: outboxSchema }
    await requireSchema(pool, resolveSchemas(schemas))
    return await work(createParking({ postgres: pool, schemas }))
  } finally {
    await pool.end()
  }
}

interface Filter {
  readonly id?: string | undefined
  readonly key?: string | undefined
  readonly topic?: string | undefined
  readonly type?: string | undefined
}

function filterOf({ id, key, topic, type }: Filter): ParkedSelection {
  return {
    ...(id === undefined ? {} : { id }),
    ...(key === undefined ? {} : { key }),
    ...(topic === undefined ? {} : { topic }),
    ...(type === undefined ? {} : { type }),
  }
}

function selectionOf(all: boolean | undefined, filter: Filter): ParkedSelection {
  const selection = filterOf(filter)
  if (all !== true && Object.keys(selection).length === 0) {
    throw new MillraceError(
      'CONFIG_INVALID',
      'say which events: --id, --key, --topic or --type, or --all for every one',
    )
  }
  return { ...selection, ...(all === undefined ? {} : { all }) }
}

/** True when whoever asked means it. */
async function agreed(io: CommandIo, yes: boolean, question: string): Promise<boolean> {
  if (yes) return true
  if (io.ask === undefined) {
    io.err(`${question} Nobody is there to answer: say --yes, or look first with --dry-run\n`)
    return false
  }
  if (/^y(es)?$/i.test((await io.ask(`${question} [y/N] `)).trim())) return true
  io.err('nothing was done\n')
  return false
}

function told(io: CommandIo, asJson: boolean, what: string, count: ParkedCount): number {
  io.out(asJson ? `${JSON.stringify(count)}\n` : `${what} ${amount(count)}\n`)
  return EXIT.ok
}

function amount({ keys, records }: ParkedCount): string {
  return `${records} event${records === 1 ? '' : 's'} of ${keys} key${keys === 1 ? '' : 's'}`
}

function lineOf({ asked, attempts, bytes, error, id, key, n, parkedAt, reason, topic, type }: ParkedEvent): string {
  const why = reason === 'behind' ? 'behind' : `${reason} ×${attempts}: ${error}`
  const fields = [n, parkedAt.toISOString(), id, topic, key === null ? '(no key)' : key, type, `${bytes} B`]
  return `${[...fields, asked === null ? why : `${asked} asked, ${why}`].map(oneLine).join('  ')}\n`
}

/** A key or an error may hold anything; the terminal gets none of its control characters. */
function oneLine(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '�')
}

function printable(payload: Buffer): { readonly payload: string } | { readonly payloadBase64: string } {
  const text = payload.toString('utf8')
  return Buffer.from(text).equals(payload) ? { payload: text } : { payloadBase64: payload.toString('base64') }
}

function userName(): string {
  try {
    return userInfo().username
  } catch {
    return 'unknown' // a user without an entry, as in a container
  }
}
