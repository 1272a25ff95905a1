/**
 * Hand-made stand-ins for the ports of the server: a runner without a model, an app without a socket, a log that remembers, modules
 * that are not there.
 */
import { type ModuleHooks, registerHooks } from "node:module"
import type { Hono } from "hono"
import type { AccessLog } from "../runtime/access-log.ts"
import {
  type App,
  type AppOptions,
  type AppService,
  DEFAULT_APP_CONFIG,
  type Siblings,
  createApp,
} from "../runtime/app.ts"
import type { Clock } from "../runtime/batcher.ts"
import { createHono } from "../runtime/hono.ts"
import type { Log } from "../runtime/log.ts"
import { Metrics } from "../runtime/metrics.ts"
import type { ModelRunner, RunOptions, RunnerStats, SignatureSpec } from "../runtime/runner.ts"
import { type Service, bindRunner, describeService } from "../runtime/service.ts"
import type { Tensors } from "../runtime/tensor.ts"
import { ManualClock } from "./runtime/manual-clock.ts"

export type Run = (inputs: Tensors, options: RunOptions) => Promise<Tensors> | Tensors

/** A runner whose signatures are functions. */
export class FakeRunner implements ModelRunner {
  ready = true
  readonly name: string
  readonly signatures: Readonly<Record<string, SignatureSpec>>
  readonly #run: Run

  /** Gives back its inputs unless told what to do. */
  constructor(signature: Partial<SignatureSpec> = {}, run: Run = (inputs) => inputs, name = "fake") {
    this.name = name
    this.signatures = {
      run: {
        inputs: [{ name: "X", dtype: "float32", shape: [null, 4] }],
        outputs: [{ name: "X", dtype: "float32", shape: [null, 4] }],
        batchable: true,
        batchDim: [0, 0],
        ...signature,
      },
    }
    this.#run = run
  }

  start(): Promise<void> {
    return Promise.resolve()
  }

  async run(_: string, inputs: Tensors, options: RunOptions = {}): Promise<Tensors> {
    return this.#run(inputs, options)
  }

  stats(): RunnerStats {
    return {
      queueJobs: 0,
      queueRows: 0,
      queueBytes: 0,
      runningBatches: 0,
      backlogMs: 0,
      groups: [],
      workers: 1,
      workersUp: 1,
      restarts: 0,
    }
  }

  close(): Promise<void> {
    return Promise.resolve()
  }
}

export interface LogLine {
  readonly level: string
  readonly message: string
  readonly fields: Readonly<Record<string, unknown>>
}

export class MemoryLog implements Log {
  readonly lines: LogLine[] = []
  readonly info = this.#at("info")
  readonly warn = this.#at("warn")
  readonly error = this.#at("error")

  #at(level: string) {
    return (message: string, fields: Readonly<Record<string, unknown>> = {}): void => {
      this.lines.push({ level, message, fields })
    }
  }
}

/** A service in an app, with every runner of it bound to `runner`. */
export function appFor(
  service: Service | AppService | null,
  options: {
    readonly runner?: ModelRunner
    readonly clock?: Clock
    readonly config?: Partial<AppOptions["config"]>
    readonly accessLog?: AccessLog
    readonly siblings?: Siblings
  } = {},
): { app: App; hono: Hono; log: MemoryLog; metrics: Metrics } {
  const { runner = new FakeRunner(), clock = new ManualClock(), config = {}, accessLog, siblings } = options
  const log = new MemoryLog()
  const metrics = new Metrics({ serviceName: "test", serviceVersion: "v1", epochS: 1000 })
  let ids = 0
  const app = createApp({
    service: service === null || "describe" in service ? service : asAppService(service, runner),
    clock,
    log,
    metrics,
    config: { ...DEFAULT_APP_CONFIG, ...config },
    newRequestId: () => `id-${++ids}`,
    ...(accessLog === undefined ? {} : { accessLog }),
    ...(siblings === undefined ? {} : { siblings }),
  })
  return { app, hono: createHono(app), log, metrics }
}

function asAppService(service: Service, runner: ModelRunner): AppService {
  for (const handle of service.runners) bindRunner(handle, runner)
  return {
    apis: service.apis,
    runners: [runner],
    describe: () => describeService(service),
    version: "v1",
  }
}

/** From here on an import of this name fails, until it is taken back. */
export function refuseToLoad(name: string): ModuleHooks {
  return registerHooks({
    resolve(specifier, context, next) {
      if (specifier === name) throw new Error(`cannot load ${name}`)
      return next(specifier, context)
    },
  })
}
