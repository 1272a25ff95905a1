/**
 * How the server is configured: a file (BENTOML_CONFIG), overrides from the environment, single variables and flags,
 * merged setting by setting. Whatever is wrong in any of them is told at once, each with its place.
 *
 * Precedence, lowest first: default, file, BENTOML_CONFIG_OVERRIDES, BENTOML_CONFIG_OPTIONS, single variables, flags.
 * What is set for one runner wins over what is set for all, from whichever source either came.
 *
 * Without a file and overrides nothing is loaded but this, in 1 ms. The schema (zod) and the reader (yaml) take 35 ms.
 */
import type { Json } from "../store/bento.ts"
import { type Issue, IssueError } from "../store/errors.ts"
import {
  type Entry,
  HOST,
  type KeyPath,
  LIMITS,
  type Place,
  RESERVED,
  formatKey,
  isHost,
  mustBe,
  parseKey,
  seconds,
  wholeNumber,
} from "./config-entry.ts"
import type { ConfigValues, RunnerValues } from "./config-schema.ts"
import { DEFAULT_RUNNER_CONFIG, type RunnerConfig } from "./runner.ts"

/** What the server runs with. All times in milliseconds. */
export interface ServerConfig {
  readonly http: {
    readonly host: string
    readonly port: number
    readonly backlog: number
    /** Threads that serve HTTP. */
    readonly workers: number
    readonly bodyLimitBytes: number
    /** For the whole of a request to arrive. */
    readonly receiveTimeoutMs: number
    readonly keepAliveTimeoutMs: number
    /** null: off. */
    readonly cors: CorsConfig | null
    /** Answer with the client's trace id as `x-bentoml-trace-id`. */
    readonly traceIdHeader: boolean
    /** Answer with `Server-Timing`. */
    readonly serverTiming: boolean
  }
  /** From the request's arrival to the first byte of its answer. */
  readonly timeoutMs: number
  /** Requests in flight; null: any number. */
  readonly maxConcurrency: number | null
  /** For requests in flight after SIGTERM. */
  readonly gracefulTimeoutMs: number
  readonly metrics: {
    readonly enabled: boolean
    readonly namespace: string
    /** Upper bounds of the request duration's buckets, in seconds as Prometheus has them. */
    readonly durationBuckets: readonly number[]
  }
  readonly accessLog: {
    readonly enabled: boolean
    /** From 0 to 1. */
    readonly sampleRate: number
    /** Beginnings of paths. */
    readonly skipPaths: readonly string[]
  }
  /** Of every runner that is not in `runners`. */
  readonly runnerDefaults: RunnerConfig
  /** Runners with settings of their own, by name. */
  readonly runners: ReadonlyMap<string, RunnerConfig>
}

export interface CorsConfig {
  /** Exact origins, or `*`. */
  readonly origins: readonly string[]
  /** For the whole origin. */
  readonly originRegex: RegExp | null
  readonly credentials: boolean
  readonly methods: readonly string[]
  readonly headers: readonly string[]
  readonly exposeHeaders: readonly string[]
  readonly maxAgeS: number
}

/** A setting's value and who said so: `default`, `FILE:LINE`, `env NAME` or `flag --x`. */
export interface Origin {
  readonly value: Json
  readonly from: string
}

export interface LoadedConfig {
  readonly config: ServerConfig
  /** Every setting by its dotted key, in the order of the schema; a runner's own ones follow. */
  readonly origins: Readonly<Record<string, Origin>>
  /** For the log: what works but should be written otherwise. */
  readonly notes: readonly string[]
  /** Where the file, or a variable, first names each runner. */
  readonly runnerPlaces: ReadonlyMap<string, Place>
}

export interface ConfigSources {
  /** Instead of the file that BENTOML_CONFIG names; null: no file at all. */
  readonly file?: { readonly path: string; readonly text: string } | null
  readonly env: Readonly<Record<string, string | undefined>>
  /** As given on the command line. */
  readonly flags?: ConfigFlags
  readonly readFile: (path: string) => Promise<string>
  /** Settings and sections that may only have their default; `NOT_YET` unless given. */
  readonly notYet?: readonly string[]
}

export interface ConfigFlags {
  readonly port?: string
  readonly host?: string
  readonly apiWorkers?: string
  readonly timeout?: string
}

/**
 * Settings and sections that the server does not follow yet. Giving one another value than the default is an error, since
 * nothing is ignored. The commit that makes one work takes it from this list.
 */
export const NOT_YET: readonly string[] = []

/** What the schema's defaults are, without the schema: `test/runtime/config.test.ts` compares the two. */
export const DEFAULTS: ConfigValues = {
  version: 1,
  api_server: {
    workers: 1,
    backlog: 2048,
    graceful_shutdown_timeout_s: 25,
    traffic: { timeout: 60, max_concurrency: null },
    http: {
      host: "0.0.0.0",
      port: 3000,
      body_limit_bytes: 100 * 1024 * 1024,
      receive_timeout_s: 60,
      keep_alive_timeout_s: 65,
      cors: {
        enabled: false,
        access_control_allow_origins: [],
        access_control_allow_origin_regex: null,
        access_control_allow_credentials: false,
        access_control_allow_methods: ["GET", "HEAD", "POST"],
        access_control_allow_headers: [],
        access_control_expose_headers: [],
        access_control_max_age: 600,
      },
      response: { trace_id: false, server_timing: true },
    },
    metrics: {
      enabled: true,
      namespace: "bentoml_api_server",
      duration: {
        buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180],
        min: null,
        max: null,
        factor: null,
      },
    },
    logging: {
      access: { enabled: false, sample_rate: 1, skip_paths: ["/metrics", "/healthz", "/livez", "/readyz"] },
    },
  },
  runners: {
    batching: {
      enabled: DEFAULT_RUNNER_CONFIG.batching,
      max_batch_size: DEFAULT_RUNNER_CONFIG.maxBatchSize,
      max_latency_ms: DEFAULT_RUNNER_CONFIG.maxLatencyMs,
      batch_wait_ms: DEFAULT_RUNNER_CONFIG.batchWaitMs,
    },
    traffic: { timeout: DEFAULT_RUNNER_CONFIG.timeoutMs / 1000 },
    workers: DEFAULT_RUNNER_CONFIG.workers,
    intra_op_threads: DEFAULT_RUNNER_CONFIG.intraOpThreads,
    max_queue_rows: DEFAULT_RUNNER_CONFIG.maxQueueRows,
    max_queue_bytes: DEFAULT_RUNNER_CONFIG.maxQueueBytes,
    load_timeout_s: DEFAULT_RUNNER_CONFIG.loadTimeoutMs / 1000,
    warm_up: DEFAULT_RUNNER_CONFIG.warmUp,
    allow_cpu_fallback: DEFAULT_RUNNER_CONFIG.allowCpuFallback,
  },
}

/**
 * @throws IssueError CONFIG_INVALID with every problem of every source
 * @example
 * const { config } = await loadConfig({ env: process.env, flags: { port: "8080" }, readFile })
 * config.http.port // 8080
 */
export async function loadConfig(sources: ConfigSources): Promise<LoadedConfig> {
  const { env, flags = {}, notYet = NOT_YET } = sources
  const issues: Issue[] = []
  const file = sources.file === undefined ? await readConfigFile(sources, issues) : sources.file
  const overrides = nonEmpty(env["BENTOML_CONFIG_OVERRIDES"])
  const options = nonEmpty(env["BENTOML_CONFIG_OPTIONS"])
  const check =
    file === null && overrides === undefined && options === undefined
      ? null
      : await import("./config-check.ts")
  const checked = check?.checkTexts({ file, overrides, options }, env) ?? {
    entries: [],
    issues: [],
    notes: [],
  }
  issues.push(...checked.issues)
  const merged = merge([...checked.entries, ...singleVariables(env, issues), ...flagEntries(flags, issues)])
  for (const key of notYet) {
    for (const { path, value, place } of merged.entries.values()) {
      const general = path[0] === "runners" && !isRunnerSetting(path.slice(1)) ? path.toSpliced(1, 1) : path
      if (!isWithin(formatKey(general), key) || sameJson(value, valueIn(DEFAULTS, general))) continue
      issues.push({ ...place, field: formatKey(path), message: "is not supported yet; leave it out" })
    }
  }
  if (issues.length === 0 && check !== null) {
    const { api_server: server, runners } = merged.values
    const together = {
      duration: server.metrics.duration,
      cors: server.http.cors,
      runners: [
        { path: ["runners"], values: runners },
        ...[...merged.runners].map(([name, values]) => ({ path: ["runners", name], values })),
      ],
    }
    issues.push(...check.checkTogether(together, merged.entryOf))
  }
  if (issues.length > 0) throw invalid(issues)
  return {
    config: toServerConfig(merged.values, merged.runners),
    origins: originsOf(merged),
    notes: checked.notes,
    runnerPlaces: merged.runnerPlaces,
  }
}

/** Is a setting the one of that key, or in the section of that key? */
export function isWithin(setting: string, key: string): boolean {
  return setting === key || setting.startsWith(`${key}.`)
}

/** The settings of one runner. */
export function runnerConfig(config: ServerConfig, name: string): RunnerConfig {
  return config.runners.get(name) ?? config.runnerDefaults
}

/**
 * Refuses settings for runners that the service does not have: else a misspelt name would have no effect.
 * @throws IssueError CONFIG_INVALID
 */
export async function checkRunnerNames(loaded: LoadedConfig, names: readonly string[]): Promise<void> {
  const strange = [...loaded.runnerPlaces].filter(([name]) => !names.includes(name))
  if (strange.length === 0) return
  const { unknownRunner } = await import("./config-check.ts")
  throw invalid(
    strange.map(([name, place]) => ({
      ...place,
      field: formatKey(["runners", name]),
      message: unknownRunner(name, names),
    })),
  )
}

/**
 * The effective configuration as a file that could be given as BENTOML_CONFIG, with the origin of each value beside it.
 * @param names runners to show in full, beside those that have settings of their own
 */
export function formatConfig(loaded: LoadedConfig, names: readonly string[] = []): string {
  const lines: { text: string; from: string }[] = []
  const print = (settings: readonly (readonly [KeyPath, Origin])[], indent: number): void => {
    for (const [key, group] of Map.groupBy(settings, ([path]) => path[0] ?? "")) {
      const [only] = group
      const label = " ".repeat(indent) + (/^[A-Za-z_][\w-]*$/.test(key) ? key : JSON.stringify(key))
      if (only !== undefined && only[0].length === 1) {
        // What was a text with `${` must not become a variable when this is read again.
        const value = JSON.stringify(only[1].value).replaceAll("${", () => "$${")
        lines.push({ text: `${label}: ${value}`, from: only[1].from })
      } else {
        lines.push({ text: `${label}:`, from: "" })
        print(
          group.map(([path, origin]) => [path.slice(1), origin]),
          indent + 2,
        )
      }
    }
  }
  const settings = Object.entries(loaded.origins).map(
    ([key, origin]) => [parseKey(key) ?? [], origin] as const,
  )
  const shared = settings.filter(([path]) => path[0] === "runners" && isRunnerSetting(path.slice(1)))
  const own = [...loaded.config.runners.keys(), ...names.filter((name) => !isKey(name))]
  const all = [...settings.filter(([path]) => path[0] !== "runners"), ...shared]
  for (const name of new Set(own)) {
    for (const [[, ...path], origin] of shared) {
      const key = ["runners", name, ...path]
      all.push([key, loaded.origins[formatKey(key)] ?? origin])
    }
  }
  print(all, 0)
  const width = Math.max(
    ...lines
      .filter(({ from }) => from !== "")
      .map(({ text }) => text.length)
      .filter((length) => length <= 60),
  )
  return (
    lines.map(({ text, from }) => (from === "" ? text : `${text.padEnd(width)}  # ${from}`)).join("\n") + "\n"
  )
}

interface Merged {
  readonly values: ConfigValues
  /** In full: what is set for all, and over it what is set for this one. */
  readonly runners: ReadonlyMap<string, RunnerValues>
  readonly runnerPlaces: ReadonlyMap<string, Place>
  readonly entries: ReadonlyMap<string, Entry>
  readonly entryOf: (path: KeyPath) => Entry | undefined
}

/** Later entries win; those for one runner over those for all. */
function merge(entries: readonly Entry[]): Merged {
  const values = structuredClone(DEFAULTS)
  const byKey = new Map(entries.map((entry) => [formatKey(entry.path), entry]))
  const runnerPlaces = new Map<string, Place>()
  const own = new Map<string, Entry[]>()
  for (const entry of byKey.values()) {
    const [section, name = ""] = entry.path
    if (section === "runners" && !isRunnerSetting(entry.path.slice(1))) {
      own.set(name, [...(own.get(name) ?? []), entry])
    } else assign(values, entry.path, entry.value)
  }
  for (const { path, place } of entries) {
    const [section, name = ""] = path
    if (section === "runners" && own.has(name) && !runnerPlaces.has(name)) runnerPlaces.set(name, place)
  }
  // Buckets by rule take the place of the default ones, so that one of the two is null.
  const { duration } = values.api_server.metrics
  if (duration.factor !== null && !byKey.has("api_server.metrics.duration.buckets")) duration.buckets = null
  const runners = new Map<string, RunnerValues>()
  for (const [name, settings] of own) {
    const runner = structuredClone(values.runners)
    for (const { path, value } of settings) assign(runner, path.slice(2), value)
    runners.set(name, runner)
  }
  return { values, runners, runnerPlaces, entries: byKey, entryOf: (path) => byKey.get(formatKey(path)) }
}

/** The path comes from the schema or from this file, and the value was checked against the schema's type at this path. */
function assign(values: ConfigValues | RunnerValues, path: KeyPath, value: Json): void {
  let at = values as unknown as Record<string, Json>
  for (const part of path.slice(0, -1)) at = at[part] as Record<string, Json>
  at[path.at(-1) ?? ""] = value
}

function valueIn(values: object, path: KeyPath): unknown {
  return path.reduce<unknown>((at, part) => (at as Record<string, unknown> | undefined)?.[part], values)
}

function sameJson(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}

/** A runner of such a name cannot be configured by its name. */
function isKey(name: string): boolean {
  return isRunnerSetting([name]) || RESERVED.includes(name)
}

/** Is this path, below `runners`, a setting for all, and not one of a runner called so? */
function isRunnerSetting(path: KeyPath): boolean {
  return Object.hasOwn(DEFAULTS.runners, path[0] ?? "")
}

function originsOf(merged: Merged): Record<string, Origin> {
  const origins: Record<string, Origin> = Object.create(null) as Record<string, Origin>
  for (const [path, value] of leaves(merged.values, [])) {
    const key = formatKey(path)
    const isRule = value === null && key === "api_server.metrics.duration.buckets"
    const entry = merged.entries.get(isRule ? "api_server.metrics.duration.factor" : key)
    origins[key] = { value, from: entry?.from ?? "default" }
  }
  for (const [key, entry] of merged.entries) {
    if (!(key in origins)) origins[key] = { value: entry.value, from: entry.from }
  }
  return origins
}

function* leaves(values: object, path: KeyPath): Generator<[KeyPath, Json]> {
  for (const [key, value] of Object.entries(values)) {
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      yield* leaves(value, [...path, key])
    else yield [[...path, key], value as Json]
  }
}

function toServerConfig(values: ConfigValues, runners: ReadonlyMap<string, RunnerValues>): ServerConfig {
  const server = values.api_server
  const { http, metrics, traffic } = server
  const access = server.logging.access
  return {
    http: {
      host: http.host,
      port: http.port,
      backlog: server.backlog,
      workers: server.workers,
      bodyLimitBytes: http.body_limit_bytes,
      receiveTimeoutMs: milliseconds(http.receive_timeout_s),
      keepAliveTimeoutMs: milliseconds(http.keep_alive_timeout_s),
      cors: http.cors.enabled ? toCors(http.cors) : null,
      traceIdHeader: http.response.trace_id,
      serverTiming: http.response.server_timing,
    },
    timeoutMs: milliseconds(traffic.timeout),
    maxConcurrency: traffic.max_concurrency,
    gracefulTimeoutMs: milliseconds(server.graceful_shutdown_timeout_s),
    metrics: {
      enabled: metrics.enabled,
      namespace: metrics.namespace,
      durationBuckets: bucketsOf(metrics.duration),
    },
    accessLog: { enabled: access.enabled, sampleRate: access.sample_rate, skipPaths: access.skip_paths },
    runnerDefaults: toRunnerConfig(values.runners),
    runners: new Map([...runners].map(([name, runner]) => [name, toRunnerConfig(runner)])),
  }
}

function toCors(cors: ConfigValues["api_server"]["http"]["cors"]): CorsConfig {
  const regex = cors.access_control_allow_origin_regex
  return {
    origins: cors.access_control_allow_origins,
    originRegex: regex === null ? null : new RegExp(`^(?:${regex})$`),
    credentials: cors.access_control_allow_credentials,
    methods: cors.access_control_allow_methods,
    headers: cors.access_control_allow_headers,
    exposeHeaders: cors.access_control_expose_headers,
    maxAgeS: cors.access_control_max_age,
  }
}

function toRunnerConfig(runner: RunnerValues): RunnerConfig {
  return {
    batching: runner.batching.enabled,
    maxBatchSize: runner.batching.max_batch_size,
    maxLatencyMs: runner.batching.max_latency_ms,
    batchWaitMs: runner.batching.batch_wait_ms,
    maxQueueRows: runner.max_queue_rows,
    maxQueueBytes: runner.max_queue_bytes,
    workers: runner.workers,
    intraOpThreads: runner.intra_op_threads,
    timeoutMs: milliseconds(runner.traffic.timeout),
    loadTimeoutMs: milliseconds(runner.load_timeout_s),
    warmUp: runner.warm_up,
    // Not a setting: the server knows from its image and from CUDA_VISIBLE_DEVICES.
    providers: DEFAULT_RUNNER_CONFIG.providers,
    allowCpuFallback: runner.allow_cpu_fallback,
  }
}

/** As a histogram takes them: ascending, without the infinite one. BentoML's rule: from min, times factor, up to max. */
function bucketsOf(duration: ConfigValues["api_server"]["metrics"]["duration"]): readonly number[] {
  const { min, max, factor, buckets } = duration
  if (min === null || max === null || factor === null) {
    return buckets ?? DEFAULTS.api_server.metrics.duration.buckets ?? []
  }
  const bounds: number[] = []
  for (let bound = min; bound < max; bound *= factor) bounds.push(bound)
  return [...bounds, max]
}

function milliseconds(inSeconds: number): number {
  return Math.round(inSeconds * 1000)
}

async function readConfigFile(
  { env, readFile }: ConfigSources,
  issues: Issue[],
): Promise<{ path: string; text: string } | null> {
  const path = nonEmpty(env["BENTOML_CONFIG"])
  if (path === undefined) return null
  if (!/\.ya?ml$/i.test(path)) {
    issues.push({ file: path, message: "BENTOML_CONFIG must name a .yml or .yaml file" })
    return null
  }
  try {
    return { path, text: await readFile(path) }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    issues.push({ file: path, message: `BENTOML_CONFIG names this file, but it cannot be read: ${reason}` })
    return null
  }
}

/** The settings that have a flag: what a platform such as Cloud Run or a deployment script sets. */
const SINGLE = {
  port: { path: ["api_server", "http", "port"], parse: wholeNumberIn(LIMITS.port), flag: "--port" },
  host: {
    path: ["api_server", "http", "host"],
    parse: (text: string) => (isHost(text) ? text : wrong(HOST, text)),
    flag: "--host",
  },
  apiWorkers: {
    path: ["api_server", "workers"],
    parse: wholeNumberIn(LIMITS.workers),
    flag: "--api-workers",
  },
  timeout: { path: ["api_server", "traffic", "timeout"], parse: parseSeconds, flag: "--timeout" },
} as const satisfies Record<
  keyof ConfigFlags,
  { path: KeyPath; parse: (text: string) => Parsed; flag: string }
>

/** PORT is what platforms set; it wins over ours, as in BentoML's images. */
const VARIABLES = [
  ["BENTOML_PORT", "port"],
  ["PORT", "port"],
  ["BENTOML_HOST", "host"],
  ["BENTOML_API_WORKERS", "apiWorkers"],
  ["BENTOML_TIMEOUT", "timeout"],
] as const

type Parsed = string | number | { readonly problem: string }

function singleVariables(env: ConfigSources["env"], issues: Issue[]): Entry[] {
  return VARIABLES.flatMap(([name, key]) =>
    single(key, nonEmpty(env[name]), `env ${name}`, { file: name }, issues),
  )
}

function flagEntries(flags: ConfigFlags, issues: Issue[]): Entry[] {
  return (["port", "host", "apiWorkers", "timeout"] as const).flatMap((key) => {
    const { flag } = SINGLE[key]
    return single(key, flags[key], `flag ${flag}`, { file: flag }, issues)
  })
}

function single(
  key: keyof ConfigFlags,
  text: string | undefined,
  from: string,
  place: Place,
  issues: Issue[],
): Entry[] {
  if (text === undefined) return []
  const { path, parse } = SINGLE[key]
  const value = parse(text.trim())
  if (typeof value !== "object") return [{ path, value, from, place }]
  issues.push({ ...place, message: value.problem })
  return []
}

function wholeNumberIn([min, max]: readonly [number, number]): (text: string) => Parsed {
  return (text) => {
    const value = Number(text)
    return /^\d+$/.test(text) && value >= min && value <= max ? value : wrong(wholeNumber(min, max), text)
  }
}

function parseSeconds(text: string): Parsed {
  const value = Number(text)
  const [min, max] = LIMITS.seconds
  return /^\d+(\.\d+)?$/.test(text) && value >= min && value <= max ? value : wrong(seconds(), text)
}

function wrong(expected: string, text: string): { problem: string } {
  return { problem: mustBe(expected, text) }
}

/** `PORT=` in a shell or a compose file means: not set. */
function nonEmpty(text: string | undefined): string | undefined {
  return text === undefined || text.trim() === "" ? undefined : text
}

function invalid(issues: readonly Issue[]): IssueError {
  const count = issues.length === 1 ? "a problem" : `${issues.length} problems`
  return new IssueError("CONFIG_INVALID", `The serving configuration has ${count}:`, issues, {
    hint: "docs/configuration.md lists every setting; `bentoctl serve --print-config` shows the result and where each value came from.",
  })
}
