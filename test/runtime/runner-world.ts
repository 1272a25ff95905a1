/** A runner in a world that a test controls: a manual clock, and worker threads that are no threads. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { after } from "node:test"
import type {
  FromWorker,
  ToLoadedWorker,
  ValueSpec,
  WireTensor,
  WorkerSettings,
} from "../../runtime/protocol.ts"
import {
  DEFAULT_RUNNER_CONFIG,
  type ModelRunner,
  type RunnerConfig,
  type RunnerMetrics,
  type WorkerThread,
  createRunner,
} from "../../runtime/runner.ts"
import type { Model, Signature } from "../../store/model.ts"
import { ManualClock } from "./manual-clock.ts"

/** A folder that goes when the tests of the file have ended. */
export function scratch(): string {
  const folder = mkdtempSync(path.join(tmpdir(), "bentoctl-runner-"))
  after(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export function modelWith(signatures: Readonly<Record<string, Signature>>): Model {
  return {
    tag: { name: "m", version: "v1" },
    module: "bentoml.onnx",
    labels: {},
    options: {},
    metadata: {},
    context: {
      frameworkName: "onnx",
      frameworkVersions: {},
      bentomlVersion: "1.4.38",
      pythonVersion: "3.11.7",
    },
    signatures,
    apiVersion: "v1",
    creationTime: "2026-01-01T00:00:00.000000+00:00",
  }
}

/** What a fake model answers to a batch, an error that it throws, or a fate. */
export type Answer = readonly WireTensor[] | Error | "never" | "exit"
export type FakeModel = (inputs: readonly WireTensor[], batch: number) => Answer

export interface RunnerWorldOptions {
  readonly inputs?: readonly ValueSpec[]
  readonly outputs?: readonly ValueSpec[]
  readonly signatures?: Readonly<Record<string, Signature>>
  readonly config?: Partial<RunnerConfig>
  readonly model?: FakeModel
  readonly durationMs?: number
  /** What the n-th thread does instead of loading. */
  readonly load?: (thread: number) => "ready" | "never" | "exit" | Error
  /** Threads that the system does not give, by how many were asked for before. */
  readonly denied?: (thread: number) => boolean
}

export const BATCHABLE = { run: { batchable: true, batchDim: [0, 0] } } as const

/** x → 2x, float32 [N, 2], unless told otherwise. */
export class RunnerWorld {
  readonly clock = new ManualClock()
  readonly threads: FakeThread[] = []
  /** How many threads were asked for. */
  asked = 0
  readonly batches: (readonly WireTensor[])[] = []
  /** Buffers that were not copied, of each batch. */
  readonly handedOver: (readonly ArrayBuffer[])[] = []
  readonly logged: string[] = []
  readonly counted = {
    loaded: 0,
    batches: 0,
    queued: [] as number[],
    refused: [] as string[],
    restarted: [] as string[],
  }
  readonly runner: ModelRunner
  readonly options: RunnerWorldOptions

  constructor(options: RunnerWorldOptions = {}) {
    this.options = options
    const dir = scratch()
    writeFileSync(path.join(dir, "saved_model.onnx"), "")
    const metrics: RunnerMetrics = {
      loaded: () => this.counted.loaded++,
      batch: () => this.counted.batches++,
      queued: (_, __, queueMs) => this.counted.queued.push(queueMs),
      refused: ({ reason }) => this.counted.refused.push(reason),
      restarted: ({ reason }) => this.counted.restarted.push(reason),
    }
    const log = (message: string): void => void this.logged.push(message)
    this.runner = createRunner({
      name: "m",
      model: { model: modelWith(options.signatures ?? BATCHABLE), dir },
      config: { ...DEFAULT_RUNNER_CONFIG, warmUp: false, ...options.config },
      clock: this.clock,
      log: { info: log, warn: log, error: log },
      metrics,
      spawn: (settings) => {
        const index = this.asked++
        if (options.denied?.(index) === true) throw new Error("Worker initialization failure: EAGAIN")
        const thread = new FakeThread(this, settings, this.threads.length)
        this.threads.push(thread)
        return thread
      },
      defer: (callback) => callback(),
    })
  }

  /** Starts the runner, moving time on until it has started or failed. */
  async start(): Promise<void> {
    const started = this.runner.start()
    let pending = true
    started.then(
      () => (pending = false),
      () => (pending = false),
    )
    // Looking for the model's file takes real time, however much there is of it.
    while (pending) await this.clock.advance(1000)
    await started
  }
}

export class FakeThread implements WorkerThread {
  readonly settings: WorkerSettings
  closed = false
  readonly #world: RunnerWorld
  readonly #listeners = new Map<string, (argument: never) => void>()

  constructor(world: RunnerWorld, settings: WorkerSettings, index: number) {
    this.#world = world
    this.settings = settings
    const fate = world.options.load?.(index) ?? "ready"
    world.clock.setTimer(() => {
      if (fate === "ready") {
        const { inputs = [spec("x", ["N", 2])], outputs = [spec("y", ["N", 2])] } = world.options
        this.emit("message", {
          type: "ready",
          inputs,
          outputs,
          loadMs: 5,
          notes: ["a note"],
        } satisfies FromWorker)
      } else if (fate === "exit") {
        this.closed = true
        this.emit("exit", 1)
      } else if (fate !== "never") {
        this.closed = true
        this.emit("message", { type: "failed", message: fate.message } satisfies FromWorker)
      }
    }, 0)
  }

  on(event: string, listener: (argument: never) => void): this {
    this.#listeners.set(event, listener)
    return this
  }

  emit(event: "message" | "error" | "exit", argument: unknown): void {
    // Listener and argument belong to the same event.
    this.#listeners.get(event)?.(argument as never)
  }

  postMessage(given: ToLoadedWorker, transfer: readonly ArrayBuffer[]): void {
    // What is transferred is gone here, as with a real thread.
    const message = structuredClone(given, { transfer: [...transfer] })
    if (message.type === "close") {
      this.closed = true
      if (this.#world.options.load?.(-1) === "never") return
      this.#world.clock.setTimer(() => this.emit("exit", 0), 0)
      return
    }
    const { batches, handedOver, options, clock } = this.#world
    const answer = (options.model ?? double)(message.inputs, batches.length)
    batches.push(message.inputs)
    handedOver.push(transfer)
    if (answer === "never") return
    clock.setTimer(() => {
      if (answer === "exit") this.emit("exit", 1)
      else if (answer instanceof Error) {
        this.emit("message", { type: "error", id: message.id, message: answer.message } satisfies FromWorker)
      } else {
        this.emit("message", {
          type: "done",
          id: message.id,
          outputs: answer,
          inferMs: 1,
        } satisfies FromWorker)
      }
    }, options.durationMs ?? 10)
  }
}

export function spec(
  name: string,
  shape: ValueSpec["shape"],
  dtype: ValueSpec["dtype"] = "float32",
): ValueSpec {
  return { name, dtype, shape }
}

export function double(inputs: readonly WireTensor[]): readonly WireTensor[] {
  return inputs.map(({ shape, data }) => ({ shape, data: (data as Float32Array).map((value) => 2 * value) }))
}

/** A model folder with one file in it. */
export function modelDir(copy: (dir: string) => void): string {
  const dir = path.join(scratch(), "model")
  mkdirSync(dir)
  copy(dir)
  return dir
}
