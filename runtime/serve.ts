/**
 * The server process, and the door by which environment, time and chance come in.
 *
 *   serve.js [--spec JSON | --bento DIR] [--models-dir DIR] [--packages-dir DIR] [--port N] [--host H]    serves
 *   serve.js --print-config …             prints how it would be configured
 *   serve.js --check-model FILE           loads the model, writes a CheckResult to descriptor 3
 *   serve.js --check-examples JSON        runs a model's examples, writes an ExamplesResult to descriptor 3
 *   serve.js --self-test [-o json] …      runs the examples of all models and prints what came of it
 */
import { randomBytes } from "node:crypto"
import { readFileSync, writeSync } from "node:fs"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { parseArgs } from "node:util"
import { setFlagsFromString } from "node:v8"
import type { ExamplesRequest, ExamplesResult, ServeSpec } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"
import { MODEL_YAML } from "../store/layout.ts"
import { type LoadedConfig, checkRunnerNames, formatConfig, loadConfig, runnerConfig } from "./config.ts"
import { clock } from "./clock.ts"
import { providersFor } from "./cuda.ts"
import { exit } from "./exit.ts"
import {
  type Front,
  accessLogOf,
  appService,
  createFront,
  failureText,
  loadService,
  metricsOptions,
  requestIds,
} from "./front.ts"
import { HttpThreadFailed, HttpThreads } from "./http-threads.ts"
import { findPort, listen, portInUse } from "./http.ts"
import { type SpecModel, readBentoSpec, readModels } from "./load.ts"
import { createLog, errorFields } from "./log.ts"
import { Metrics } from "./metrics.ts"
import { resolveOwnRuntime } from "./own-runtime.ts"
import { NO_METRICS, plainRunner } from "./plain-runner.ts"
import { otherListenerOf } from "./ports.ts"
import {
  DEFAULT_RUNNER_CONFIG,
  type ModelRunner,
  type RunnerConfig,
  checkModel,
  createRunner,
} from "./runner.ts"
import type { ModelReport } from "./self-test.ts"
import { endEarly } from "./threads.ts"

// Before any worker thread starts: each gets a copy of the environment, and ONNX Runtime reads it when it loads.
process.env["ORT_DISABLE_TELEMETRY"] = "1"

// V8 learns to allocate what outlived a few collections in the old generation at once, and some arrays of a request are
// among that; from there they keep all else of their request alive until the next full collection (70 MB for 60,000
// requests against 1 MB, in a young generation of 2 MB).
setFlagsFromString("--no-allocation-site-pretenuring")

const { env } = process
const logFormat = env["BENTOCTL_LOG_FORMAT"] === "json" ? "json" : "text"
const log = createLog({
  write: (line) => process.stderr.write(line),
  now: () => new Date(),
  format: logFormat,
})

const OPTIONS = {
  spec: { type: "string" },
  bento: { type: "string" },
  "models-dir": { type: "string" },
  "packages-dir": { type: "string" },
  port: { type: "string", short: "p" },
  host: { type: "string" },
  "api-workers": { type: "string" },
  timeout: { type: "string" },
  "print-config": { type: "boolean" },
  "check-model": { type: "string" },
  "check-examples": { type: "string" },
  "self-test": { type: "boolean" },
  output: { type: "string", short: "o" },
} as const

/** Of them, those that are for the people who start an image. */
const SERVER_OPTIONS =
  "--port, --host, --api-workers, --timeout, --print-config; whatever has no dash in front is executed in the server's place"

type Flags = ReturnType<typeof parseFlags>

function parseFlags(args: readonly string[]) {
  const { values } = parseArgs({ args: [...args], options: OPTIONS, strict: true })
  const { output = "table", "self-test": selfTests } = values
  if (!["table", "json"].includes(output)) throw new Error(`-o must be table or json, not "${output}"`)
  if (values.output !== undefined && selfTests !== true) throw new Error("-o is an option of selftest")
  return values
}

async function main(args: readonly string[]): Promise<void> {
  let flags: Flags
  try {
    flags = parseFlags(args)
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    process.stderr.write(`${message}\nThe server's options: ${SERVER_OPTIONS}\n`)
    exit(2)
  }
  resolveOwnRuntime()
  if (flags["check-model"] !== undefined) return report(await checkModel(flags["check-model"], clock))
  if (flags["check-examples"] !== undefined) return checkExamples(flags["check-examples"])
  let spec: ServeSpec | undefined
  const onSpec = (read: ServeSpec): void => {
    spec = read
  }
  try {
    await (flags["self-test"] === true ? selfTest(flags, onSpec) : serve(flags, onSpec))
  } catch (error) {
    // Who is told to stop while it starts does not fail to start.
    if (!stopping) fail(error, spec)
  }
}

/** A result for the parent process; the exit status says the same as its `ok`. */
function report(result: { readonly ok: boolean }): never {
  writeSync(3, JSON.stringify(result))
  exit(result.ok ? 0 : 1)
}

// ------------------------------------------------------------------------------------------------ self-test

/** Examples of a model that is about to enter the store. */
async function checkExamples(json: string): Promise<never> {
  const request = JSON.parse(json) as ExamplesRequest // made by our own command line
  const [test, { parseModelYaml }] = await Promise.all([
    import("./self-test.ts"),
    import("../store/model.ts"),
  ])
  const file = path.join(request.dir, MODEL_YAML)
  const model = { model: parseModelYaml(await readText(file), file), dir: request.dir }
  const runner = plainRunner(model.model.tag.name, model, DEFAULT_RUNNER_CONFIG, log)
  try {
    return report(await test.checkExamples(request, { model, runner }))
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    const result: ExamplesResult = { ok: false, message, issues: [] }
    return report(result)
  }
}

/** All models of the spec, one after the other, configured as they would be served; the user's code is not run. */
async function selfTest(flags: Flags, onSpec: (spec: ServeSpec) => void): Promise<never> {
  const [test, loaded] = await Promise.all([
    import("./self-test.ts"),
    loadConfig({ env, readFile: readText }),
  ])
  const spec = await readSpec(flags)
  onSpec(spec)
  const providers = providersHere()
  const reports: ModelReport[] = []
  for (const model of await readModels(spec)) {
    const runner = plainRunner(
      model.name,
      model,
      { ...runnerConfig(loaded.config, model.name), providers },
      log,
    )
    reports.push(await test.testModel(model, runner, runner.start()))
    await runner.close()
  }
  process.stdout.write(flags.output === "json" ? test.reportJson(reports) : test.reportTable(reports))
  exit(test.isPassed(reports) ? 0 : 1)
}

/** A server that asks for it is ready only when its models have answered their examples. */
async function startTested(model: SpecModel, runner: ModelRunner): Promise<void> {
  const test = await import("./self-test.ts")
  const report = await test.testModel(model, runner, runner.start())
  test.throwUnlessPassed(report)
  for (const warning of report.warnings) log.warn(`${model.name}: self-test: ${warning}`)
  log.info(`${model.name}: ${test.passedText(report)}`)
}

// ------------------------------------------------------------------------------------------------ serving

async function serve(flags: Flags, onSpec: (spec: ServeSpec) => void): Promise<void> {
  const { host, "api-workers": apiWorkers, timeout } = flags
  const loaded = await loadConfig({
    env,
    flags: {
      ...(flags.port === undefined ? {} : { port: flags.port }),
      ...(host === undefined ? {} : { host }),
      ...(apiWorkers === undefined ? {} : { apiWorkers }),
      ...(timeout === undefined ? {} : { timeout }),
    },
    readFile: readText,
  })
  const { config } = loaded
  for (const note of loaded.notes) log.warn(note)
  const spec = await readSpec(flags)
  onSpec(spec)
  if (flags["print-config"] === true) return printConfig(spec, loaded)
  return config.http.workers === 1 ? serveAlone(spec, loaded) : serveWithThreads(spec, loaded)
}

async function printConfig(spec: ServeSpec, loaded: LoadedConfig): Promise<void> {
  const names = (await readModels(spec)).map((model) => model.name)
  await checkRunnerNames(loaded, names)
  process.stdout.write(formatConfig(loaded, names))
}

/** One thread serves HTTP and has the runners too: a request goes through no other. */
async function serveAlone(spec: ServeSpec, loaded: LoadedConfig): Promise<void> {
  const { config } = loaded
  const metrics = new Metrics(metricsOptions(spec, config, performance.timeOrigin))
  const newRequestId = requestIds(randomBytes(4).toString("hex"))
  const accessLog = await accessLogOf(config, { now: () => new Date(), random: Math.random })
  const front = createFront({ config, clock, log, metrics, newRequestId, ...accessLog })
  const runners: ModelRunner[] = []
  stopOnSignals({ front, runners, graceMs: config.gracefulTimeoutMs })
  const [port] = await Promise.all([
    listen(front.server, config.http),
    startRunners(spec, loaded, metrics, runners).then(async ({ models, runnerOf, keep }) => {
      const service = await loadService(spec, models, runnerOf)
      await keep(service.runners.map((runner) => runner.name))
      front.serve(appService(spec, service))
    }),
  ])
  if (!stopping) process.stdout.write(banner(spec, config.http.host, port))
}

/** `api_server.workers` threads serve HTTP; this one has the runners, so that there is one queue and one copy of each model. */
async function serveWithThreads(spec: ServeSpec, loaded: LoadedConfig): Promise<void> {
  const { config } = loaded
  const { http } = config
  const metrics: Metrics = new Metrics({
    ...metricsOptions(spec, config, performance.timeOrigin),
    collect: () => threads.collect(),
  })
  const runners: ModelRunner[] = []
  const threads = new HttpThreads({
    count: http.workers,
    runners,
    clock,
    log,
    metricsText: () => metrics.text(),
    onGone: (routes) => metrics.retire(routes),
    onRestart: () => metrics.httpThreadRestarted(),
  })
  stopOnSignals({ front: threads, runners, graceMs: config.gracefulTimeoutMs })
  const address = { host: http.host, port: await findPort(http), backlog: http.backlog }
  const { models, keep } = await startRunners(spec, loaded, metrics, runners)
  await keep(await threads.start({ spec, models, config, logFormat, listen: address }))
  const other = otherListenerOf(address.port)
  if (other !== undefined) throw portInUse(address.port, other)
  await threads.serve()
  if (!stopping) process.stdout.write(banner(spec, http.host, address.port))
}

/** Where models run on this machine. */
function providersHere(): RunnerConfig["providers"] {
  const { providers, note } = providersFor(env["CUDA_VISIBLE_DEVICES"])
  if (note !== null) log.warn(note)
  return providers
}

/** The models of a spec on their way. They begin to load before the user's module is imported: the threads take longer. */
interface Loading {
  readonly models: readonly SpecModel[]
  readonly runnerOf: (model: SpecModel) => ModelRunner
  /** Closes the runners that no service asks for; resolves when those of these names are ready. */
  readonly keep: (names: readonly string[]) => Promise<unknown>
}

async function startRunners(
  spec: ServeSpec,
  loaded: LoadedConfig,
  metrics: Metrics,
  runners: ModelRunner[],
): Promise<Loading> {
  const models = await readModels(spec)
  const providers = providersHere()
  const byModel = new Map<SpecModel, { runner: ModelRunner; started: Promise<void> }>()
  for (const model of models) {
    const runner = createRunner({
      name: model.name,
      model,
      config: { ...runnerConfig(loaded.config, model.name), providers },
      clock,
      log,
      metrics: loaded.config.metrics.enabled ? metrics : NO_METRICS,
    })
    runners.push(runner)
    const started = spec.selfTest === true ? startTested(model, runner) : runner.start()
    // Awaited in `keep`; until then a failure must not count as unhandled.
    started.catch(() => {})
    byModel.set(model, { runner, started })
  }
  await checkRunnerNames(
    loaded,
    models.map((model) => model.name),
  )
  const entryOf = (model: SpecModel) => {
    const entry = byModel.get(model)
    if (entry === undefined) throw new Error(`no runner for ${model.name}`)
    return entry
  }
  return {
    models,
    runnerOf: (model) => entryOf(model).runner,
    keep(names) {
      const used = models.filter((model) => names.includes(model.name))
      for (const model of models.filter((candidate) => !used.includes(candidate))) {
        log.warn(
          `model ${model.spec.tag} is in the Bento, but no runner of the service asks for it; it is not loaded`,
        )
        const { runner } = entryOf(model)
        runners.splice(runners.indexOf(runner), 1)
        void runner.close()
      }
      for (const runner of runners) metrics.watch(runner)
      return Promise.all(used.map((model) => entryOf(model).started)).finally(endEarly)
    },
  }
}

async function readSpec(flags: Flags): Promise<ServeSpec> {
  if (flags.spec !== undefined) {
    const text = flags.spec === "-" ? readFileSync(0, "utf8") : flags.spec
    // Whoever was to write it ended first.
    if (text === "") exit(1)
    return JSON.parse(text) as ServeSpec // made by our own command line
  }
  const bento = flags.bento ?? env["BENTO_PATH"]
  if (bento === undefined || bento === "") {
    throw new BentoError("BENTO_NOT_FOUND", "nothing says which Bento to serve", {
      hint: "Give --bento DIR, or set BENTO_PATH.",
    })
  }
  const spec = await readBentoSpec(bento, flags["models-dir"])
  const packagesDir = flags["packages-dir"]
  return packagesDir === undefined ? spec : { ...spec, packagesDir }
}

function banner(spec: ServeSpec, host: string, port: number): string {
  const tag = spec.version === null ? spec.name : `${spec.name}:${spec.version}`
  const shown = host === "0.0.0.0" || host === "::" ? "localhost" : host.includes(":") ? `[${host}]` : host
  return `Serving "${tag}" on http://${shown}:${port} (Press CTRL+C to quit)\n`
}

// ------------------------------------------------------------------------------------------------ stopping

interface Stoppable {
  readonly front: Pick<Front, "drain" | "refuse" | "close">
  readonly runners: readonly ModelRunner[]
  readonly graceMs: number
}

/** New requests are still answered for so long, since a load balancer takes a moment to hear that we go. */
const LAME_DUCK_MS = 1000

let stopping = false

/**
 * The first signal drains: `/readyz` answers 503, the listener stays, requests in flight are finished, and the process exits 0
 * as soon as none is left; 1 when the grace time ends before. A second signal exits at once.
 */
function stopOnSignals(parts: Stoppable): void {
  const onSignal = (signal: NodeJS.Signals): void => {
    if (stopping) exit(1)
    stopping = true
    log.info(`${signal}: finishing requests in flight`)
    void stop(parts, 0)
  }
  process.on("SIGTERM", onSignal)
  process.on("SIGINT", onSignal)
  // `bentoctl serve` holds a channel to us: when it is gone, however it ended, nobody could stop us any more.
  process.once("disconnect", () => onSignal("SIGTERM"))
  // Nobody knows in what state such an error leaves the user's code: others are finished, then a new process must begin.
  process.on("uncaughtException", (error) => {
    log.error("an exception was not caught; finishing requests in flight", errorFields(error))
    if (stopping) return
    stopping = true
    void stop(parts, 1)
  })
}

async function stop({ front, runners, graceMs }: Stoppable, exitCode: 0 | 1): Promise<never> {
  setTimeout(() => {
    log.error(`not finished after ${graceMs} ms: giving up on what is left`)
    exit(1)
  }, graceMs)
  setTimeout(() => front.refuse(), LAME_DUCK_MS)
  await front.drain()
  await front.close()
  await Promise.all(runners.map((runner) => runner.close()))
  exit(exitCode)
}

/** An error that ends the server: in the user's words where the user can act, with a stack where we must. */
function fail(error: unknown, spec: ServeSpec | undefined): never {
  if (error instanceof HttpThreadFailed) {
    process.stderr.write(`${error.message.trimEnd()}\n`)
    exit(1)
  }
  if (spec === undefined && !(error instanceof BentoError && error.code !== "SERVICE_INVALID")) throw error
  process.stderr.write(failureText(error, spec ?? { srcDir: "", service: null }))
  exit(1)
}

function readText(file: string): Promise<string> {
  return readFile(file, "utf8")
}

// That nobody reads the log any more is no reason to stop.
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {})

process.on("unhandledRejection", (error) => {
  log.error("a promise was rejected and nobody handled it", errorFields(error))
})

/** Node's own code for a module that waits for ever; Node would print a warning that points into this file. */
const UNSETTLED = 13
const giveUp = (): never => process.exit(UNSETTLED)
process.once("beforeExit", giveUp)
main(process.argv.slice(2)).then(
  () => process.removeListener("beforeExit", giveUp),
  (error: unknown) => {
    process.nextTick(() => {
      throw error
    })
  },
)
