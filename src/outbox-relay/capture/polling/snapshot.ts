/**
 * A Postgres snapshot (`pg_snapshot`): which transactions had ended when it was taken. Transaction ids are 64 bits wide
 * and never wrap.
 */
export class Snapshot {
  /** Every transaction below it had ended. */
  readonly xmin: bigint
  /** One above the latest transaction that had ended. */
  readonly xmax: bigint
  /** The transactions in between that had not ended. */
  readonly inProgress: ReadonlySet<bigint>
  /** As Postgres writes it, `xmin:xmax:xip,xip`: digits, colons and commas, checked. */
  readonly text: string

  private constructor(text: string, xmin: bigint, xmax: bigint, inProgress: ReadonlySet<bigint>) {
    this.text = text
    this.xmin = xmin
    this.xmax = xmax
    this.inProgress = inProgress
  }

  /** Reads what `pg_current_snapshot()::text` gives; throws a RangeError on anything else. */
  static parse(text: string): Snapshot {
    const match = /^(\d{1,20}):(\d{1,20}):((?:\d{1,20}(?:,\d{1,20})*)?)$/.exec(text)
    if (match === null) throw new RangeError(`not a pg_snapshot: ${text.slice(0, 100)}`)
    const [, xmin, xmax, list] = match as unknown as [string, string, string, string]
    const inProgress = new Set(list === '' ? [] : list.split(',').map(BigInt))
    return new Snapshot(text, BigInt(xmin), BigInt(xmax), inProgress)
  }

  /** The snapshot before the first transaction: it sees nothing. (3 is the first normal transaction id.) */
  static readonly NOTHING: Snapshot = Snapshot.parse('3:3:')

  /** True when the transaction had ended, committed or not, when this snapshot was taken. */
  sees(tx: bigint): boolean {
    return tx < this.xmin || (tx < this.xmax && !this.inProgress.has(tx))
  }

  /** The transactions that were in progress here and had ended by the time of `later`. */
  endedBy(later: Snapshot): bigint[] {
    const ended: bigint[] = []
    for (const tx of this.inProgress) if (later.sees(tx)) ended.push(tx)
    return ended
  }
}
