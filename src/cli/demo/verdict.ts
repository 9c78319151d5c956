import type { Pool } from 'pg'

/** What the tables of the two databases say. */
export interface Verdict {
  /** Orders in the shop. */
  readonly committed: number
  /** Invoices in billing beyond the first of their order. */
  readonly doubled: number
  /** Invoices in billing. */
  readonly effects: number
  /** Invoices for orders that the shop does not have: published though they were rolled back. */
  readonly invented: number
  /** Orders without an invoice. */
  readonly lost: number
  /** Invoices that came after the invoice of a later order of the same customer. */
  readonly outOfOrder: number
  /** Order numbers that the shop took and did not keep. */
  readonly rolledBack: number
}

const ORDERS = `select id, customer_id as customer, version from placed_order`

const NUMBERS_TAKEN = `select (last_value - (not is_called)::int)::int as taken from order_number`

const COPY = `
create temporary table sold on commit drop as
select * from unnest($1::bigint[], $2::int[], $3::int[]) as o (order_id, customer_id, version)`

// Which order is later is the shop's word (its versions), not what the events said of it.
const JUDGE = `
with bill as (
  select order_id, n, row_number() over (partition by order_id order by n) as nth from invoice
), first_bill as (
  select version, max(version) over (
    partition by customer_id order by n rows between unbounded preceding and 1 preceding) as latest_before
  from bill join sold using (order_id) where nth = 1
)
select (select count(*) from sold)::int as committed,
       (select count(*) from invoice)::int as effects,
       (select count(*) from sold where order_id not in (select order_id from invoice))::int as lost,
       (select count(*) from bill where nth > 1)::int as doubled,
       (select count(*) from first_bill where version < latest_before)::int as "outOfOrder",
       (select count(*) from invoice where order_id not in (select order_id from sold))::int as invented`

/** Reads the verdict from the tables: the shop's orders are laid beside billing's invoices and compared by SQL. */
export async function readVerdict(shop: Pool, billing: Pool): Promise<Verdict> {
  const orders = await shop.query<[string, number, number]>({ rowMode: 'array', text: ORDERS })
  const numbers = await shop.query<{ taken: number }>(NUMBERS_TAKEN)
  const client = await billing.connect()
  try {
    await client.query('begin')
    await client.query(
      COPY,
      [0, 1, 2].map((column) => orders.rows.map((row) => row[column])),
    )
    const { rows } = await client.query<Omit<Verdict, 'rolledBack'>>(JUDGE)
    await client.query('rollback')
    const judged = rows[0] as Omit<Verdict, 'rolledBack'>
    return { ...judged, rolledBack: (numbers.rows[0]?.taken ?? 0) - judged.committed }
  } finally {
    client.release()
  }
}

/** Each order once, in order, and nothing else. */
export function passes(verdict: Verdict): boolean {
  const { committed, doubled, effects, invented, lost, outOfOrder } = verdict
  return committed > 0 && effects === committed && doubled + invented + lost + outOfOrder === 0
}

/** The last lines of the demo. */
export function verdictText(verdict: Verdict, complete: boolean): string {
  const { committed, doubled, effects, invented, lost, outOfOrder, rolledBack } = verdict
  const rows = [
    ['committed', committed, 'orders in the shop (table placed_order)'],
    ['effects', effects, 'invoices in billing (table invoice)'],
    ['lost', lost, `orders without an invoice${complete ? '' : ', lost or still under way'}`],
    ['double', doubled, 'invoices beyond the first of their order'],
    ['out of order', outOfOrder, 'invoices that came after one of a later order of their customer'],
    ['rolled back', rolledBack, `order numbers without an order; ${invented} of them billed`],
  ] as const
  const lines = rows.map(([name, count, what]) => `  ${name.padEnd(12)} ${String(count).padStart(7)}  ${what}`)
  const word = !passes(verdict) ? 'FAILED' : complete ? 'PASSED' : 'NOT COMPLETE'
  return `
The verdict, read from the tables of the two databases:
${lines.join('\n')}
${word}: committed ${committed}, effects ${effects}, lost ${lost}, double ${doubled}, out of order ${outOfOrder}, \
rolled back and not published ${rolledBack - invented}`
}
