/**
 * The adaptive batcher: a bounded queue of jobs in front of a few slots (workers) that run one batch each.
 *
 * It knows neither HTTP nor ONNX: it counts rows, compares deadlines and asks `execute` to run what it has put
 * together. It wakes on events only: a job came, a batch ended, its one timer. There is no polling and no training.
 *
 * How a batch comes about (docs/batching.md tells it at length):
 * - A free slot takes what is there at once; while all are busy, jobs gather, and the next batch takes all that fits.
 * - Jobs of different groups never meet in a batch. Groups share the slots fairly: who has used the least time is next.
 * - Within a group two lanes, each first in, first out: jobs that fit into a batch whole, and longer ones that run in
 *   parts. Where both wait, each gets half of every batch, so that one huge job does not make small ones wait for it.
 * - A failed batch of several jobs is halved and run again until the bad job stands alone.
 */
import { CostModel, LEAST_MARGIN } from "./cost-model.ts"

/** Monotonic milliseconds, and a timer that can be taken back. */
export interface Clock {
  now(): number
  setTimer(callback: () => void, ms: number): () => void
}

/** Jobs with the same key may share a batch. `maxRows` 1 with jobs of one row each: no batching. */
export interface Group {
  readonly key: string
  /** What the group is called in metrics; several groups may share it. */
  readonly name: string
  readonly maxRows: number
  /** How long the oldest job may be kept back for company while a slot is free. */
  readonly waitMs: number
}

export interface JobRequest<I> {
  readonly input: I
  readonly rows: number
  readonly bytes: number
  readonly group: Group
  /** When the answer is worthless, on the clock's scale. */
  readonly deadlineMs?: number
  readonly signal?: AbortSignal
  /** Filled before the promise resolves. */
  readonly timing?: RunTiming
}

/** Where a job's time went. */
/** Several jobs that share one add up, but for the rows of a batch: those of the largest. */
export interface RunTiming {
  /** From submission until its first batch was handed over. */
  queueMs: number
  /** In the model; of a job in parts, the sum. */
  inferMs: number
  /** Rows of the largest batch that it was in. */
  batchRows: number
}

/** Rows `from` (included) to `to` (excluded) of a job's input. */
export interface BatchPart<I> {
  readonly input: I
  readonly from: number
  readonly to: number
}

export interface Batch<I> {
  readonly group: Group
  readonly parts: readonly BatchPart<I>[]
  readonly rows: number
}

/** One output for each part, in the same order. */
export interface BatchResult<O> {
  readonly outputs: readonly O[]
  readonly inferMs: number
}

export type RefusalReason =
  /** Queue full: rows or bytes. */
  | "full"
  /** The job alone is larger than the queue. */
  | "too-large"
  /** By the measured rate the deadline cannot be met. */
  | "too-late"
  /** The deadline passed. */
  | "expired"
  | "draining"
  /** The caller's signal fired. */
  | "aborted"
  /** The worker was lost with this job in it, twice. */
  | "lost"

export interface Refusal {
  readonly reason: RefusalReason
  /** When it is worth asking again: whole seconds, at least 1. */
  readonly retryAfterS: number
  readonly rows: number
}

export interface BatcherOptions<I, O> {
  readonly clock: Clock
  /** How many batches run at once. */
  readonly slots: number
  readonly maxQueueRows: number
  readonly maxQueueBytes: number
  /** Runs a batch; called with at most `slots` batches at a time, twice as many with `ahead`. */
  readonly execute: (batch: Batch<I>) => Promise<BatchResult<O>>
  /** Puts together what the parts of one job gave, in the order of its rows. */
  readonly join: (outputs: readonly O[], input: I) => O
  /** The error that a refused job's promise rejects with. */
  readonly refuse: (refusal: Refusal) => Error
  /** Did the worker die, rather than the model object to a row? Then the jobs run again, once, each alone. */
  readonly isLost: (error: unknown) => boolean
  /** May a full batch be handed over before a slot is free? See `#aheadGroup`. */
  readonly ahead?: boolean
  /** Runs a function soon, when events that are already here have been handled; at once by default. */
  readonly defer?: (callback: () => void) => void
  readonly onBatch?: (event: BatchEvent) => void
  /** A job's first batch begins. */
  readonly onStart?: (group: Group, queueMs: number) => void
  readonly onRefusal?: (refusal: Refusal) => void
}

export interface BatchEvent {
  readonly group: Group
  readonly rows: number
  readonly jobs: number
  /** How long it held its slot. */
  readonly ms: number
  /** In the model; 0 unless done. */
  readonly inferMs: number
  readonly outcome: "done" | "failed" | "lost"
  /** A second attempt at jobs of a batch that failed. */
  readonly retry: boolean
}

export interface BatcherStats {
  readonly queueJobs: number
  readonly queueRows: number
  readonly queueBytes: number
  readonly runningBatches: number
  /** How long the queue would take to empty, by the cost models. */
  readonly backlogMs: number
  readonly groups: readonly {
    readonly key: string
    readonly name: string
    readonly queueRows: number
    readonly fixedMs: number
    readonly perRowMs: number
    readonly samples: number
  }[]
}

/** Groups that have nothing to do are forgotten beyond this number, the longest unused first. */
const MAX_IDLE_GROUPS = 64
/** No longer batch than this is handed over before a slot is free. */
const AHEAD_MS = 20
/** What a batch is charged when nothing is known about its group. */
const UNKNOWN_MS = 1

/** A submitted job. In a lane as long as rows are left to take; settled exactly once. */
class Job<I, O> {
  readonly request: JobRequest<I>
  readonly deadlineMs: number
  readonly enqueuedMs: number
  readonly queue: GroupQueue<I, O>
  readonly resolve: (output: O) => void
  readonly reject: (error: unknown) => void
  /** Rows that have been put into batches, from the front. */
  taken = 0
  /** Rows that have their answer. */
  answered = 0
  /** Answers of a job in parts. */
  outputs: { readonly from: number; readonly output: O }[] | null = null
  settled = false
  inferMs = 0
  batchRows = 0
  startedMs = -1
  onAbort: (() => void) | null = null
  lane: Lane<I, O> | null = null
  prev: Job<I, O> | null = null
  next: Job<I, O> | null = null

  constructor(
    request: JobRequest<I>,
    queue: GroupQueue<I, O>,
    nowMs: number,
    resolve: (output: O) => void,
    reject: (error: unknown) => void,
  ) {
    this.request = request
    this.queue = queue
    this.enqueuedMs = nowMs
    this.deadlineMs = request.deadlineMs ?? Number.POSITIVE_INFINITY
    this.resolve = resolve
    this.reject = reject
  }
}

/** Jobs in the order they came; any one can be taken out. */
class Lane<I, O> {
  head: Job<I, O> | null = null
  tail: Job<I, O> | null = null
  jobs = 0
  /** Sum of `enqueuedMs`: tells how long all have waited together. */
  enqueuedSumMs = 0

  push(job: Job<I, O>): void {
    job.lane = this
    job.prev = this.tail
    if (this.tail === null) this.head = job
    else this.tail.next = job
    this.tail = job
    this.jobs++
    this.enqueuedSumMs += job.enqueuedMs
  }

  remove(job: Job<I, O>): void {
    if (job.prev === null) this.head = job.next
    else job.prev.next = job.next
    if (job.next === null) this.tail = job.prev
    else job.next.prev = job.prev
    job.lane = job.prev = job.next = null
    this.jobs--
    this.enqueuedSumMs = this.jobs === 0 ? 0 : this.enqueuedSumMs - job.enqueuedMs
  }
}

interface Part<I, O> {
  readonly job: Job<I, O>
  readonly from: number
  readonly to: number
  /** The worker was lost with it once. */
  readonly lost: boolean
}

/** Parts of a failed batch. `other` is the half that must hold the bad job if `parts` turn out to be good. */
interface Suspects<I, O> {
  readonly parts: readonly Part<I, O>[]
  readonly other: readonly Part<I, O>[] | null
}

class GroupQueue<I, O> {
  readonly group: Group
  readonly cost = new CostModel()
  /** Jobs of at most `maxRows` rows. */
  readonly whole = new Lane<I, O>()
  /** Longer ones. */
  readonly long = new Lane<I, O>()
  /** To run before anything else of this group. */
  suspects: Suspects<I, O>[] = []
  running = 0
  /** Rows in the lanes that are in no batch yet. */
  rows = 0
  /** Time this group has had, on a scale all groups share; the smallest is next. */
  virtualMs = 0
  /** Rows that jobs of the whole lane may take beyond their half, because they could not use it before. */
  credit = 0
  /** The largest batch that makes sense under the present deadlines; at most `maxRows`. */
  mostRows: number
  /** What the lanes' work will take, by the cost model; part of the batcher's sum. */
  backlogMs = 0
  /** No job in the lanes is due earlier. */
  dueMs = Number.POSITIVE_INFINITY
  lastArrivalMs: number | null = null
  /** Smoothed time between arrivals; null before the second. */
  gapMs: number | null = null

  constructor(group: Group) {
    this.group = group
    this.mostRows = group.maxRows
  }

  get idle(): boolean {
    return this.waiting === false && this.running === 0
  }

  get waiting(): boolean {
    return this.whole.head !== null || this.long.head !== null || this.suspects.length > 0
  }
}

interface Running<I, O> {
  readonly queue: GroupQueue<I, O>
  readonly parts: readonly Part<I, O>[]
  readonly rows: number
  /** When its slot took it up. */
  startedMs: number
  /** Handed over, but its slot is not through with the one before. */
  ahead: boolean
  readonly chargedMs: number
  readonly other: readonly Part<I, O>[] | null
  readonly retry: boolean
}

export class Batcher<I, O> {
  readonly #options: BatcherOptions<I, O>
  readonly #clock: Clock
  /** All groups known, the least recently used first. */
  readonly #groups = new Map<string, GroupQueue<I, O>>()
  /** Those with something to run. */
  readonly #active = new Set<GroupQueue<I, O>>()
  readonly #running = new Set<Running<I, O>>()
  #slots: number
  #queueJobs = 0
  #queueRows = 0
  #queueBytes = 0
  #backlogMs = 0
  /** Virtual time of the batch begun last; a group that comes back starts here, it does not save up. */
  #virtualMs = 0
  #pumpPlanned = false
  #timer: (() => void) | null = null
  #timerMs = Number.POSITIVE_INFINITY
  #draining = false
  #whenEmpty: (() => void)[] = []

  constructor(options: BatcherOptions<I, O>) {
    this.#options = options
    this.#clock = options.clock
    this.#slots = options.slots
  }

  /** How many batches may run at once from now on; 0 while no worker is up. */
  set slots(slots: number) {
    this.#slots = slots
    this.#wake()
  }

  /** Resolves with the job's output, or rejects: with what `refuse` made, or with what `execute` threw for it. */
  submit(request: JobRequest<I>): Promise<O> {
    const nowMs = this.#clock.now()
    const refusal = this.#refusalOf(request, nowMs)
    if (refusal !== null) return Promise.reject(this.#refused(refusal))
    const queue = this.#queueOf(request.group)
    return new Promise<O>((resolve, reject) => {
      const job = new Job(request, queue, nowMs, resolve, reject)
      const { signal } = request
      if (signal !== undefined) {
        job.onAbort = () => {
          // Whoever watches over the same deadline elsewhere says it by this signal, in the same millisecond.
          this.#drop(job, job.deadlineMs < this.#clock.now() + 1 ? "expired" : "aborted")
          this.#wake()
        }
        signal.addEventListener("abort", job.onAbort, { once: true })
      }
      this.#enqueue(job, nowMs)
    })
  }

  stats(): BatcherStats {
    const nowMs = this.#clock.now()
    return {
      queueJobs: this.#queueJobs,
      queueRows: this.#queueRows,
      queueBytes: this.#queueBytes,
      runningBatches: this.#running.size,
      backlogMs: this.#backlogMs / Math.max(1, this.#slots),
      groups: [...this.#groups.values()].map((queue) => ({
        key: queue.group.key,
        name: queue.group.name,
        queueRows: queue.rows,
        ...queue.cost.fit(nowMs),
      })),
    }
  }

  /** Tells the cost model of a batch that was run outside the queue, such as a warm-up. */
  observe(group: Group, rows: number, ms: number): void {
    this.#queueOf(group).cost.add(rows, ms, this.#clock.now())
  }

  /** Takes no more jobs; resolves when all that were taken have their answer. Without `drain` they are refused. */
  close(options: { drain: boolean }): Promise<void> {
    this.#draining = true
    if (!options.drain) for (const job of this.#unsettled()) this.#drop(job, "draining")
    const empty = new Promise<void>((resolve) => this.#whenEmpty.push(resolve))
    this.#wake()
    return empty
  }

  #refusalOf(request: JobRequest<I>, nowMs: number): Refusal | null {
    const { rows, bytes, deadlineMs = Number.POSITIVE_INFINITY } = request
    const { maxQueueRows, maxQueueBytes } = this.#options
    const refusal = (reason: RefusalReason, afterMs: number): Refusal => ({
      reason,
      rows,
      retryAfterS: Math.max(1, Math.ceil(afterMs / 1000)),
    })
    if (request.signal?.aborted === true) return refusal("aborted", 0)
    if (this.#draining) return refusal("draining", 0)
    if (deadlineMs <= nowMs) return refusal("expired", this.#backlogMs / Math.max(1, this.#slots))
    if (rows > maxQueueRows || bytes > maxQueueBytes) return refusal("too-large", 0)
    if (this.#queueRows + rows > maxQueueRows || this.#queueBytes + bytes > maxQueueBytes) {
      return refusal("full", this.#backlogMs / Math.max(1, this.#slots))
    }
    if (deadlineMs !== Number.POSITIVE_INFINITY) {
      const finishMs = this.#finishMs(request, nowMs)
      // With a margin: a job that is let in should make it, not be refused after it has waited.
      const margin = this.#groups.get(request.group.key)?.cost.margin(nowMs) ?? 0
      const lateMs = finishMs + margin * Math.max(0, finishMs - nowMs) - deadlineMs
      if (lateMs > 0) return refusal("too-late", lateMs)
    }
    return null
  }

  /**
   * When a job that came now would have its answer, by the cost models; 0 where they know too little. An idle batcher
   * says 0 too: the job that nobody waits behind is the one from which a wrong model learns better.
   */
  #finishMs(request: JobRequest<I>, nowMs: number): number {
    const queue = this.#groups.get(request.group.key)
    if (queue === undefined || !queue.cost.trusted(nowMs)) return 0
    if (this.#running.size === 0 && this.#queueJobs === 0) return 0
    const mostRows = mostRowsWithin(queue, (request.deadlineMs ?? Number.POSITIVE_INFINITY) - nowMs, nowMs)
    // Beyond one batch, the job's own will be full as well: others come until it begins.
    const batches = Math.ceil((queue.rows + request.rows) / mostRows)
    const fullMs = queue.cost.predictMs(Math.min(mostRows, queue.rows + request.rows)) ?? 0
    const ownMs = batches * fullMs
    const others = this.#active.size - (this.#active.has(queue) ? 1 : 0)
    const othersMs = Math.min(this.#backlogMs - queue.backlogMs, ownMs * others)
    const slots = Math.max(1, this.#slots)
    let freeMs = 0
    if (this.#running.size >= slots) {
      freeMs = Number.POSITIVE_INFINITY
      let aheadMs = 0
      for (const running of this.#running) {
        if (running.ahead) aheadMs += running.chargedMs
        else freeMs = Math.min(freeMs, Math.max(0, running.startedMs + running.chargedMs - nowMs))
      }
      freeMs += aheadMs / slots
    }
    return nowMs + freeMs + (ownMs + othersMs - fullMs) / slots + fullMs
  }

  #queueOf(group: Group): GroupQueue<I, O> {
    let queue = this.#groups.get(group.key)
    if (queue === undefined) {
      queue = new GroupQueue(group)
      this.#groups.set(group.key, queue)
      this.#forgetIdleGroups()
    }
    return queue
  }

  #forgetIdleGroups(): void {
    if (this.#groups.size - this.#active.size <= MAX_IDLE_GROUPS) return
    for (const [key, queue] of this.#groups) {
      if (!queue.idle) continue
      this.#groups.delete(key)
      break
    }
  }

  #enqueue(job: Job<I, O>, nowMs: number): void {
    const { queue } = job
    const { rows, bytes } = job.request
    const { waitMs } = queue.group
    if (waitMs > 0 && queue.lastArrivalMs !== null) {
      // A pause tells only that nobody came for longer than anybody would wait.
      const gapMs = Math.min(nowMs - queue.lastArrivalMs, 2 * waitMs)
      queue.gapMs = queue.gapMs === null ? gapMs : queue.gapMs + (gapMs - queue.gapMs) / 8
    }
    queue.lastArrivalMs = nowMs
    ;(rows > queue.group.maxRows ? queue.long : queue.whole).push(job)
    queue.rows += rows
    queue.dueMs = Math.min(queue.dueMs, job.deadlineMs)
    this.#queueJobs++
    this.#queueRows += rows
    this.#queueBytes += bytes
    this.#activate(queue)
    this.#rate(queue)
    this.#alarm(job.deadlineMs, nowMs)
    this.#wake()
  }

  #activate(queue: GroupQueue<I, O>): void {
    if (this.#active.has(queue)) return
    this.#active.add(queue)
    if (queue.running === 0) queue.virtualMs = Math.max(queue.virtualMs, this.#virtualMs)
    // Move to the end: used last.
    this.#groups.delete(queue.group.key)
    this.#groups.set(queue.group.key, queue)
  }

  /** Brings the sum of all backlogs up to date after a group's rows or cost have changed. */
  #rate(queue: GroupQueue<I, O>): void {
    const backlogMs = backlogOf(queue, queue.rows, queue.mostRows)
    this.#backlogMs = this.#queueRows === 0 ? 0 : this.#backlogMs + backlogMs - queue.backlogMs
    queue.backlogMs = backlogMs
  }

  /** Looks for work now, or as soon as the events that are already here have been handled. */
  #wake(): void {
    const { defer } = this.#options
    if (defer === undefined) {
      if (!this.#pumpPlanned) this.#pump()
    } else if (!this.#pumpPlanned) {
      this.#pumpPlanned = true
      defer(() => this.#pump())
    }
  }

  #pump(): void {
    // `execute` may come back with a job of its own; the loop below will see it.
    this.#pumpPlanned = true
    const nowMs = this.#clock.now()
    for (;;) {
      const ahead = this.#running.size >= this.#slots
      const queue = ahead ? this.#aheadGroup(nowMs) : this.#nextGroup(nowMs)
      if (queue === null) break
      const batch = this.#take(queue, nowMs, ahead)
      if (!queue.waiting) this.#deactivate(queue)
      this.#rate(queue)
      if (batch !== null) this.#start(batch)
    }
    this.#pumpPlanned = false
    if (this.#draining && this.#running.size === 0 && this.#active.size === 0) {
      this.#timer?.()
      this.#timer = null
      for (const resolve of this.#whenEmpty.splice(0)) resolve()
    }
  }

  #deactivate(queue: GroupQueue<I, O>): void {
    this.#active.delete(queue)
    queue.dueMs = Number.POSITIVE_INFINITY
    queue.credit = 0
  }

  /** Of the groups that need not wait for company, the one that has had the least time. */
  #nextGroup(nowMs: number): GroupQueue<I, O> | null {
    let next: GroupQueue<I, O> | null = null
    for (const queue of this.#active) {
      if (next !== null && next.virtualMs <= queue.virtualMs) continue
      const releaseMs = this.#releaseMs(queue, nowMs)
      if (releaseMs <= nowMs) next = queue
      else this.#alarm(releaseMs, nowMs)
    }
    return next
  }

  /**
   * The group of which a batch is handed over although no slot is free, so that a slot goes from one batch to the next
   * without waiting for this thread, which may be busy with requests for longer than a batch takes. What is handed over
   * can neither grow nor be taken back, so this is only for batches that are full and short, and only where no other
   * group waits or runs: one that waits would have to wait for them, and they for one that runs, which may take long,
   * while another slot stands idle.
   */
  #aheadGroup(nowMs: number): GroupQueue<I, O> | null {
    if (this.#options.ahead !== true || this.#running.size >= 2 * this.#slots || this.#active.size !== 1)
      return null
    for (const queue of this.#active) {
      if (queue.running !== this.#running.size) return null
      const { maxRows } = queue.group
      const fullMs = queue.cost.predictMs(maxRows)
      if (queue.suspects.length > 0 || queue.rows < maxRows || queue.mostRows < maxRows) return null
      if (fullMs === null || fullMs > AHEAD_MS || !queue.cost.trusted(nowMs)) return null
      return queue
    }
    return null
  }

  /**
   * Until when a group is kept back for company although a slot is free. Joining one more job saves the fixed part of
   * a batch; so waiting pays only while the next arrival is expected before the jobs here have together waited for as
   * long as that, and never makes the first of them late.
   */
  #releaseMs(queue: GroupQueue<I, O>, nowMs: number): number {
    const { waitMs, maxRows } = queue.group
    const { whole } = queue
    if (waitMs <= 0 || this.#draining || whole.head === null || queue.long.head !== null) return nowMs
    if (queue.suspects.length > 0 || queue.rows >= maxRows || queue.gapMs === null) return nowMs
    const { fixedMs } = queue.cost.fit(nowMs)
    if (queue.gapMs > waitMs || whole.jobs * queue.gapMs > fixedMs) return nowMs
    const savedMs = fixedMs - (whole.jobs * nowMs - whole.enqueuedSumMs)
    const latestMs = queue.dueMs - (queue.cost.predictMs(maxRows) ?? 0)
    return Math.min(nowMs + savedMs / whole.jobs, whole.head.enqueuedMs + waitMs, latestMs)
  }

  /** Whether as much of a group waits as goes into one batch. */
  #isFull(queue: GroupQueue<I, O> | null): boolean {
    return queue !== null && queue.rows >= queue.mostRows
  }

  /** The next batch of a group; null when all that waited turned out to be dead. */
  #take(queue: GroupQueue<I, O>, nowMs: number, ahead: boolean): Running<I, O> | null {
    for (let suspects = queue.suspects.shift(); suspects !== undefined; suspects = queue.suspects.shift()) {
      const parts = suspects.parts.filter((part) => this.#alive(part.job, nowMs))
      if (parts.length > 0) return this.#batchOf(queue, parts, nowMs, { retry: true, other: suspects.other })
      if (suspects.other !== null) queue.suspects.unshift({ parts: suspects.other, other: null })
    }
    const parts: Part<I, O>[] = []
    const { maxRows } = queue.group
    const head = queue.whole.head
    const first = head ?? queue.long.head
    const most = first === null ? maxRows : mostRowsWithin(queue, first.deadlineMs - first.enqueuedMs, nowMs)
    queue.mostRows = most
    let quota = most
    if (queue.long.head !== null) quota = Math.min(maxRows, queue.credit + most / 2)
    else if (head !== null) quota = Math.max(most, head.request.rows)
    const rows = this.#takeWhole(queue, quota, parts, nowMs)
    queue.credit = queue.whole.head === null ? 0 : quota - rows
    this.#takeLong(queue, most - rows, parts, nowMs)
    return parts.length === 0 ? null : this.#batchOf(queue, parts, nowMs, { ahead })
  }

  /**
   * Fills a batch from the lane of jobs that fit whole.
   *
   * While all that waits fits into one batch, the batch does not grow beyond what its tightest deadline allows. Where
   * more waits than that, there is overload, and small batches would only make it worse: then a job that a full batch
   * would make late is refused.
   */
  #takeWhole(queue: GroupQueue<I, O>, quota: number, parts: Part<I, O>[], nowMs: number): number {
    const { cost } = queue
    const trusted = cost.trusted(nowMs)
    const overload = queue.rows > quota
    const fullMs = overload ? (cost.predictMs(quota) ?? 0) : 0
    let rows = 0
    let dueMs = Number.POSITIVE_INFINITY
    for (let job = queue.whole.head; job !== null; job = queue.whole.head) {
      if (!this.#alive(job, nowMs) || !this.#inTime(job, nowMs, fullMs, parts.length > 0)) continue
      const grown = rows + job.request.rows
      if (grown > quota) break
      dueMs = Math.min(dueMs, job.deadlineMs)
      const grownMs = (1 + cost.margin(nowMs)) * (cost.predictMs(grown) ?? 0)
      if (trusted && !overload && parts.length > 0 && nowMs + grownMs > dueMs) break
      parts.push(this.#takeRows(job, job.request.rows, nowMs))
      rows = grown
    }
    return rows
  }

  #takeLong(queue: GroupQueue<I, O>, capacity: number, parts: Part<I, O>[], nowMs: number): void {
    let left = Math.floor(capacity)
    for (let job = queue.long.head; job !== null && left > 0; job = queue.long.head) {
      if (!this.#alive(job, nowMs)) continue
      const part = this.#takeRows(job, Math.min(left, job.request.rows - job.taken), nowMs)
      parts.push(part)
      left -= part.to - part.from
    }
  }

  /** Still worth running? What is past its deadline is told so, and leaves the queue. */
  #alive(job: Job<I, O>, nowMs: number): boolean {
    if (job.settled) return false
    if (job.deadlineMs > nowMs) return true
    this.#drop(job, "expired")
    return false
  }

  /**
   * Can the job still be in time if it runs at once, in a batch that takes at least `batchMs`? Otherwise it is refused,
   * unless nobody else is here (see #finishMs).
   */
  #inTime(job: Job<I, O>, nowMs: number, batchMs: number, company: boolean): boolean {
    if (job.deadlineMs === Number.POSITIVE_INFINITY) return true
    const { cost } = job.queue
    if (!cost.trusted(nowMs) || (!company && this.#queueJobs === 1 && this.#running.size === 0)) return true
    if (nowMs + Math.max(batchMs, cost.predictMs(job.request.rows) ?? 0) <= job.deadlineMs) return true
    this.#drop(job, "too-late")
    return false
  }

  #takeRows(job: Job<I, O>, rows: number, nowMs: number): Part<I, O> {
    const part = { job, from: job.taken, to: job.taken + rows, lost: false }
    if (job.taken === 0) {
      job.startedMs = nowMs
      this.#options.onStart?.(job.queue.group, nowMs - job.enqueuedMs)
    }
    job.taken += rows
    job.queue.rows -= rows
    this.#queueRows -= rows
    if (job.taken === job.request.rows) this.#leaveLane(job)
    return part
  }

  #leaveLane(job: Job<I, O>): void {
    if (job.lane === null) return
    job.lane.remove(job)
    const left = job.request.rows - job.taken
    job.queue.rows -= left
    this.#queueRows -= left
    this.#queueJobs--
    this.#queueBytes -= job.request.bytes
  }

  #batchOf(
    queue: GroupQueue<I, O>,
    parts: readonly Part<I, O>[],
    startedMs: number,
    { ahead = false, retry = false, other = null }: Partial<Pick<Running<I, O>, "ahead" | "retry" | "other">>,
  ): Running<I, O> {
    let rows = 0
    for (const part of parts) rows += part.to - part.from
    const chargedMs = queue.cost.predictMs(rows) ?? UNKNOWN_MS
    return { queue, parts, rows, startedMs, chargedMs, other, retry, ahead }
  }

  #start(batch: Running<I, O>): void {
    const { queue, parts, rows } = batch
    this.#virtualMs = Math.max(this.#virtualMs, queue.virtualMs)
    queue.virtualMs += batch.chargedMs
    // Among equals, the one served longest ago is next.
    if (this.#active.delete(queue)) this.#active.add(queue)
    queue.running++
    this.#running.add(batch)
    const inputs = parts.map(({ job, from, to }) => ({ input: job.request.input, from, to }))
    let result: Promise<BatchResult<O>>
    try {
      result = this.#options.execute({ group: queue.group, parts: inputs, rows })
    } catch (error) {
      result = Promise.reject(error)
    }
    result.then(
      (outcome) => this.#end(batch, "done", outcome.inferMs, () => this.#succeeded(batch, outcome)),
      (error: unknown) => {
        if (this.#options.isLost(error)) this.#end(batch, "lost", 0, () => this.#lost(batch))
        else this.#end(batch, "failed", 0, () => this.#failed(batch, error))
      },
    )
  }

  #end(batch: Running<I, O>, outcome: BatchEvent["outcome"], inferMs: number, settle: () => void): void {
    const nowMs = this.#clock.now()
    const { queue, parts, rows, chargedMs, retry } = batch
    const ms = nowMs - batch.startedMs
    this.#running.delete(batch)
    queue.running--
    // Its slot goes on with what was handed over before.
    for (const next of this.#running) {
      if (!next.ahead) continue
      next.ahead = false
      next.startedMs = nowMs
      break
    }
    if (outcome === "done") queue.cost.add(rows, ms, nowMs)
    // The charge follows what was measured, but one stall must not push a group to the back for long.
    queue.virtualMs += Math.min(ms, 4 * Math.max(chargedMs, UNKNOWN_MS)) - chargedMs
    // A full batch gains nothing by waiting until these answers are written, and the worker would wait with it. Where the
    // other half of a failed batch has still to run, that comes first, and `settle` puts it back.
    if (outcome === "done" && batch.other === null && this.#isFull(this.#nextGroup(nowMs))) this.#pump()
    settle()
    if (queue.suspects.length > 0) this.#activate(queue)
    this.#rate(queue)
    this.#options.onBatch?.({ group: queue.group, rows, jobs: parts.length, ms, inferMs, outcome, retry })
    this.#wake()
  }

  #succeeded(batch: Running<I, O>, { outputs, inferMs }: BatchResult<O>): void {
    if (outputs.length !== batch.parts.length) {
      this.#failed(batch, new Error(`${outputs.length} outputs for ${batch.parts.length} parts`))
      return
    }
    batch.parts.forEach((part, index) => {
      // As many outputs as parts, so there is one.
      this.#answer(part, outputs[index] as O, inferMs, batch.rows)
    })
    if (batch.other !== null) batch.queue.suspects.unshift(halved(batch.other))
  }

  #answer({ job, from, to }: Part<I, O>, output: O, inferMs: number, batchRows: number): void {
    if (job.settled) return
    const { request } = job
    job.answered += to - from
    job.inferMs += inferMs
    job.batchRows = Math.max(job.batchRows, batchRows)
    if (to - from < request.rows) (job.outputs ??= []).push({ from, output })
    if (job.answered < request.rows) return
    let answer = output
    if (job.outputs !== null) {
      job.outputs.sort((a, b) => a.from - b.from)
      try {
        answer = this.#options.join(
          job.outputs.map((piece) => piece.output),
          request.input,
        )
      } catch (error) {
        this.#settle(job)
        job.reject(error)
        return
      }
    }
    if (request.timing !== undefined) {
      request.timing.queueMs += job.startedMs - job.enqueuedMs
      request.timing.inferMs += job.inferMs
      request.timing.batchRows = Math.max(request.timing.batchRows, job.batchRows)
    }
    this.#settle(job)
    job.resolve(answer)
  }

  /**
   * Of n jobs one is bad: the first half runs again; if it is good, the bad one is in the second, which need not run
   * as a whole to show it. At most 2·log2(n) extra runs for one bad job.
   */
  #failed(batch: Running<I, O>, error: unknown): void {
    const { parts, other, queue } = batch
    const [only] = parts
    if (parts.length === 1 && only !== undefined) {
      if (!only.job.settled) {
        this.#settle(only.job)
        only.job.reject(error)
      }
    } else {
      queue.suspects.unshift(halved(parts))
    }
    if (other !== null) queue.suspects.unshift({ parts: other, other: null })
  }

  /**
   * Whichever job killed the worker shall not do it to the others again: each runs alone, once more. Parts count, not
   * jobs: of a long job the worker may have had two when it died once.
   */
  #lost({ parts, other, queue }: Running<I, O>): void {
    if (other !== null) queue.suspects.push({ parts: other, other: null })
    for (const part of parts) {
      if (part.lost) this.#drop(part.job, "lost")
      else queue.suspects.push({ parts: [{ ...part, lost: true }], other: null })
    }
  }

  #drop(job: Job<I, O>, reason: RefusalReason): void {
    if (job.settled) return
    this.#settle(job)
    if (!job.queue.waiting) this.#deactivate(job.queue)
    this.#rate(job.queue)
    const retryAfterS = Math.max(1, Math.ceil(this.#backlogMs / Math.max(1, this.#slots) / 1000))
    job.reject(this.#refused({ reason, retryAfterS, rows: job.request.rows }))
  }

  #refused(refusal: Refusal): Error {
    this.#options.onRefusal?.(refusal)
    return this.#options.refuse(refusal)
  }

  #settle(job: Job<I, O>): void {
    job.settled = true
    job.outputs = null
    this.#leaveLane(job)
    if (job.onAbort !== null) job.request.signal?.removeEventListener("abort", job.onAbort)
  }

  /** All jobs that wait or run, some of them twice. */
  *#unsettled(): Generator<Job<I, O>> {
    const jobs: Job<I, O>[] = []
    for (const queue of this.#active) {
      for (const lane of [queue.whole, queue.long]) {
        for (let job = lane.head; job !== null; job = job.next) jobs.push(job)
      }
      for (const { parts, other } of queue.suspects)
        for (const part of [...parts, ...(other ?? [])]) jobs.push(part.job)
    }
    for (const { parts, other } of this.#running)
      for (const part of [...parts, ...(other ?? [])]) jobs.push(part.job)
    for (const job of jobs) if (!job.settled) yield job
  }

  /** Asks to be woken at a time, at the latest; the one timer serves the earliest wish. */
  #alarm(atMs: number, nowMs: number): void {
    if (atMs >= this.#timerMs || atMs === Number.POSITIVE_INFINITY) return
    this.#timer?.()
    this.#timerMs = atMs
    this.#timer = this.#clock.setTimer(() => this.#ring(), Math.max(0, atMs - nowMs))
  }

  /** Tells what is past its deadline so, waiting or running, and sets the timer for the next. */
  #ring(): void {
    this.#timer = null
    this.#timerMs = Number.POSITIVE_INFINITY
    const nowMs = this.#clock.now()
    let dueMs = Number.POSITIVE_INFINITY
    for (const job of this.#unsettled()) {
      if (job.deadlineMs <= nowMs) this.#drop(job, "expired")
      else dueMs = Math.min(dueMs, job.deadlineMs)
    }
    // Not more often than each millisecond: a scan looks at every job.
    this.#alarm(Math.max(dueMs, nowMs + 1), nowMs)
    this.#wake()
  }
}

/**
 * The largest batch that makes sense for clients that allow so much time: a job that just misses one batch waits for two,
 * and both must fit, the more safely the less their durations can be told.
 */
function mostRowsWithin<I, O>({ cost, group }: GroupQueue<I, O>, allowedMs: number, nowMs: number): number {
  const { maxRows } = group
  if (allowedMs === Number.POSITIVE_INFINITY || !cost.trusted(nowMs)) return maxRows
  const { fixedMs, perRowMs } = cost.fit(nowMs)
  if (perRowMs === 0) return maxRows
  const surelyMs = (allowedMs * (1 + LEAST_MARGIN)) / (1 + cost.margin(nowMs))
  return Math.max(1, Math.min(maxRows, Math.floor((surelyMs / 2 - fixedMs) / perRowMs)))
}

function backlogOf<I, O>({ cost }: GroupQueue<I, O>, rows: number, mostRows: number): number {
  if (rows === 0) return 0
  const full = Math.floor(rows / mostRows)
  const rest = rows % mostRows
  const fullMs = full === 0 ? 0 : full * (cost.predictMs(mostRows) ?? 0)
  return fullMs + (rest === 0 ? 0 : (cost.predictMs(rest) ?? 0))
}

function halved<I, O>(parts: readonly Part<I, O>[]): Suspects<I, O> {
  if (parts.length === 1) return { parts, other: null }
  const middle = parts.length >> 1
  return { parts: parts.slice(0, middle), other: parts.slice(middle) }
}
