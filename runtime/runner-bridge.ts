/**
 * Runners across threads: a handler in an HTTP thread calls `RemoteRunners`, the main thread's `RunnerDesk` calls the runner
 * itself, so that requests of all threads meet in one queue before one copy of the model. Deadlines need no conversion: all
 * threads of a process share one zero of `performance.now()`.
 */
import type { RunTiming } from "./batcher.ts"
import { ServeError } from "./errors.ts"
import {
  type FromHttpThread,
  InputPacker,
  type WireResult,
  type WireRun,
  fromWireError,
  outputBuffers,
  toWireError,
  unpackInputs,
} from "./http-protocol.ts"
import type { ModelRunner, RunOptions, SignatureSpec } from "./runner.ts"
import type { CancelSignal } from "./service.ts"
import { type Tensors, tensorProblem } from "./tensor.ts"

type Post<M> = (message: M, transfer: ArrayBuffer[]) => void
type Calls = Extract<FromHttpThread, { type: "calls" }>
/** Runs a function when the events that are already here have been handled. */
type Defer = (callback: () => void) => void

interface Pending {
  readonly resolve: (outputs: Tensors) => void
  readonly reject: (error: Error) => void
  readonly options: RunOptions
  readonly onAbort: () => void
}

interface Call {
  readonly id: number
  readonly runner: string
  readonly signature: string
  readonly inputs: Tensors
  readonly deadlineMs: number | undefined
}

/** The thread's side. */
export class RemoteRunners {
  readonly #post: Post<Calls>
  readonly #defer: Defer
  readonly #runners = new Map<string, RemoteRunner>()
  readonly #pending = new Map<number, Pending>()
  #calls: Call[] = []
  #cancels: number[] = []
  #nextId = 1
  #flushIsDue = false

  constructor(post: Post<Calls>, defer: Defer) {
    this.#post = post
    this.#defer = defer
  }

  get(name: string): ModelRunner {
    return this.#runner(name)
  }

  describe(signatures: Readonly<Record<string, Readonly<Record<string, SignatureSpec>>>>): void {
    for (const [name, specs] of Object.entries(signatures)) this.#runner(name).signatures = specs
  }

  receive(results: readonly WireResult[]): void {
    for (const result of results) {
      const pending = this.#pending.get(result.id)
      if (pending === undefined) continue
      this.#pending.delete(result.id)
      const { options, onAbort, resolve, reject } = pending
      options.signal?.removeEventListener("abort", onAbort)
      if ("error" in result) reject(fromWireError(result.error))
      else {
        if (options.timing !== undefined) addTiming(options.timing, result.timing)
        resolve(result.outputs)
      }
    }
  }

  #runner(name: string): RemoteRunner {
    let runner = this.#runners.get(name)
    if (runner === undefined) {
      runner = new RemoteRunner(name, (signature, inputs, options) =>
        this.#run(name, signature, inputs, options),
      )
      this.#runners.set(name, runner)
    }
    return runner
  }

  #run(runner: string, signature: string, inputs: Tensors, options: RunOptions): Promise<Tensors> {
    const { signal, deadlineMs } = options
    if (signal?.aborted === true) {
      return Promise.reject(new ServeError("CLIENT_GONE", 499, "the client is gone"))
    }
    // What is no tensor could not be sent; whether it fits the model, the runner says.
    for (const [name, tensor] of Object.entries(inputs)) {
      const problem = tensorProblem(tensor)
      if (problem !== null) {
        return Promise.reject(new ServeError("BAD_INPUT", 400, `input "${name}" ${problem}`))
      }
    }
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#cancels.push(id)
        this.#flushSoon()
      }
      signal?.addEventListener("abort", onAbort)
      this.#pending.set(id, { resolve, reject, options, onAbort })
      this.#calls.push({ id, runner, signature, inputs, deadlineMs })
      this.#flushSoon()
    })
  }

  #flushSoon(): void {
    if (this.#flushIsDue) return
    this.#flushIsDue = true
    this.#defer(() => this.#flush())
  }

  #flush(): void {
    this.#flushIsDue = false
    const packer = new InputPacker()
    const runs = this.#calls.map(({ inputs, ...call }): WireRun => ({ ...call, inputs: packer.add(inputs) }))
    const packed = packer.pack()
    this.#post({ type: "calls", runs, cancels: this.#cancels, packed }, packer.transfer)
    this.#calls = []
    this.#cancels = []
  }
}

/** As a runner of this thread would have done it. */
function addTiming(to: RunTiming, { queueMs, inferMs, batchRows }: Readonly<RunTiming>): void {
  to.queueMs += queueMs
  to.inferMs += inferMs
  to.batchRows = Math.max(to.batchRows, batchRows)
}

/** What a handler calls; the model is elsewhere. */
class RemoteRunner implements ModelRunner {
  readonly name: string
  signatures: Readonly<Record<string, SignatureSpec>> = {}
  readonly #run: (signature: string, inputs: Tensors, options: RunOptions) => Promise<Tensors>

  constructor(
    name: string,
    run: (signature: string, inputs: Tensors, options: RunOptions) => Promise<Tensors>,
  ) {
    this.name = name
    this.#run = run
  }

  run(signature: string, inputs: Tensors, options: RunOptions = {}): Promise<Tensors> {
    return this.#run(signature, inputs, options)
  }

  /** The main thread answers for the model: see `Questions`. */
  get ready(): boolean {
    return true
  }

  start(): Promise<void> {
    return Promise.resolve()
  }

  stats(): never {
    throw new Error(`the statistics of ${this.name} are in the main thread`)
  }

  close(): Promise<void> {
    return Promise.resolve()
  }
}

/** A call's signal, set off by a message. */
class RemoteCancel implements CancelSignal {
  aborted = false
  #listeners: (() => void)[] = []

  addEventListener(_: "abort", listener: () => void): void {
    this.#listeners.push(listener)
  }

  removeEventListener(_: "abort", listener: () => void): void {
    this.#listeners = this.#listeners.filter((other) => other !== listener)
  }

  abort(): void {
    this.aborted = true
    for (const listener of this.#listeners.splice(0)) listener()
  }
}

/** The main thread's side, one for each HTTP thread. */
export class RunnerDesk {
  readonly #runnerOf: (name: string) => ModelRunner | undefined
  readonly #post: Post<{ type: "results"; results: WireResult[] }>
  readonly #defer: Defer
  readonly #cancels = new Map<number, RemoteCancel>()
  #results: WireResult[] = []
  #closed = false

  constructor(
    runnerOf: (name: string) => ModelRunner | undefined,
    post: Post<{ type: "results"; results: WireResult[] }>,
    defer: Defer,
  ) {
    this.#runnerOf = runnerOf
    this.#post = post
    this.#defer = defer
  }

  receive({ runs, cancels, packed }: Calls): void {
    for (const run of runs) this.#run(run, packed)
    for (const id of cancels) this.#cancels.get(id)?.abort()
  }

  /** The thread is gone: nobody wants its answers. */
  close(): void {
    this.#closed = true
    for (const cancel of this.#cancels.values()) cancel.abort()
  }

  #run({ id, runner: name, signature, deadlineMs, inputs }: WireRun, packed: ArrayBuffer): void {
    const cancel = new RemoteCancel()
    const timing: RunTiming = { queueMs: 0, inferMs: 0, batchRows: 0 }
    const runner = this.#runnerOf(name)
    this.#cancels.set(id, cancel)
    const done =
      runner === undefined
        ? Promise.reject(new Error(`there is no runner ${name}`))
        : runner.run(signature, unpackInputs(inputs, packed), {
            // Runners use no more of a signal than a CancelSignal has.
            signal: cancel as unknown as AbortSignal,
            timing,
            ...(deadlineMs === undefined ? {} : { deadlineMs }),
          })
    done.then(
      (outputs) => this.#settle({ id, outputs, timing }),
      (error: unknown) => this.#settle({ id, error: toWireError(error) }),
    )
  }

  #settle(result: WireResult): void {
    this.#cancels.delete(result.id)
    if (this.#closed) return
    this.#results.push(result)
    if (this.#results.length === 1) this.#defer(() => this.#flush())
  }

  #flush(): void {
    const results = this.#results
    this.#results = []
    if (this.#closed) return
    const transfer = results.flatMap((result) => ("outputs" in result ? outputBuffers(result.outputs) : []))
    this.#post({ type: "results", results }, transfer)
  }
}
