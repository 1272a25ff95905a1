/** A batcher in a world that a test controls: a manual clock, and a model that says which row it saw. */
import {
  type Batch,
  type BatchEvent,
  Batcher,
  type BatcherOptions,
  type Group,
  type Refusal,
} from "../../runtime/batcher.ts"
import { ManualClock, settled } from "./manual-clock.ts"

/** A job's input: one string a row. The model answers each row with `=row`. */
export type Rows = readonly string[]

export class Refused extends Error {
  readonly refusal: Refusal
  constructor(refusal: Refusal) {
    super(refusal.reason)
    this.refusal = refusal
  }
}
export class ModelError extends Error {}
export class LostError extends Error {}

/** A batch as the model saw it. */
export interface Seen {
  readonly group: string
  readonly rows: readonly string[]
  readonly jobs: number
  readonly startMs: number
  /** Did the model answer? */
  done: boolean
}

export interface WorldOptions extends Partial<
  Pick<BatcherOptions<Rows, Rows>, "slots" | "maxQueueRows" | "maxQueueBytes" | "ahead">
> {
  /** How long a batch of so many rows takes. */
  readonly durationMs?: (rows: number, batch: number) => number
  /** Rows that make a whole batch fail. */
  readonly bad?: (row: string) => boolean
  /** Rows that kill the worker. */
  readonly deadly?: (row: string, batch: number) => boolean
}

export class World {
  readonly clock = new ManualClock()
  readonly seen: Seen[] = []
  readonly events: BatchEvent[] = []
  readonly batcher: Batcher<Rows, Rows>
  running = 0
  mostRunning = 0
  /** The batches that are handed over run one after the other, as in a worker. */
  #turn = Promise.resolve()

  constructor(options: WorldOptions = {}) {
    this.batcher = new Batcher<Rows, Rows>({
      clock: this.clock,
      slots: options.slots ?? 1,
      ahead: options.ahead ?? false,
      maxQueueRows: options.maxQueueRows ?? 1000,
      maxQueueBytes: options.maxQueueBytes ?? 1_000_000,
      execute: (batch) => this.#execute(batch, options),
      join: (outputs) => outputs.flat(),
      refuse: (refusal) => new Refused(refusal),
      isLost: (error) => error instanceof LostError,
      onBatch: (event) => this.events.push(event),
    })
  }

  /** Runs a batch of `rows` rows through, so that the cost model has evidence. */
  async teach(group: Group, rows: readonly number[]): Promise<void> {
    for (const count of rows) {
      const job = this.batcher.submit({ input: rowsNamed("teach", count), rows: count, bytes: 0, group })
      const outcome = follow(job, this.clock)
      await settled()
      while (outcome.state === "pending") await this.clock.advance(1)
    }
    this.seen.length = 0
    this.events.length = 0
  }

  async #execute(batch: Batch<Rows>, options: WorldOptions): Promise<{ outputs: Rows[]; inferMs: number }> {
    const index = this.seen.length
    const pieces = batch.parts.map(({ input, from, to }) => input.slice(from, to))
    const rows = pieces.flat()
    const seen = {
      group: batch.group.key,
      rows,
      jobs: batch.parts.length,
      startMs: this.clock.now(),
      done: false,
    }
    this.seen.push(seen)
    this.running++
    this.mostRunning = Math.max(this.mostRunning, this.running)
    const ms = options.durationMs?.(rows.length, index) ?? 10
    const run = (): Promise<void> => new Promise((resolve) => this.clock.setTimer(resolve, ms))
    if (options.ahead === true && options.slots === undefined) await (this.#turn = this.#turn.then(run))
    else await run()
    this.running--
    if (rows.some((row) => options.deadly?.(row, index) ?? false)) throw new LostError("lost")
    if (rows.some((row) => options.bad?.(row) ?? false)) throw new ModelError(rows.join(" "))
    seen.done = true
    return { outputs: pieces.map(answerTo), inferMs: ms }
  }
}

export function answerTo(rows: Rows): Rows {
  return rows.map((row) => `=${row}`)
}

export function rowsNamed(name: string, count: number): Rows {
  return Array.from({ length: count }, (_, index) => `${name}.${index}`)
}

export function groupOf(key: string, maxRows = 10, waitMs = 0): Group {
  return { key, name: key, maxRows, waitMs }
}

/** What became of a promise, once it is settled. */
export interface Outcome {
  state: "pending" | "answered" | "refused" | "failed"
  rows?: Rows
  refusal?: Refusal
  error?: unknown
  atMs?: number
}

export function follow(promise: Promise<Rows>, clock: ManualClock): Outcome {
  const outcome: Outcome = { state: "pending" }
  promise.then(
    (rows) => Object.assign(outcome, { state: "answered", rows, atMs: clock.now() }),
    (error: unknown) =>
      Object.assign(
        outcome,
        { atMs: clock.now() },
        error instanceof Refused ? { state: "refused", refusal: error.refusal } : { state: "failed", error },
      ),
  )
  return outcome
}
