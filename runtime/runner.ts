/**
 * A runner: one model, its signatures, the batcher before it and the worker threads behind it. The main thread's side:
 * it checks inputs, puts batches together and takes them apart; ONNX Runtime is only in the workers.
 */
import { readdir } from "node:fs/promises"
import path from "node:path"
import type { CheckResult, Json } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"
import type { Model, Signature, TensorSpec } from "../store/model.ts"
import {
  type Batch,
  type BatchResult,
  Batcher,
  type BatcherStats,
  type Clock,
  type Group,
  type Refusal,
  type RefusalReason,
  type RunTiming,
} from "./batcher.ts"
import { usableCpus } from "./cpus.ts"
import { ServeError } from "./errors.ts"
import {
  type FromWorker,
  type Provider,
  type ToLoadedWorker,
  type ValueSpec,
  type WireTensor,
  type WorkerSettings,
  transferList,
} from "./protocol.ts"
import {
  type RowRange,
  type Tensor,
  type Tensors,
  byteLength,
  concat,
  emptyData,
  formatShape,
  makeTensor,
  shapeFits,
  split,
  tensorProblem,
} from "./tensor.ts"
import { startThread } from "./threads.ts"

export type { Clock, RunTiming } from "./batcher.ts"

/** A model of the store, and the folder that holds its files. */
export interface LoadedModelInfo {
  readonly model: Model
  readonly dir: string
}

export interface RunnerConfig {
  /** Off: every job runs alone. */
  readonly batching: boolean
  /** Most rows in one batch. */
  readonly maxBatchSize: number
  /** Deadline of every job, from its submission. */
  readonly maxLatencyMs: number
  /** How long a job may be kept back for company while a worker is free. */
  readonly batchWaitMs: number
  readonly maxQueueRows: number
  readonly maxQueueBytes: number
  /** Threads that each hold the model. */
  readonly workers: number
  /** Threads of ONNX Runtime within each; null: the CPUs this process may use, shared among the workers. */
  readonly intraOpThreads: number | null
  /** A worker that does not answer a batch for so long is replaced. */
  readonly timeoutMs: number
  /** A model that is not loaded after this time cannot be. */
  readonly loadTimeoutMs: number
  /** Run the model once before being ready, at one row and at `maxBatchSize`. */
  readonly warmUp: boolean
  readonly providers: readonly Provider[]
  /** Where `cuda` cannot be loaded: run on cpu. Off, it is an error. */
  readonly allowCpuFallback: boolean
}

export const DEFAULT_RUNNER_CONFIG: RunnerConfig = {
  batching: true,
  maxBatchSize: 100,
  maxLatencyMs: 60_000,
  batchWaitMs: 0,
  maxQueueRows: 10_000,
  maxQueueBytes: 256 * 1024 * 1024,
  workers: 1,
  intraOpThreads: null,
  timeoutMs: 900_000,
  loadTimeoutMs: 300_000,
  warmUp: true,
  providers: ["cpu"],
  allowCpuFallback: false,
}

/** How one method of a model is called. Free dimensions are names or null. */
export interface SignatureSpec {
  readonly inputs: readonly TensorSpec[]
  readonly outputs: readonly TensorSpec[]
  readonly batchable: boolean
  /** Batch axis of the inputs, of the outputs. */
  readonly batchDim: readonly [number, number]
}

export interface Log {
  info(message: string, fields?: Readonly<Record<string, Json>>): void
  warn(message: string, fields?: Readonly<Record<string, Json>>): void
  error(message: string, fields?: Readonly<Record<string, Json>>): void
}

/** What a runner tells about itself as it goes; each names the runner by `runner`. */
export interface RunnerMetrics {
  loaded(event: { readonly runner: string; readonly loadMs: number; readonly warmUpMs: number }): void
  batch(event: {
    readonly runner: string
    readonly signature: string
    readonly rows: number
    readonly jobs: number
    /** From the message to the worker until its answer was handled. */
    readonly ms: number
    /** In ONNX Runtime; 0 unless done. */
    readonly inferMs: number
    readonly outcome: "done" | "failed" | "lost"
    readonly retry: boolean
  }): void
  /** A job's first batch begins after this time in the queue. */
  queued(runner: string, signature: string, queueMs: number): void
  refused(event: { readonly runner: string; readonly reason: RefusalReason }): void
  restarted(event: { readonly runner: string; readonly reason: "exit" | "timeout" }): void
}

export interface RunnerStats extends BatcherStats {
  readonly workers: number
  readonly workersUp: number
  readonly restarts: number
}

export interface RunOptions {
  readonly signal?: AbortSignal
  /** On the clock's scale. */
  readonly deadlineMs?: number
  /** Filled before the answer comes. */
  readonly timing?: RunTiming
}

export interface ModelRunner {
  readonly name: string
  /** Known after `start()`. */
  readonly signatures: Readonly<Record<string, SignatureSpec>>
  /** Loads the model and warms it up; rejects with MODEL_LOAD_FAILED. */
  start(): Promise<void>
  /** Is a worker up? */
  readonly ready: boolean
  run(signature: string, inputs: Tensors, options?: RunOptions): Promise<Tensors>
  stats(): RunnerStats
  close(options?: { readonly drain?: boolean }): Promise<void>
}

export interface RunnerOptions {
  readonly name: string
  readonly model: LoadedModelInfo
  readonly config: RunnerConfig
  readonly clock: Clock
  readonly log: Log
  readonly metrics: RunnerMetrics
  /** Makes a worker thread; tests give threads of their own. */
  readonly spawn?: Spawn
  readonly defer?: (callback: () => void) => void
}

/**
 * What a runner needs of a `Worker`. Not `terminate()`: a thread that is in native code at that time goes on, and when it
 * comes back onnxruntime-node (1.30) throws where nobody can catch, which aborts the whole process.
 */
export interface WorkerThread {
  postMessage(message: ToLoadedWorker, transfer: readonly ArrayBuffer[]): void
  on(event: "message", listener: (message: FromWorker) => void): unknown
  on(event: "error", listener: (error: unknown) => void): unknown
  on(event: "exit", listener: (code: number) => void): unknown
}
/** Starts a thread and has it load a model. */
export type Spawn = (settings: WorkerSettings) => WorkerThread

export function createRunner(options: RunnerOptions): ModelRunner {
  return new OnnxRunner(options)
}

/** Can ONNX Runtime load this file? Which tensors does the model take and give? */
export async function checkModel(
  file: string,
  clock: Clock,
  spawn: Spawn = startThread,
): Promise<CheckResult> {
  const slot = new WorkerSlot({
    settings: { file, intraOpThreads: 1, providers: ["cpu"], allowCpuFallback: false },
    clock,
    spawn,
    timeoutMs: DEFAULT_RUNNER_CONFIG.timeoutMs,
    loadTimeoutMs: DEFAULT_RUNNER_CONFIG.loadTimeoutMs,
    onDown: () => {},
  })
  try {
    const { inputs, outputs } = await slot.start()
    return {
      ok: true,
      inputs: inputs.map((value) => value.name),
      outputs: outputs.map((value) => value.name),
    }
  } catch (error) {
    return { ok: false, message: messageOf(error) }
  } finally {
    await slot.close()
  }
}

/** The `.onnx` file of a model folder: BentoML's name for it, or the only one there. */
export async function findModelFile(dir: string): Promise<string> {
  const files = (await readdir(dir)).filter((file) => file.endsWith(".onnx"))
  const file = files.includes("saved_model.onnx")
    ? "saved_model.onnx"
    : files.length === 1
      ? files[0]
      : undefined
  if (file === undefined) {
    const found =
      files.length === 0 ? "no .onnx file" : `${files.length} .onnx files, none of them saved_model.onnx`
    throw new BentoError("MODEL_LOAD_FAILED", `${dir} holds ${found}`)
  }
  return path.join(dir, file)
}

/** The worker died with a batch in it, or did not answer in time. */
class WorkerLost extends Error {}

interface Loaded {
  readonly inputs: readonly ValueSpec[]
  readonly outputs: readonly ValueSpec[]
  readonly loadMs: number
  readonly notes: readonly string[]
}

interface SlotOptions {
  readonly settings: WorkerSettings
  readonly clock: Clock
  readonly spawn: Spawn
  readonly timeoutMs: number
  readonly loadTimeoutMs: number
  /** A worker that took batches is gone. */
  readonly onDown: (reason: "exit" | "timeout") => void
}

interface Settlers<T> {
  readonly resolve: (value: T) => void
  readonly reject: (error: Error) => void
}

/** A batch that a worker has; the watchdog's timer runs while it is the first of them. */
interface Pending extends Settlers<{ outputs: readonly WireTensor[]; inferMs: number }> {
  readonly id: number
}

/** One worker thread at a time: started, given one batch after the other, started again when it is gone. */
class WorkerSlot {
  /** Is it to take batches? The runner says so of one that has loaded its model and is warmed up. */
  serves = false
  readonly #options: SlotOptions
  #thread: WorkerThread | null = null
  #up = false
  #loading: (Settlers<Loaded> & { readonly stopTimer: () => void }) | null = null
  /** What the thread is to answer, in this order. */
  #pending: Pending[] = []
  #stopWatchdog: (() => void) | null = null
  #nextId = 1
  #whenGone: (() => void)[] = []
  /** Threads given up while they were in native code: each ends when it comes back. */
  readonly #stuck = new Set<WorkerThread>()
  #whenBack: (() => void)[] = []

  constructor(options: SlotOptions) {
    this.#options = options
  }

  /** Batches that the thread has and has not answered. */
  get load(): number {
    return this.#pending.length
  }

  /** Starts a thread; resolves when it has loaded the model. */
  start(): Promise<Loaded> {
    const { clock, spawn, settings, loadTimeoutMs } = this.#options
    return new Promise<Loaded>((resolve, reject) => {
      // First, as it throws where the system gives no thread: then nothing is loading.
      const thread = spawn(settings)
      const stopTimer = setPatientTimer(clock, loadTimeoutMs, () => {
        this.#gone(thread, "timeout", `the model was not loaded after ${loadTimeoutMs} ms`)
      })
      this.#loading = { resolve, reject, stopTimer }
      this.#thread = thread
      thread.on("message", (message) => this.#receive(thread, message))
      thread.on("error", (error) => this.#gone(thread, "exit", messageOf(error)))
      thread.on("exit", (code) => {
        if (this.#stuck.delete(thread)) for (const resolve of this.#whenBack.splice(0)) resolve()
        this.#gone(thread, "exit", `the worker thread ended with exit code ${code}`)
      })
    })
  }

  run(inputs: readonly WireTensor[]): Promise<{ outputs: readonly WireTensor[]; inferMs: number }> {
    const thread = this.#thread
    if (thread === null || !this.#up) return Promise.reject(new WorkerLost("no worker is up"))
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      this.#pending.push({ id, resolve, reject })
      if (this.#pending.length === 1) this.#watch(thread)
      thread.postMessage({ type: "run", id, inputs }, transferList(inputs))
    })
  }

  #watch(thread: WorkerThread): void {
    const { clock, timeoutMs } = this.#options
    this.#stopWatchdog = setPatientTimer(clock, timeoutMs, () => {
      this.#gone(thread, "timeout", `the worker did not answer for ${timeoutMs} ms`)
    })
  }

  /** Resolves when so few threads are stuck that another may start. */
  async mayStart(onWait: () => void): Promise<void> {
    if (this.#stuck.size >= MOST_STUCK) onWait()
    while (this.#stuck.size >= MOST_STUCK) {
      await new Promise<void>((resolve) => this.#whenBack.push(resolve))
    }
  }

  /** Lets the thread release its session and end; where it does not, or is still loading, gives it up. */
  async close(graceMs = 2000): Promise<void> {
    const thread = this.#thread
    if (thread === null) return
    if (this.#loading !== null) {
      this.#gone(thread, "timeout", "closed")
      return
    }
    this.#up = false
    this.serves = false
    const gone = new Promise<void>((resolve) => this.#whenGone.push(resolve))
    const stopTimer = this.#options.clock.setTimer(() => this.#gone(thread, "timeout", "closed"), graceMs)
    thread.postMessage({ type: "close" }, [])
    await gone
    stopTimer()
  }

  #receive(thread: WorkerThread, message: FromWorker): void {
    if (thread !== this.#thread) return
    switch (message.type) {
      case "ready": {
        const loading = this.#loading
        this.#loading = null
        loading?.stopTimer()
        this.#up = true
        loading?.resolve(message)
        break
      }
      case "failed":
        this.#gone(thread, "exit", message.message)
        break
      case "done":
      case "error": {
        const [batch] = this.#pending
        if (batch === undefined || batch.id !== message.id) return
        this.#pending.shift()
        this.#stopWatchdog?.()
        if (this.#pending.length > 0) this.#watch(thread)
        if (message.type === "done") batch.resolve(message)
        else batch.reject(new Error(message.message))
        break
      }
    }
  }

  #gone(thread: WorkerThread, reason: "exit" | "timeout", message: string): void {
    if (thread !== this.#thread) return
    this.#thread = null
    const served = this.serves
    this.#up = false
    this.serves = false
    if (reason === "timeout") {
      this.#stuck.add(thread)
      thread.postMessage({ type: "close" }, [])
    }
    const lost = this.#loading === null ? this.#pending : [this.#loading]
    this.#loading?.stopTimer()
    this.#loading = null
    this.#pending = []
    this.#stopWatchdog?.()
    for (const resolve of this.#whenGone.splice(0)) resolve()
    if (served) this.#options.onDown(reason)
    for (const { reject } of lost) reject(new WorkerLost(message))
  }
}

const SECOND_LOOK_MS = 10

/**
 * A timer that looks a second time: where this thread itself was held up, by a handler or because the process stood still, a
 * timer comes before the messages that came in time.
 */
function setPatientTimer(clock: Clock, ms: number, callback: () => void): () => void {
  let stop = clock.setTimer(() => {
    stop = clock.setTimer(callback, SECOND_LOOK_MS)
  }, ms)
  return () => stop()
}

/** A signature with what each call needs, worked out once. */
interface Method {
  readonly name: string
  readonly spec: SignatureSpec
  /** Do jobs share batches, or run in parts? Otherwise a job runs as it is and counts as one row. */
  readonly batched: boolean
  readonly group: Group
  /** Free dimensions that a batch cannot differ in, as [input, axis]: they go into the group's key. */
  readonly freeInner: readonly (readonly [input: number, axis: number])[]
}

/** A job's input: the tensors in the order of the model's inputs. */
interface Call {
  readonly method: Method
  readonly tensors: readonly Tensor[]
}

const BACK_OFF_MS = { first: 100, most: 30_000 }
/** A thread that was given up holds a CPU and a copy of the model: with so many in a slot, no other starts there. */
const MOST_STUCK = 2
/** A warm-up batch is not made larger than what is expected to take this long. */
const WARM_UP_MS = 2000

class OnnxRunner implements ModelRunner {
  readonly name: string
  readonly #options: RunnerOptions
  readonly #batcher: Batcher<Call, Tensors>
  #slots: WorkerSlot[] = []
  #methods = new Map<string, Method>()
  #signatures: Record<string, SignatureSpec> = {}
  #started = false
  #closed = false
  #restarts = 0
  #failures = 0

  constructor(options: RunnerOptions) {
    this.#options = options
    this.name = options.name
    const { config, clock, metrics } = options
    this.#batcher = new Batcher<Call, Tensors>({
      clock,
      slots: 0,
      maxQueueRows: config.maxQueueRows,
      maxQueueBytes: config.maxQueueBytes,
      execute: (batch) => this.#execute(batch),
      join: joinOutputs,
      refuse: (refusal) => this.#errorOf(refusal),
      isLost: (error) => error instanceof WorkerLost,
      ahead: true,
      defer: options.defer ?? ((callback) => void setImmediate(callback)),
      onBatch: ({ group, ...event }) =>
        metrics.batch({ runner: options.name, signature: group.name, ...event }),
      onStart: (group, queueMs) => metrics.queued(options.name, group.name, queueMs),
      onRefusal: ({ reason }) => metrics.refused({ runner: options.name, reason }),
    })
  }

  get signatures(): Readonly<Record<string, SignatureSpec>> {
    return this.#signatures
  }

  get ready(): boolean {
    return this.#started && !this.#closed && this.#slots.some((slot) => slot.serves)
  }

  async start(): Promise<void> {
    const { model, config, clock, spawn = startThread, metrics, log } = this.#options
    const file = await findModelFile(model.dir)
    const settings: WorkerSettings = {
      file,
      intraOpThreads: config.intraOpThreads ?? Math.max(1, Math.ceil(usableCpus() / config.workers)),
      providers: config.providers,
      allowCpuFallback: config.allowCpuFallback,
    }
    const { timeoutMs, loadTimeoutMs } = config
    this.#slots = Array.from({ length: config.workers }, (_, index) => {
      const onDown = (reason: "exit" | "timeout"): void => this.#replace(index, reason)
      return new WorkerSlot({ settings, clock, spawn, timeoutMs, loadTimeoutMs, onDown })
    })
    try {
      // Nobody would close what starts from here on.
      if (this.#closed) throw new Error("closed")
      const [first] = await Promise.all(this.#slots.map((slot, index) => this.#open(slot, index === 0)))
      if (first === undefined) throw new Error("a runner needs at least one worker")
      for (const note of first.notes) log.info(`${this.name}: ${note}`)
      metrics.loaded({ runner: this.name, loadMs: first.loadMs, warmUpMs: first.warmUpMs })
    } catch (error) {
      this.#closed = true
      await Promise.all(this.#slots.map((slot) => slot.close()))
      if (error instanceof BentoError) throw error
      throw new BentoError(
        "MODEL_LOAD_FAILED",
        `${formatModel(model)} cannot be loaded: ${messageOf(error)}`,
        {
          hint: `The file is ${file}.`,
          cause: error,
        },
      )
    }
    this.#started = true
    this.#countSlots()
  }

  /** Has a slot load the model and warm up; from then on it takes batches. */
  async #open(slot: WorkerSlot, tell: boolean): Promise<Loaded & { readonly warmUpMs: number }> {
    const { clock, config } = this.#options
    const loaded = await slot.start()
    if (this.#methods.size === 0) this.#describe(loaded)
    const startMs = clock.now()
    if (config.warmUp) await this.#warmUp(slot, tell)
    slot.serves = true
    return { ...loaded, warmUpMs: clock.now() - startMs }
  }

  #countSlots(): void {
    this.#batcher.slots = this.#slots.filter((slot) => slot.serves).length
  }

  run(signature: string, inputs: Tensors, options: RunOptions = {}): Promise<Tensors> {
    const { clock, config } = this.#options
    const method = this.#methods.get(signature)
    if (method === undefined) {
      const known = [...this.#methods.keys()].join(", ")
      const message = this.#started
        ? `${this.name} has no method ${signature}; it has ${known}`
        : `${this.name} is not started`
      return Promise.reject(new Error(message))
    }
    let job: { tensors: Tensor[]; rows: number }
    try {
      job = checkInputs(method, inputs)
    } catch (error) {
      return Promise.reject(error as Error)
    }
    const { tensors, rows } = job
    let bytes = 0
    for (const tensor of tensors) bytes += byteLength(tensor)
    const latestMs = clock.now() + config.maxLatencyMs
    const { deadlineMs = latestMs, signal, timing } = options
    return this.#batcher.submit({
      input: { method, tensors },
      rows,
      bytes,
      group: groupOf(method, tensors),
      deadlineMs: Math.min(deadlineMs, latestMs),
      ...(signal === undefined ? {} : { signal }),
      ...(timing === undefined ? {} : { timing }),
    })
  }

  stats(): RunnerStats {
    return {
      ...this.#batcher.stats(),
      workers: this.#slots.length,
      workersUp: this.#slots.filter((slot) => slot.serves).length,
      restarts: this.#restarts,
    }
  }

  /** Refuses new jobs, lets those accepted finish (or not), then ends the workers. */
  async close({ drain = true }: { readonly drain?: boolean } = {}): Promise<void> {
    const empty = this.#batcher.close({ drain })
    if (drain && this.#slots.some((slot) => slot.serves)) await empty
    this.#closed = true
    await Promise.all(this.#slots.map((slot) => slot.close()))
  }

  #describe({ inputs, outputs }: Loaded): void {
    const { model, config, log } = this.#options
    const signatures = Object.entries(model.model.signatures)
    if (signatures.length === 0) signatures.push(["run", { batchable: false, batchDim: [0, 0] }])
    for (const [name, signature] of signatures) {
      const { spec, batched, maxRows, note } = specOf(signature, inputs, outputs, config)
      if (note !== null) log.warn(`${this.name}.${name}: ${note}`)
      this.#signatures[name] = spec
      this.#methods.set(name, {
        name,
        spec,
        batched,
        group: { key: name, name, maxRows, waitMs: config.batchWaitMs },
        freeInner: freeDimensions(spec, batched),
      })
    }
  }

  /** Runs zeros through every signature: small first, then as much as one batch may hold. */
  async #warmUp(slot: WorkerSlot, tell: boolean): Promise<void> {
    const { clock, log } = this.#options
    for (const method of this.#methods.values()) {
      const { maxRows } = method.group
      const timed = async (rows: number): Promise<number> => {
        const startedMs = clock.now()
        await slot.run(method.spec.inputs.map((input) => zeros(input, method.spec, rows)))
        const ms = clock.now() - startedMs
        if (tell && method.freeInner.length === 0) this.#batcher.observe(method.group, rows, ms)
        return ms
      }
      try {
        let ms = await timed(1)
        // The first run of a session also makes its plans: what the second takes is what others will.
        if (ms < WARM_UP_MS / 4) ms = await timed(1)
        const most = Math.min(maxRows, Math.max(1, Math.floor(WARM_UP_MS / Math.max(ms, 0.001))))
        if (most > 1) {
          ms = await timed(most)
          if (ms < WARM_UP_MS / 4) await timed(most)
        }
      } catch (error) {
        if (error instanceof WorkerLost) throw error
        log.info(`${this.name}.${method.name}: no warm-up, the model objects to zeros: ${messageOf(error)}`)
      }
    }
  }

  async #execute(batch: Batch<Call>): Promise<BatchResult<Tensors>> {
    let slot: WorkerSlot | undefined
    for (const candidate of this.#slots) {
      if (candidate.serves && (slot === undefined || candidate.load < slot.load)) slot = candidate
    }
    const method = batch.parts[0]?.input.method
    if (slot === undefined || method === undefined) throw new WorkerLost("no worker is up")
    try {
      const { outputs, inferMs } = await slot.run(assemble(method, batch))
      this.#failures = 0
      return { outputs: takeApart(method, batch, outputs), inferMs }
    } catch (error) {
      if (error instanceof WorkerLost) throw error
      throw new ServeError("INFERENCE_FAILED", 500, `${this.name}.${method.name} failed on this input`, {
        cause: error,
      })
    }
  }

  #replace(index: number, reason: "exit" | "timeout"): void {
    const { clock, log, metrics } = this.#options
    this.#countSlots()
    if (this.#closed) return
    this.#restarts++
    metrics.restarted({ runner: this.name, reason })
    const backOffMs = Math.min(BACK_OFF_MS.first * 2 ** this.#failures, BACK_OFF_MS.most)
    this.#failures++
    log.error(`${this.name}: a worker is gone (${reason}), another starts in ${backOffMs} ms`)
    clock.setTimer(() => void this.#restart(index, reason), backOffMs)
  }

  async #restart(index: number, reason: "exit" | "timeout"): Promise<void> {
    const { log } = this.#options
    const slot = this.#slots[index]
    if (slot === undefined) return
    await slot.mayStart(() =>
      log.error(`${this.name}: waits for a worker that was given up and is still busy`),
    )
    if (this.#closed) return
    try {
      await this.#open(slot, false)
      this.#countSlots()
    } catch (error) {
      if (this.#closed) return
      log.error(`${this.name}: the new worker did not start: ${messageOf(error)}`)
      this.#replace(index, reason)
    }
  }

  #errorOf({ reason, retryAfterS, rows }: Refusal): Error {
    const { config } = this.#options
    const later = { retryAfterS }
    switch (reason) {
      case "full":
        return new ServeError("OVERLOADED", 429, `the queue of ${this.name} is full`, later)
      case "too-large":
        return new ServeError(
          "BAD_INPUT",
          413,
          `${rows} rows are more than the queue of ${this.name} ever takes (${config.maxQueueRows} rows, ${config.maxQueueBytes} bytes)`,
        )
      case "too-late":
        return new ServeError("UNAVAILABLE", 503, `${this.name} cannot answer before the deadline`, later)
      case "draining":
        return new ServeError("UNAVAILABLE", 503, `${this.name} is shutting down`, later)
      case "lost":
        return new ServeError("UNAVAILABLE", 503, `${this.name} lost its worker, twice, on this input`, later)
      case "expired":
        return new ServeError(
          "DEADLINE_EXCEEDED",
          504,
          `${this.name} had no answer before the deadline`,
          later,
        )
      case "aborted":
        return new ServeError("CLIENT_GONE", 499, "the client is gone")
    }
  }
}

/** A signature over the model's tensors; `note` says why it is not batched although it claims that it can be. */
function specOf(
  signature: Signature,
  inputs: readonly ValueSpec[],
  outputs: readonly ValueSpec[],
  config: RunnerConfig,
): { spec: SignatureSpec; batched: boolean; maxRows: number; note: string | null } {
  const { batchDim } = signature
  const alone = (note: string | null) => ({
    spec: { inputs, outputs, batchable: false, batchDim },
    batched: false,
    maxRows: 1,
    note,
  })
  if (!signature.batchable) return alone(null)
  const fixed: string[] = []
  for (const [values, axis, what] of [
    [inputs, batchDim[0], "input"],
    [outputs, batchDim[1], "output"],
  ] as const) {
    for (const { name, shape } of values) {
      const size = shape[axis]
      if (size === undefined) {
        return alone(`not batched: ${what} ${name} ${formatShape(shape)} has no axis ${axis}`)
      }
      if (typeof size === "number") fixed.push(`${what} ${name} at ${size}`)
    }
  }
  const spec = { inputs, outputs, batchable: true, batchDim }
  if (fixed.length === 0) {
    return { spec, batched: config.batching, maxRows: config.batching ? config.maxBatchSize : 1, note: null }
  }
  // A graph made for one row at a time still takes many, one after the other.
  if (inputs.every(({ shape }) => shape[batchDim[0]] === 1)) {
    return { spec, batched: true, maxRows: 1, note: null }
  }
  return alone(`not batched: the graph fixes the batch axis of ${fixed.join(", ")}`)
}

function freeDimensions({ inputs, batchDim }: SignatureSpec, batched: boolean): [number, number][] {
  return inputs.flatMap(({ shape }, input) =>
    [...shape.keys()]
      .filter((axis) => typeof shape[axis] !== "number" && !(batched && axis === batchDim[0]))
      .map((axis): [number, number] => [input, axis]),
  )
}

function groupOf({ group, freeInner }: Method, tensors: readonly Tensor[]): Group {
  if (freeInner.length === 0) return group
  let { key } = group
  for (const [input, axis] of freeInner) key += ` ${tensors[input]?.shape[axis] ?? ""}`
  return { ...group, key }
}

/** The tensors in the model's order and the number of rows, or BAD_INPUT. */
function checkInputs({ spec, name, batched }: Method, inputs: Tensors): { tensors: Tensor[]; rows: number } {
  const tensors: Tensor[] = []
  let rows = 1
  for (const [index, expected] of spec.inputs.entries()) {
    const tensor = Object.hasOwn(inputs, expected.name) ? inputs[expected.name] : undefined
    if (tensor === undefined) {
      const received = Object.keys(inputs).join(", ") || "none"
      throw badInput(`input "${expected.name}" is missing; received: ${received}`, expected, null)
    }
    const problem = tensorProblem(tensor)
    if (problem !== null) throw badInput(`input "${expected.name}" ${problem}`, expected, tensor)
    if (tensor.dtype !== expected.dtype || !shapeFits(tensor.shape, expected.shape, batchAxis(spec))) {
      throw badInput(
        `input "${expected.name}": expected ${expected.dtype} ${formatShape(expected.shape)}, received ${tensor.dtype} ${formatShape(tensor.shape)}`,
        expected,
        tensor,
      )
    }
    // The binding of ONNX Runtime cuts strings there, silently.
    if (tensor.dtype === "string" && tensor.data.some((text) => text.includes("\0"))) {
      throw badInput(`input "${expected.name}" holds a string with a NUL character`, expected, tensor)
    }
    if (spec.batchable) {
      const count = tensor.shape[spec.batchDim[0]] ?? 0
      if (count === 0) throw badInput(`input "${expected.name}" has no rows`, expected, tensor)
      if (index > 0 && count !== rows) {
        const counts = spec.inputs.slice(0, index).map((input) => `"${input.name}" has ${rows}`)
        throw badInput(
          `inputs differ in their rows: ${counts.join(", ")}, "${expected.name}" has ${count}`,
          expected,
          tensor,
        )
      }
      rows = count
    }
    tensors.push(tensor)
  }
  for (const given of Object.keys(inputs)) {
    if (spec.inputs.some((expected) => expected.name === given)) continue
    const names = spec.inputs.map((expected) => expected.name).join(", ")
    throw new ServeError("BAD_INPUT", 400, `${name} has no input "${given}"; it has: ${names}`)
  }
  return { tensors, rows: batched ? rows : 1 }
}

/** The axis of the inputs whose size may be any, whatever the graph says of it. */
function batchAxis({ batchable, batchDim }: SignatureSpec): number | null {
  return batchable ? batchDim[0] : null
}

function badInput(message: string, expected: TensorSpec, received: Tensor | null): ServeError {
  return new ServeError("BAD_INPUT", 400, message, {
    detail: {
      input: expected.name,
      expected: { dtype: expected.dtype, shape: [...expected.shape] },
      received: received === null ? null : { dtype: received.dtype, shape: [...received.shape] },
    },
  })
}

/** The batch's tensors, each written once into a buffer of its own, which then goes to the worker. */
function assemble({ spec, batched }: Method, { parts }: Batch<Call>): WireTensor[] {
  return spec.inputs.map((expected, index) => {
    const ranges = parts.map(({ input, from, to }): RowRange => {
      const tensor = input.tensors[index]
      if (tensor === undefined) throw new Error(`no tensor for input ${expected.name}`)
      return { tensor, from, to }
    })
    const [first] = ranges
    if (first === undefined) throw new Error("an empty batch")
    if (batched) return concat(ranges, spec.batchDim[0])
    const { shape, data } = first.tensor
    // A Buffer's own `slice` would share the memory, which is about to be given away with the message.
    return { shape, data: Buffer.isBuffer(data) ? Uint8Array.from(data) : data.slice() }
  })
}

/** Each part's rows of each output. */
function takeApart(
  { spec, name, batched }: Method,
  { parts, rows }: Batch<Call>,
  wires: readonly WireTensor[],
): Tensors[] {
  const counts = parts.map(({ from, to }) => to - from)
  const results = parts.map((): Record<string, Tensor> => ({}))
  spec.outputs.forEach((output, index) => {
    const wire = wires[index]
    if (wire === undefined) throw new Error(`the worker gave no ${output.name}`)
    const tensor = makeTensor(output.dtype, wire.shape, wire.data)
    let pieces = [tensor]
    if (batched) {
      const axis = spec.batchDim[1]
      if (tensor.shape[axis] !== rows) {
        throw new Error(
          `${name}: output ${output.name} has the shape ${formatShape(tensor.shape)} for ${rows} rows; axis ${axis} must have one entry for each`,
        )
      }
      pieces = split(tensor, axis, counts)
    }
    pieces.forEach((piece, part) => {
      const result = results[part]
      if (result !== undefined) result[output.name] = piece
    })
  })
  return results
}

/** The answers to the parts of one long job as one. */
function joinOutputs(outputs: readonly Tensors[], { method }: Call): Tensors {
  const { spec } = method
  const joined: Record<string, Tensor> = {}
  for (const { name } of spec.outputs) {
    const ranges = outputs.map((output): RowRange => {
      const tensor = output[name]
      if (tensor === undefined) throw new Error(`a part has no ${name}`)
      return { tensor, from: 0, to: tensor.shape[spec.batchDim[1]] ?? 0 }
    })
    joined[name] = concat(ranges, spec.batchDim[1])
  }
  return joined
}

function zeros(input: TensorSpec, { batchable, batchDim }: SignatureSpec, rows: number): WireTensor {
  const shape = input.shape.map((size, axis) => {
    if (batchable && axis === batchDim[0]) return rows
    return typeof size === "number" ? size : 1
  })
  return {
    shape,
    data: emptyData(
      input.dtype,
      shape.reduce((product, size) => product * size, 1),
    ),
  }
}

function formatModel({ model }: LoadedModelInfo): string {
  return `${model.tag.name}:${model.tag.version}`
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
