/**
 * The demo: a shop (`shop.ts`) and a billing service (`billing.ts`) with a database each, a relay in a process of its own
 * (`relay-process.ts`) and a broker between them, all set up by `stage.ts`. This file is the script: what starts when,
 * when the relay is killed, when it is over. `live-view.ts` shows it; `verdict.ts` judges it, from the tables alone.
 *
 * One thing can cut it short (`Cut`): a signal, the time limit, or a part that fails. Whatever happens, what was started
 * is ended in reverse order (`cleanup.ts`); and if this process dies, its parts notice that themselves.
 */
import type { Consumer } from '../../consumer/consumer.ts'
import { delay, systemClock } from '../../core/clock.ts'
import { newId } from '../../core/ids.ts'
import { explainError } from '../../daemon/explain-error.ts'
import { redactUrls } from '../../daemon/redact.ts'
import { EXIT_BY_SIGNAL, type StopSignal } from '../../daemon/stop-signals.ts'
import { EXIT } from '../exit-code.ts'
import { createBilling } from './billing.ts'
import { Cleanup } from './cleanup.ts'
import { Cut } from './cut.ts'
import { introduction } from './introduction.ts'
import type { View } from './live-view.ts'
import { PublishedCount } from './published-count.ts'
import { RelayProcess } from './relay-process.ts'
import { Shop } from './shop.ts'
import { setStage, type Stage } from './stage.ts'
import { passes, readVerdict, verdictText } from './verdict.ts'

/** How the demo is run. */
export interface DemoOptions {
  /** The URL of a real broker; without it the demo hosts one. */
  readonly broker: string | undefined
  readonly orders: number
  /** Resolves when somebody asks the demo to end. */
  readonly stop: Promise<StopSignal>
  readonly timeoutMs: number
  readonly view: View
}

const KILLS = 3
/** When time is out: how long what is under way may still take. */
const CATCH_UP_MS = 3000
/** How long the broker must be silent after the relay has drained before the tables are read. */
const QUIET_MS = 300

/** Runs the demo and resolves with the exit code. */
export async function runDemo(options: DemoOptions): Promise<number> {
  const { orders, stop, timeoutMs, view } = options
  const cleanup = new Cleanup()
  const cut = new Cut()
  const limit = systemClock.setTimer(() => cut.now({ kind: 'time' }), timeoutMs)
  void stop.then((signal) => cut.now({ kind: 'signal', signal }))
  try {
    const topic = `millrace-demo-${newId().slice(-12)}`
    view.say(introduction(orders, options.broker, topic))
    const stage = await cut.race(setStage(options.broker, topic, cleanup))
    return await play(options, stage, cleanup, cut)
  } catch (error) {
    view.end()
    if (cut.cause?.kind === 'signal') {
      view.say(`\n${cut.cause.signal}: ending everything.`)
      return EXIT_BY_SIGNAL[cut.cause.signal]
    }
    view.say(`\nFAILED: ${redactUrls(cut.cause?.kind === 'time' ? outOfTime(timeoutMs) : explainError(error))}`)
    return EXIT.failure
  } finally {
    limit.clear()
    view.end()
    await cleanup.run((trouble) => view.say(redactUrls(trouble)))
  }
}

async function play(options: DemoOptions, stage: Stage, cleanup: Cleanup, cut: Cut): Promise<number> {
  const { orders, view } = options
  const billing = createBilling({ ...stage, pool: stage.billing })
  cleanup.add('the billing service', () => billing.stop({ timeoutMs: 2000 }))
  billing.stopped.catch((error: unknown) => cut.now({ kind: 'failure', error }))
  const relay = new RelayProcess({ broker: stage.brokerUrl, databaseUrl: stage.shopUrl })
  cleanup.add('the relay', () => relay.close())
  void relay.failed.then((error) => cut.now({ kind: 'failure', error }))
  await cut.race(Promise.all([billing.start(), relay.start()]))

  const shop = new Shop({ orders, pool: stage.shop, topic: stage.topic })
  cleanup.add('the shop', () => shop.stop())
  const published = new PublishedCount(stage.shop)
  cleanup.add('the count of what is published', () => published.stop())
  const startedAt = systemClock.monotonic()
  view.start(() => ({
    committed: shop.committed,
    dropped: billing.stats().duplicates,
    elapsedMs: systemClock.monotonic() - startedAt,
    handled: billing.stats().handled,
    kills: relay.kills,
    published: Math.max(published.value, billing.stats().handled), // what was handled, was published
  }))
  try {
    published.start()
    const done = Promise.all([shop.start(), killRelay(options, { billing, relay, shop }, cut)])
    await cut.race(done)
    await cut.until(() => billing.stats().handled >= shop.committed)
  } catch (error) {
    // Out of time is not out of data: what is in the tables says how far it came.
    if (cut.cause?.kind !== 'time') throw error
    view.end()
    view.say(`\nFAILED: ${outOfTime(options.timeoutMs)} Handled ${billing.stats().handled} of ${shop.committed}.`)
    await shop.stop()
    const end = systemClock.monotonic() + CATCH_UP_MS
    while (billing.stats().handled < shop.committed && systemClock.monotonic() < end) await delay(systemClock, 10)
  }
  const left = await relay.drain()
  if (left !== undefined) view.say(`The relay did not drain as it should: ${left}`)
  await quiet(billing)
  await billing.stop({ timeoutMs: 5000 })
  view.end()

  const verdict = await readVerdict(stage.shop, stage.billing)
  const { duplicates } = billing.stats()
  view.say(
    `\nThe relay was killed ${relay.kills} times by kill -9; ${stage.deliveredTwice()} messages were delivered twice on purpose.\n` +
      `The inbox dropped ${duplicates} duplicates: those, and what a killed relay had sent already.`,
  )
  const complete = cut.cause === undefined && verdict.committed === orders && relay.kills === KILLS
  view.say(verdictText(verdict, complete))
  return complete && passes(verdict) ? EXIT.ok : EXIT.failure
}

/**
 * Kills the relay when a quarter, a half and three quarters of all orders are billed. The shop may not run further ahead
 * than halfway to the kill after that, so that on any machine each kill finds events that are still to be relayed.
 */
async function killRelay(
  { orders, view }: DemoOptions,
  { billing, relay, shop }: { readonly billing: Consumer; readonly relay: RelayProcess; readonly shop: Shop },
  cut: Cut,
): Promise<void> {
  const mark = (kill: number): number => Math.floor((orders * kill) / (KILLS + 1))
  for (let kill = 1; kill <= KILLS; kill++) {
    shop.allow(mark(kill + 0.5))
    await cut.until(() => billing.stats().handled >= mark(kill))
    const { pid } = relay
    await relay.kill()
    view.say(`kill -9 ${pid}: the relay is dead, ${shop.committed - billing.stats().handled} orders are not billed yet`)
    shop.allow(kill === KILLS ? orders : mark(kill + 1.5))
    await relay.start()
  }
}

/** Resolves when nothing has come from the broker for a while and nothing is in work. */
async function quiet(billing: Consumer): Promise<void> {
  let before = -1
  for (let tries = 0; tries < 20 && before !== billing.stats().received + billing.stats().inFlight; tries++) {
    before = billing.stats().received + billing.stats().inFlight
    await delay(systemClock, QUIET_MS)
  }
}

function outOfTime(timeoutMs: number): string {
  return `it did not come to its end within ${timeoutMs / 1000} s. Raise --timeout-ms, or ask for fewer --orders.`
}
