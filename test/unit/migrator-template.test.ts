import { expect, test } from 'vitest'
import { readMigrations } from '../../src/postgres/migration-files.ts'
import { renderMigration } from '../../src/postgres/migration-template.ts'
import { resolveSchemas, schemaFlags } from '../../src/postgres/schemas.ts'

const schemas = { inbox: 'in"box', outbox: 'out' }

test.each([
  ['select :outbox.f(), :inbox.g()', 'select "out".f(), "in""box".g()'],
  ['x::outbox, y::text', 'x::outbox, y::text'],
  [':outboxes :outbox1 a[1:outbox_n]', ':outboxes :outbox1 a[1:outbox_n]'],
  ["':outbox' ':out''box :outbox' e'\\':outbox' :outbox", "':outbox' ':out''box :outbox' e'\\':outbox' \"out\""],
  ['":outbox" "a"":outbox"', '":outbox" "a"":outbox"'],
  ["-- :outbox\n:outbox -- it's\n:inbox", '-- :outbox\n"out" -- it\'s\n"in""box"'],
  ["/* :outbox /* ' */ :outbox */ :outbox", '/* :outbox /* \' */ :outbox */ "out"'],
  ["$f$ :outbox ':outbox' $$ :inbox $$ $f$ :outbox", '$f$ "out" \':outbox\' $$ "in""box" $$ $f$ "out"'],
  ['$1 a$b$c :outbox', '$1 a$b$c "out"'],
])('placeholders become names where they are SQL, and nowhere else: %s', (sql, expected) => {
  expect(renderMigration(sql, schemas)).toBe(expected)
})

test('a schema name that holds the tag of a function body cannot end the body', () => {
  expect(renderMigration('$f$ :outbox $f$', { inbox: 'i', outbox: 'a $f$ b' })).toBe('$f_1$ "a $f$ b" $f_1$')
  expect(renderMigration('$$ :outbox $$', { inbox: 'i', outbox: '$$ $_1$' })).toBe('$_2$ "$$ $_1$" $_2$')
})

test.each(['$f$ :outbox', '/* :outbox'])('what is never closed is refused: %s', (sql) => {
  expect(() => renderMigration(sql, schemas)).toThrow('never closed')
})

test('migrations are numbered from 1 without a gap, and each has the digest of its text', async () => {
  const migrations = await readMigrations()
  expect(migrations.map(({ version }) => version)).toEqual(migrations.map((_, index) => index + 1))
  for (const { checksum } of migrations) expect(checksum).toMatch(/^[0-9a-f]{64}$/)
})

test.each(['', 'a\0', '\ud800', 'a'.repeat(64), 'é'.repeat(32), 'pg_mill', 7, null])(
  'a schema name that Postgres would refuse or cut is a configuration error: %j',
  (outbox) => {
    expect(() => resolveSchemas({ outbox: outbox as string })).toThrow(
      expect.objectContaining({ code: 'CONFIG_INVALID' }) as Error,
    )
  },
)

test('names that are left out are the defaults, and flags name the others', () => {
  expect(resolveSchemas()).toEqual({ inbox: 'inbox', outbox: 'outbox' })
  expect(resolveSchemas({ outbox: 'a'.repeat(63) }).inbox).toBe('inbox')
  expect(schemaFlags(resolveSchemas())).toBe('')
  expect(schemaFlags({ inbox: "o'x", outbox: 'outbox' })).toBe(" --inbox-schema 'o'\\''x'")
})
