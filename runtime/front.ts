/**
 * The HTTP side of a server: the app, Node's server before it, and how the two end. In the main thread where one thread
 * serves; in each of several (http-worker.ts) where `api_server.workers` says so.
 */
import type { Server } from "node:http"
import type { ServeSpec } from "../store/bento.ts"
import { BentoError, ERROR_CODES, type ErrorCode } from "../store/errors.ts"
import type { AccessLog } from "./access-log.ts"
import { type App, type AppOptions, type AppService, appConfig, createApp } from "./app.ts"
import type { ServerConfig } from "./config.ts"
import { limitConnections } from "./descriptors.ts"
import { createHttpServer, stopListening } from "./http.ts"
import { type LoadedService, type SpecModel, bindService, importService, serviceWithoutCode } from "./load.ts"
import { locate } from "./locate.ts"
import type { MetricsOptions } from "./metrics.ts"
import type { ModelRunner } from "./runner.ts"

export interface FrontOptions extends Omit<AppOptions, "service" | "config"> {
  readonly config: ServerConfig
}

export interface Front {
  /** The one that answers now: one without a service while the server starts. */
  readonly app: () => App
  readonly server: Server
  /** From here on the service answers. */
  serve(service: AppService): void
  /** Says that the server goes. Resolves when nobody asks any more, or has been refused for a moment and does not hear it. */
  drain(): Promise<void>
  refuse(): void
  /** After the drain: accepts nothing more, answers what was accepted, and gives slow clients a moment to take their answers. */
  close(): Promise<void>
}

/** Nobody asks any more when no request has come for so long: a client that was just answered sends its next one sooner. */
const QUIET_MS = 100
/** Who is refused has so long to go elsewhere. */
const REFUSING_MS = 500
/** For answers that are on their way to slow clients. */
const FLUSH_MS = 500

export function createFront(options: FrontOptions): Front {
  const { config, clock, newRequestId } = options
  const appOf = (service: AppService | null): App =>
    createApp({
      ...options,
      service,
      config: appConfig(config),
    })
  let app = appOf(null)
  const server = createHttpServer({
    app: () => app,
    newRequestId,
    maxBodyBytes: config.http.bodyLimitBytes,
    receiveTimeoutMs: config.http.receiveTimeoutMs,
    keepAliveTimeoutMs: config.http.keepAliveTimeoutMs,
  })
  limitConnections(server, config.http.workers, clock, options.log)
  const sleep = (ms: number): Promise<void> => new Promise((resolve) => clock.setTimer(resolve, ms))
  let requests = 0
  let draining = false
  let refusedMs: number | undefined
  const quiet = async (isEnough: () => boolean): Promise<void> => {
    for (let before = -1; before !== requests;) {
      before = requests
      await app.drain()
      if (isEnough()) return
      await sleep(QUIET_MS)
    }
    await app.drain()
  }
  const refuse = (): void => {
    refusedMs ??= clock.now()
    app.refuse()
  }
  return {
    app: () => app,
    server,
    serve(service) {
      app = appOf(service)
      if (draining) void app.drain()
      if (refusedMs !== undefined) app.refuse()
    },
    drain() {
      if (!draining) server.on("request", () => requests++)
      draining = true
      return quiet(() => refusedMs !== undefined && clock.now() - refusedMs >= REFUSING_MS)
    },
    refuse,
    async close() {
      refuse()
      const closed = new Promise<void>((resolve) => server.once("close", resolve))
      await stopListening(server)
      await quiet(() => false)
      server.closeIdleConnections()
      await Promise.race([closed, sleep(FLUSH_MS)])
    },
  }
}

/** The access log, if there is to be one. */
export async function accessLogOf(
  { accessLog: config }: ServerConfig,
  source: { readonly now: () => Date; readonly random: () => number },
): Promise<{ accessLog?: AccessLog }> {
  if (!config.enabled) return {}
  const { createAccessLog, stdoutWriter } = await import("./access-log.ts")
  return { accessLog: createAccessLog({ config, write: stdoutWriter(), ...source }) }
}

/** `epochMs`: Unix time of the clock's zero. */
export function metricsOptions(spec: ServeSpec, config: ServerConfig, epochMs: number): MetricsOptions {
  return {
    serviceName: spec.name,
    serviceVersion: spec.version ?? "",
    epochS: epochMs / 1000,
    namespace: config.metrics.namespace,
    durationBucketsS: config.metrics.durationBuckets,
    maxBatchSize: config.runnerDefaults.maxBatchSize,
  }
}

/** The service of a spec, over runners that may not have their models yet. */
export async function loadService(
  spec: ServeSpec,
  models: readonly SpecModel[],
  runnerOf: (model: SpecModel) => ModelRunner,
): Promise<LoadedService> {
  if (spec.service !== null) {
    return bindService(await importService({ ...spec, service: spec.service }), models, runnerOf)
  }
  return serviceWithoutCode(
    spec.name,
    models,
    runnerOf,
    (model, signature) => runnerOf(model).signatures[signature] ?? { inputs: [], outputs: [] },
  )
}

export function appService(spec: ServeSpec, { apis, runners, describe }: LoadedService): AppService {
  return {
    apis,
    runners,
    describe,
    version: spec.version,
    ...(spec.description === undefined ? {} : { description: spec.description }),
  }
}

/** Sixteen hexadecimal digits, as BentoML's: eight of the process or thread, eight that count. */
export function requestIds(prefix: string): () => string {
  let count = 0
  return () => {
    count = (count + 1) % 2 ** 32
    return prefix + count.toString(16).padStart(8, "0")
  }
}

/** Why a server does not start, for people: what they can act on, and where in their code. */
export function failureText(error: unknown, spec: Pick<ServeSpec, "srcDir" | "service">): string {
  if (error instanceof BentoError && error.code !== "SERVICE_INVALID") {
    return errorText(error.code, error.message, error.hint)
  }
  const { message, file, line, column } = locate(error, spec)
  const place = [file, line, column].filter((part) => part !== undefined).join(":")
  return errorText("SERVICE_INVALID", `${place === "" ? "" : `${place}: `}${message}`)
}

/** As the command line prints errors. */
function errorText(code: ErrorCode, message: string, hint: string = ERROR_CODES[code][1]): string {
  return `Error: ${message}\nHint: ${hint} [${code}]\n`
}
