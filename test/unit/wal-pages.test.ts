/** Pages of the stream: where they are cut, what they leave out, and what place each stands for. */
import { beforeEach, describe, expect, test } from 'vitest'
import { WAL_EVENT_PREFIX, decodeWalEvents, encodeWalEvents } from '../../src/core/wal-event.ts'
import type { OutgoingMessage } from '../../src/core/message.ts'
import { Snapshot } from '../../src/outbox-relay/capture/polling/snapshot.ts'
import { MARKER_PREFIX, WalPages, type WalPagesOptions } from '../../src/outbox-relay/capture/replication/wal-pages.ts'

const message = (n: number): OutgoingMessage => ({
  id: `0197${'0'.repeat(4)}-0000-7000-8000-${String(n).padStart(12, '0')}`,
  topic: 't',
  key: 'k',
  type: 'x',
  payload: Buffer.from(String(n)),
  headers: {},
  timeMs: 0,
  seq: String(n),
})

describe('pages of the stream', () => {
  const calls: string[] = []
  const made = (options: Partial<WalPagesOptions> = {}): WalPages =>
    new WalPages({
      bounds: { maxBytes: 1000, maxMessages: 3 },
      checkPublication: () => Promise.resolve(),
      onMalformed: (error) => calls.push(error.message),
      onMarker: () => undefined,
      pause: () => calls.push('pause'),
      published: Snapshot.NOTHING,
      resume: () => calls.push('resume'),
      schema: 's',
      start: { lsn: 100n },
      ...options,
    })
  /** A transaction of these numbers, by xid `tx`, whose commit is at `lsn` and ends 10 later. */
  const transaction = (pages: WalPages, lsn: bigint, numbers: readonly number[], tx = 1000n): void => {
    pages.onBegin(lsn)
    for (const n of numbers) pages.onMessage(message(n), tx, 0, 10)
    pages.onCommit(lsn + 10n)
  }
  const taken = (pages: WalPages): string[] => {
    const all: string[] = []
    for (let page = pages.take(); page !== undefined; page = pages.take()) {
      const { lsn, tx, rows } = page.reached.place
      all.push(`${page.messages.map(({ seq }) => seq).join()} -> ${lsn}${tx === undefined ? '' : ` ${tx}+${rows}`}`)
    }
    return all
  }

  beforeEach(() => void calls.splice(0))

  test('a page spans transactions and is cut inside them; its place says how far', () => {
    const pages = made()
    transaction(pages, 200n, [1, 2])
    transaction(pages, 300n, [3, 4, 5, 6])
    expect(taken(pages)).toEqual(['1,2,3 -> 210 300+1', '4,5,6 -> 210 300+4'])
    expect(pages.progress()?.place).toEqual({ lsn: 310n })
  })

  test('what came is taken at once, full or not', () => {
    const pages = made()
    transaction(pages, 200n, [1])
    expect(taken(pages)).toEqual(['1 -> 210'])
    expect(pages.ready).toBe(false)
  })

  test('transactions before the start are left out, and the first rows of the one it lies in', () => {
    const start = { lsn: 210n, tx: 300n, rows: 2 }
    const pages = made({ start })
    expect(pages.progress()?.place).toBe(start)
    transaction(pages, 200n, [1, 2])
    expect(pages.progress()?.place).toBe(start)
    transaction(pages, 300n, [3, 4, 5])
    transaction(pages, 400n, [6])
    expect(taken(pages)).toEqual(['5,6 -> 410'])
  })

  test('no place is given away while a page waits to be taken', () => {
    const pages = made()
    transaction(pages, 200n, [1])
    expect(pages.progress()).toBeUndefined()
    pages.take()
    expect(pages.progress()?.place).toEqual({ lsn: 210n })
  })

  test('a transaction whose commit begins where the start is has not been published', () => {
    const pages = made({ start: { lsn: 210n } })
    transaction(pages, 209n, [1])
    transaction(pages, 210n, [2])
    expect(taken(pages)).toEqual(['2 -> 220'])
  })

  test('the same commit position in another place than the start means nothing', () => {
    const pages = made({ start: { lsn: 210n, tx: 300n, rows: 2 } })
    transaction(pages, 301n, [1, 2])
    expect(taken(pages)).toEqual(['1,2 -> 311'])
  })

  test('what the base sees is left out until the first marker of ours has passed', () => {
    let anchor = { snapshot: Snapshot.parse('70:70:'), floor: 7n }
    const pages = made({ published: Snapshot.parse('50:60:55'), onMarker: () => anchor })
    transaction(pages, 200n, [1], 49n)
    transaction(pages, 300n, [2], 55n)
    transaction(pages, 400n, [3], 59n)
    transaction(pages, 500n, [4], 60n)
    const marker = { content: Buffer.of(1), lsn: 600n, prefix: `${MARKER_PREFIX}s`, transactional: false }
    pages.onLogicalMessage(marker)
    transaction(pages, 700n, [5], 49n)
    expect(pages.take()?.messages.map(({ seq }) => seq)).toEqual(['2', '4', '5'])
    anchor = { snapshot: Snapshot.parse('80:80:'), floor: 8n }
    pages.onLogicalMessage(marker)
    expect(pages.progress()).toEqual({ anchor, place: { lsn: 710n } })
    expect(pages.progress()?.anchor).toBeUndefined()
  })

  test('an anchor belongs to the page before whose end its marker came, and to no earlier one', () => {
    const anchor = { snapshot: Snapshot.parse('70:70:'), floor: 7n }
    const pages = made({ onMarker: () => anchor })
    transaction(pages, 200n, [1, 2, 3, 4])
    pages.onLogicalMessage({ content: Buffer.of(1), lsn: 250n, prefix: `${MARKER_PREFIX}s`, transactional: false })
    transaction(pages, 300n, [5])
    expect(pages.take()?.reached.anchor).toBeUndefined()
    expect(pages.take()?.reached.anchor).toBe(anchor)
  })

  test('a keep-alive moves the place between transactions and not inside one', () => {
    const pages = made()
    pages.onKeepalive(150n)
    expect(pages.progress()?.place).toEqual({ lsn: 150n })
    pages.onBegin(400n)
    pages.onKeepalive(500n)
    pages.onMessage(message(1), 1000n, 0, 10)
    expect(pages.take()?.reached.place).toEqual({ lsn: 150n, tx: 400n, rows: 1 })
    pages.onKeepalive(120n)
    pages.onCommit(410n)
    expect(pages.progress()?.place).toEqual({ lsn: 410n })
  })

  test('pages are bounded in bytes, a larger message is a page of its own, and two waiting pages pause the stream', () => {
    const pages = made({ bounds: { maxBytes: 100, maxMessages: 100 } })
    pages.onBegin(200n)
    for (const [n, bytes] of [60, 60, 500, 10].entries()) pages.onMessage(message(n), 1000n, 0, bytes)
    expect(calls).toEqual(['pause'])
    pages.onCommit(210n)
    expect(taken(pages)).toEqual(['0 -> 100 200+1', '1 -> 100 200+2', '2 -> 100 200+3', '3 -> 210'])
    expect(calls).toEqual(['pause', 'resume'])
  })

  test('rows behind a description of the table wait for a look at the publication', async () => {
    let allow!: () => void
    const pages = made({ checkPublication: () => new Promise((resolve) => (allow = () => resolve())) })
    transaction(pages, 200n, [1])
    pages.onRelation()
    transaction(pages, 300n, [2])
    expect(pages.take()?.gate).toBeUndefined()
    const gate = pages.take()?.gate
    let open = false
    void gate?.then(() => (open = true))
    await Promise.resolve()
    expect(open).toBe(false)
    allow()
    await gate
  })

  test('events in the WAL alone count as rows, and are known by their place only', () => {
    const frame = encodeWalEvents([1, 2, 3].map((n) => ({ ...message(n), headers: '{"a":"b"}' })))
    const pages = made({ start: { lsn: 100n, tx: 200n, rows: 1 }, published: Snapshot.parse('5000:5000:') })
    pages.onBegin(200n)
    pages.onLogicalMessage({ content: frame, lsn: 150n, prefix: `${WAL_EVENT_PREFIX}s`, transactional: true })
    pages.onLogicalMessage({ content: frame, lsn: 150n, prefix: `${WAL_EVENT_PREFIX}other`, transactional: true })
    pages.onLogicalMessage({ content: frame, lsn: 150n, prefix: `${WAL_EVENT_PREFIX}s`, transactional: false })
    pages.onCommit(210n)
    const page = pages.take()
    expect(page?.messages.map(({ id, headers, seq }) => [id, headers['a'], seq])).toEqual([
      [message(2).id, 'b', '200'],
      [message(3).id, 'b', '200'],
    ])
    expect(page?.reached.place).toEqual({ lsn: 210n })
  })

  test('a frame that is no frame is left out whole, and told', () => {
    const good = encodeWalEvents([{ ...message(1), headers: '{}' }])
    const pages = made()
    pages.onBegin(200n)
    for (let length = 0; length < good.length; length++) {
      const content = good.subarray(0, length)
      if (length === 1) continue // a frame of no events
      pages.onLogicalMessage({ content, lsn: 150n, prefix: `${WAL_EVENT_PREFIX}s`, transactional: true })
    }
    const { id } = message(1)
    const usable = { id, topic: 't', type: 'x', key: 'k', headers: {} }
    const spoilt = [
      { id: 'a' },
      { topic: '' },
      { topic: 'a\0' },
      { type: 1 },
      { key: 'a\0' },
      { key: 1 },
      { headers: [] },
    ]
    const metas = spoilt.map((one) => JSON.stringify({ ...usable, ...one }))
    for (const meta of ['null', '{}', '[]', `{"id":"${id}"`, ...metas]) {
      const lengths = [Buffer.alloc(4), Buffer.alloc(4)] as const
      lengths[0].writeUInt32BE(meta.length)
      const content = Buffer.concat([Buffer.of(1), lengths[0], Buffer.from(meta), lengths[1]])
      expect(() => decodeWalEvents(content, 0n)).toThrow(/only appendWalOnly/)
    }
    pages.onCommit(210n)
    expect(pages.ready).toBe(false)
    expect(calls).toHaveLength(good.length - 1)
  })
})
