import { describe, expect, test } from 'vitest'
import { codeBlocks, excerpt } from './markdown.ts'

const MARKDOWN = `
# Title

<!-- from test/docs/sample.ts#inner -->
\`\`\`ts
const a = 1
\`\`\`

\`\`\`sh
npm test
\`\`\`

- in a list:
  <!-- from test/docs/sample.ts -->

  \`\`\`typescript
  const b = {
    c: 2,
  }
  \`\`\`
`

describe('the reader of documents', () => {
  test('finds blocks with place, language, text and marker, also in a list', () => {
    expect(codeBlocks('x.md', MARKDOWN)).toEqual([
      { place: 'x.md:5', language: 'ts', text: 'const a = 1', from: 'test/docs/sample.ts#inner' },
      { place: 'x.md:9', language: 'sh', text: 'npm test', from: undefined },
      { place: 'x.md:16', language: 'typescript', text: 'const b = {\n  c: 2,\n}', from: 'test/docs/sample.ts' },
    ])
  })

  test('takes a whole file without its head comment, under the names a user imports', () => {
    expect(excerpt('test/docs/sample.ts')).toBe(
      [
        "import { packageVersion } from '../../src/cli/run-cli.ts'",
        "import { MillraceError } from 'millrace'",
        "import { kafkajs } from 'millrace/kafkajs'",
        '',
        'export function sample(): unknown {',
        '  return [packageVersion, MillraceError, kafkajs]',
        '}',
      ].join('\n'),
    )
  })

  test('takes a region without its indentation', () => {
    expect(excerpt('test/docs/sample.ts#inner')).toBe('return [packageVersion, MillraceError, kafkajs]')
  })

  test.each(['test/docs/sample.ts#nowhere', 'src/cli/main.ts', 'examples/nothing.ts'])('refuses %s', (from) => {
    expect(() => excerpt(from)).toThrow()
  })
})
