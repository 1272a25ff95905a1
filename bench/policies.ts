/**
 * The world of `simulate.ts`: events in simulated time, one worker with a cost that grows with the rows, and the
 * policies that put batches together for it. Ours is the real `runtime/batcher.ts`; the others are written from their
 * descriptions: https://github.com/SeldonIO/MLServer, https://github.com/Lightning-AI/LitServe and
 * https://github.com/bentoml/BentoML (`marshal/dispatcher.py` of 1.4).
 */
import { Batcher, type Clock } from "../runtime/batcher.ts"

/** Simulated time: events in order, each run to its end, promises included. */
export class Simulation implements Clock {
  #nowMs = 0
  #order = 0
  readonly #heap: SimulatedEvent[] = []

  now(): number {
    return this.#nowMs
  }

  setTimer(callback: () => void, ms: number): () => void {
    const event: SimulatedEvent = { atMs: this.#nowMs + ms, order: this.#order++, callback, cancelled: false }
    this.#push(event)
    return () => {
      event.cancelled = true
    }
  }

  /** Runs everything that happens until then. */
  async runUntil(endMs: number): Promise<void> {
    for (let next = this.#heap[0]; next !== undefined && next.atMs <= endMs; next = this.#heap[0]) {
      this.#pop()
      if (next.cancelled) continue
      this.#nowMs = next.atMs
      next.callback()
      await new Promise((resolve) => setImmediate(resolve))
    }
    this.#nowMs = endMs
  }

  #push(event: SimulatedEvent): void {
    const heap = this.#heap
    let index = heap.length
    heap.push(event)
    while (index > 0) {
      const parent = (index - 1) >> 1
      const above = heap[parent]
      if (above === undefined || !earlier(event, above)) break
      heap[index] = above
      index = parent
    }
    heap[index] = event
  }

  #pop(): void {
    const heap = this.#heap
    const last = heap.pop()
    if (last === undefined || heap.length === 0) return
    let index = 0
    for (;;) {
      let child = 2 * index + 1
      const left = heap[child]
      if (left === undefined) break
      const right = heap[child + 1]
      const smaller = right !== undefined && earlier(right, left) ? right : left
      if (smaller === right) child++
      if (!earlier(smaller, last)) break
      heap[index] = smaller
      index = child
    }
    heap[index] = last
  }
}

interface SimulatedEvent {
  readonly atMs: number
  readonly order: number
  readonly callback: () => void
  cancelled: boolean
}

function earlier(a: SimulatedEvent, b: SimulatedEvent): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order)
}

/** Numbers between 0 and 1 that are the same each time (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

export interface SimulatedJob {
  readonly rows: number
  readonly arrivedMs: number
  answeredMs: number | null
  refusedMs: number | null
}

export const MAX_BATCH = 100
/** Clients go away after this time; an answer after it is worth nothing. */
export const DEADLINE_MS = 500

/** The worker: one batch at a time, 5 ms and 0.2 ms a row, give or take a tenth. 4,000 rows/s at full batches. */
export class SimulatedWorker {
  readonly batches: number[] = []
  busy = false
  readonly #simulation: Simulation
  readonly #random: () => number

  constructor(simulation: Simulation, seed: number) {
    this.#simulation = simulation
    this.#random = randomFrom(seed)
  }

  run(rows: number, done: () => void): void {
    if (this.busy) throw new Error("one batch at a time")
    this.busy = true
    this.batches.push(rows)
    this.#simulation.setTimer(
      () => {
        this.busy = false
        done()
      },
      meanBatchMs(rows) * (0.9 + 0.2 * this.#random()),
    )
  }
}

export function meanBatchMs(rows: number): number {
  return 5 + 0.2 * rows
}

export interface Policy {
  arrive(job: SimulatedJob): void
}

export const POLICIES: Readonly<Record<string, (simulation: Simulation, worker: SimulatedWorker) => Policy>> =
  {
    "no batching": (simulation, worker) => new OneByOne(simulation, worker),
    "size + timeout 10 ms": (simulation, worker) => new SizeAndTimeout(simulation, worker, 10),
    "size + timeout 50 ms": (simulation, worker) => new SizeAndTimeout(simulation, worker, 50),
    "BentoML, learned": (simulation, worker) => new Learned(simulation, worker),
    bentoctl: (simulation, worker) => new Ours(simulation, worker),
  }

class OneByOne implements Policy {
  readonly #simulation: Simulation
  readonly #worker: SimulatedWorker
  readonly #queue: SimulatedJob[] = []

  constructor(simulation: Simulation, worker: SimulatedWorker) {
    this.#simulation = simulation
    this.#worker = worker
  }

  arrive(job: SimulatedJob): void {
    this.#queue.push(job)
    this.#next()
  }

  #next(): void {
    if (this.#worker.busy) return
    const job = this.#queue.shift()
    if (job === undefined) return
    this.#worker.run(job.rows, () => {
      job.answeredMs = this.#simulation.now()
      this.#next()
    })
  }
}

/**
 * MLServer's and LitServe's: a batch is closed when it has so many requests or so much time has passed since its first;
 * closed batches wait for the worker. They count requests, not rows.
 */
class SizeAndTimeout implements Policy {
  readonly #simulation: Simulation
  readonly #worker: SimulatedWorker
  readonly #timeoutMs: number
  readonly #closed: SimulatedJob[][] = []
  #open: SimulatedJob[] = []
  #cancel: (() => void) | null = null

  constructor(simulation: Simulation, worker: SimulatedWorker, timeoutMs: number) {
    this.#simulation = simulation
    this.#worker = worker
    this.#timeoutMs = timeoutMs
  }

  arrive(job: SimulatedJob): void {
    this.#open.push(job)
    if (this.#open.length >= MAX_BATCH) this.#close()
    else this.#cancel ??= this.#simulation.setTimer(() => this.#close(), this.#timeoutMs)
  }

  #close(): void {
    this.#cancel?.()
    this.#cancel = null
    this.#closed.push(this.#open)
    this.#open = []
    this.#next()
  }

  #next(): void {
    if (this.#worker.busy) return
    const batch = this.#closed.shift()
    if (batch === undefined) return
    this.#worker.run(rowsOf(batch), () => {
      for (const job of batch) job.answeredMs = this.#simulation.now()
      this.#next()
    })
  }
}

const TICK_MS = 1

interface LearnedSample {
  readonly jobs: number
  readonly ms: number
  readonly waitMs: number
}

/** BentoML's dispatcher: learns duration over jobs and the usual wait, and looks at the queue each millisecond. */
class Learned implements Policy {
  readonly #simulation: Simulation
  readonly #worker: SimulatedWorker
  readonly #limitMs = DEADLINE_MS
  readonly #queue: SimulatedJob[] = []
  #perJobMs: number
  #fixedMs: number
  #waitMs = 0
  #samples: LearnedSample[] = []
  #skip = 2
  #refreshedMs = Number.NEGATIVE_INFINITY
  #asleep = true
  /** Left of the training: batches to run at a target size, with so many jobs kept in reserve. */
  readonly #training = [
    { reserve: 2, batches: 8, target: 1, refresh: false },
    { reserve: 6, batches: 1, target: 1, refresh: true },
    { reserve: 5, batches: 1, target: 2, refresh: true },
    { reserve: 3, batches: 1, target: 3, refresh: true },
  ]
  #trained = 0

  constructor(simulation: Simulation, worker: SimulatedWorker) {
    this.#simulation = simulation
    this.#worker = worker
    this.#perJobMs = Math.min(2000, (this.#limitMs * 2) / 30)
    this.#fixedMs = Math.min(1000, this.#limitMs / 30)
  }

  arrive(job: SimulatedJob): void {
    this.#queue.push(job)
    if (!this.#asleep) return
    this.#asleep = false
    this.#look()
  }

  #look(): void {
    while (this.#queue.length > 0) {
      const phase = this.#training[0]
      if (phase === undefined ? this.#decide() : this.#train(phase)) continue
      this.#simulation.setTimer(() => this.#look(), TICK_MS)
      return
    }
    this.#asleep = true
  }

  /** True: look again at once. False: sleep for a tick. */
  #train(phase: { reserve: number; batches: number; target: number; refresh: boolean }): boolean {
    const jobs = this.#queue.length
    const oldestMs = this.#ageMs(0)
    if (jobs > phase.reserve - this.#trained && oldestMs >= this.#limitMs) return this.#refuseOldest()
    if (this.#worker.busy) return false
    const { target } = phase
    const expectedMs = target * this.#perJobMs + this.#fixedMs
    const mostMs = Math.min(0.95 * this.#limitMs, (2 * target + 1) * this.#perJobMs + this.#fixedMs)
    if (jobs < target && expectedMs + oldestMs <= mostMs) return false
    this.#dispatch(0)
    this.#trained++
    if (this.#trained === phase.batches) {
      this.#trained = 0
      this.#training.shift()
      if (phase.refresh) this.#refreshedMs = Number.NEGATIVE_INFINITY
    }
    return true
  }

  #decide(): boolean {
    const jobs = this.#queue.length
    const oldestMs = this.#ageMs(0)
    const batchMs = this.#perJobMs * jobs + this.#fixedMs
    if (jobs > 1 && oldestMs + batchMs >= this.#limitMs) return this.#refuseOldest()
    if (this.#worker.busy) return jobs === 1 && oldestMs >= this.#limitMs ? this.#refuseOldest() : false
    if (jobs < MAX_BATCH && jobs * (this.#ageMs(jobs - 1) + TICK_MS + this.#perJobMs) <= 0.95 * this.#waitMs)
      return false
    this.#dispatch(oldestMs)
    return true
  }

  #refuseOldest(): true {
    const job = this.#queue.shift()
    if (job !== undefined) job.refusedMs = this.#simulation.now()
    return true
  }

  #dispatch(waitedMs: number): void {
    const batch: SimulatedJob[] = []
    let rows = 0
    for (let job = this.#queue[0]; job !== undefined && rows + job.rows <= MAX_BATCH; job = this.#queue[0]) {
      batch.push(job)
      rows += job.rows
      this.#queue.shift()
    }
    const startedMs = this.#simulation.now()
    this.#worker.run(rows, () => {
      const nowMs = this.#simulation.now()
      for (const job of batch) job.answeredMs = nowMs
      this.#learn(batch.length, nowMs - startedMs, waitedMs, nowMs)
    })
  }

  #learn(jobs: number, ms: number, waitMs: number, nowMs: number): void {
    if (this.#skip-- > 0) return
    this.#samples = [...this.#samples.slice(-49), { jobs, ms, waitMs }]
    if (nowMs - this.#refreshedMs < 5000) return
    this.#refreshedMs = nowMs
    const count = this.#samples.length
    const mean = (of: (sample: LearnedSample) => number): number =>
      this.#samples.reduce((sum, sample) => sum + of(sample), 0) / count
    const meanJobs = mean((sample) => sample.jobs)
    const meanMs = mean((sample) => sample.ms)
    const spread = mean((sample) => (sample.jobs - meanJobs) ** 2)
    const slope =
      spread === 0 ? 0 : mean((sample) => (sample.jobs - meanJobs) * (sample.ms - meanMs)) / spread
    this.#perJobMs = Math.max(0.001, slope)
    this.#fixedMs = Math.max(0, meanMs - this.#perJobMs * meanJobs)
    this.#waitMs = mean((sample) => sample.waitMs)
  }

  #ageMs(index: number): number {
    return this.#simulation.now() - (this.#queue[index]?.arrivedMs ?? this.#simulation.now())
  }
}

class Ours implements Policy {
  readonly #simulation: Simulation
  readonly #batcher: Batcher<SimulatedJob, null>
  readonly #group = { key: "run", name: "run", maxRows: MAX_BATCH, waitMs: 0 }

  constructor(simulation: Simulation, worker: SimulatedWorker) {
    this.#simulation = simulation
    this.#batcher = new Batcher<SimulatedJob, null>({
      clock: simulation,
      slots: 1,
      maxQueueRows: 10_000,
      maxQueueBytes: Number.MAX_SAFE_INTEGER,
      execute: ({ rows, parts }) =>
        new Promise((resolve) => {
          worker.run(rows, () => resolve({ outputs: parts.map(() => null), inferMs: 0 }))
        }),
      join: () => null,
      refuse: ({ reason }) => new Error(reason),
      isLost: () => false,
    })
    // The runner's warm-up: one row, and a full batch.
    for (const rows of [1, 1, MAX_BATCH, MAX_BATCH])
      this.#batcher.observe(this.#group, rows, meanBatchMs(rows))
  }

  arrive(job: SimulatedJob): void {
    const deadlineMs = this.#simulation.now() + DEADLINE_MS
    this.#batcher.submit({ input: job, rows: job.rows, bytes: 0, group: this.#group, deadlineMs }).then(
      () => (job.answeredMs = this.#simulation.now()),
      () => (job.refusedMs = this.#simulation.now()),
    )
  }
}

function rowsOf(jobs: readonly SimulatedJob[]): number {
  return jobs.reduce((sum, job) => sum + job.rows, 0)
}
