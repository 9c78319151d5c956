import type { Lane } from '../flow/index.ts'
import type { Delivery, PartitionState } from './partition-state.ts'

/** The messages of one effect transaction: the taken heads of some lanes, lane by lane, each in its order. */
export class Group {
  /** It is one message that was to run by itself, after a failure. */
  readonly alone: boolean
  readonly deliveries: readonly Delivery[]
  readonly lanes: readonly Lane<Delivery>[]
  readonly partitions: ReadonlySet<PartitionState>
  readonly #controller = new AbortController()

  constructor(lanes: readonly Lane<Delivery>[]) {
    const deliveries: Delivery[] = []
    const partitions = new Set<PartitionState>()
    for (const lane of lanes) {
      let delivery = lane.head
      for (let i = 0; i < lane.taken && delivery !== undefined; i++) {
        deliveries.push(delivery)
        partitions.add(delivery.partition)
        delivery = delivery.next
      }
    }
    this.alone = (lanes[0]?.alone ?? 0) > 0
    this.deliveries = deliveries
    this.lanes = lanes
    this.partitions = partitions
    for (const partition of partitions) partition.enter()
  }

  /** Aborts when the group's result is not wanted any more. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Gives the group up: its transaction rolls back. */
  abort(): void {
    this.#controller.abort()
  }

  /** The group is over, one way or another. */
  end(): void {
    for (const partition of this.partitions) partition.leave()
  }
}
