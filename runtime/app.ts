/**
 * The HTTP side: routes, errors, limits and the drain, for an exchange whatever carries it. Hono (hono.ts) brings the requests of
 * Fetch to it; under Node what is plainly one of our routes comes straight here (`App.listener`): that is 2 of 16 µs for a
 * request, and the server is ready 30 ms earlier, since Hono's adapter loads Node's whole Fetch.
 */
import type { IncomingMessage, ServerResponse } from "node:http"
import type { Json, JsonObject, ServiceInfo } from "../store/bento.ts"
import type { AccessLog } from "./access-log.ts"
import type { Clock } from "./batcher.ts"
import type { CorsConfig, ServerConfig } from "./config.ts"
import { corsHeaders, preflight } from "./cors.ts"
import { ApiError, ServeError } from "./errors.ts"
import { type Exchange, type Host, NOT_BEGUN, NodeExchange, type Route } from "./exchange.ts"
import { type Log, errorFields } from "./log.ts"
import type { Metrics, RouteMetrics } from "./metrics.ts"
import { openApi, serviceSchema } from "./openapi.ts"
import type { ModelRunner } from "./runner.ts"
import { type Api, callScope } from "./service.ts"

export interface AppConfig {
  readonly maxBodyBytes: number
  /** A client that takes nothing of its answer for so long is given up. */
  readonly sendTimeoutMs: number
  /** After this time a request is answered 504; null = never. */
  readonly timeoutMs: number | null
  /** Requests to APIs in flight; more are answered 429. null = any number. */
  readonly maxConcurrency: number | null
  /** Serve `/metrics`, and count for it. */
  readonly metrics: boolean
  /** Tell clients where the time went: `Server-Timing`. */
  readonly serverTiming: boolean
  /** Answer with the client's trace id as `x-bentoml-trace-id`. */
  readonly traceId: boolean
  /** null: browsers of other origins are not answered. */
  readonly cors: CorsConfig | null
}

export const DEFAULT_APP_CONFIG: AppConfig = {
  maxBodyBytes: 100 * 2 ** 20,
  sendTimeoutMs: 60_000,
  timeoutMs: 60_000,
  maxConcurrency: null,
  metrics: true,
  serverTiming: true,
  traceId: false,
  cors: null,
}

/** What of the server's configuration is the app's. */
export function appConfig({ http, timeoutMs, maxConcurrency, metrics }: ServerConfig): AppConfig {
  return {
    maxBodyBytes: http.bodyLimitBytes,
    sendTimeoutMs: http.receiveTimeoutMs,
    timeoutMs,
    maxConcurrency,
    metrics: metrics.enabled,
    serverTiming: http.serverTiming,
    traceId: http.traceIdHeader,
    cors: http.cors,
  }
}

/** What the app serves; there is none while the server starts. */
export interface AppService {
  readonly apis: readonly Api[]
  readonly runners: readonly ModelRunner[]
  /** For `/docs.json` and `/schema.json`, asked for when they are. */
  readonly describe: () => ServiceInfo
  readonly version: string | null
  readonly description?: string
}

/** What the threads of a server know of each other, where several serve HTTP. */
export interface Siblings {
  /** Why the server as a whole is not ready; null when it is. */
  notReady(): Promise<string | null>
  /** This thread works on so many requests to APIs. */
  setInFlight(count: number): void
  /** All threads together work on so many. */
  inFlight(): number
}

/**
 * `uri-host [":" port]` of RFC 3986. A comma may be in a name; two lines of a request are joined with a space, too, and no name
 * has that.
 */
const HOST = /^(?:[\w.~!$&'()*+,;=%-]*|\[[\w.~!$&'()*+,;=:-]+\])(?::\d*)?$/

export interface AppOptions {
  readonly service: AppService | null
  readonly clock: Clock
  readonly log: Log
  readonly metrics: Metrics
  readonly config: AppConfig
  readonly newRequestId: () => string
  readonly siblings?: Siblings
  readonly accessLog?: AccessLog
}

export interface App extends Host {
  readonly routes: readonly { readonly method: "GET" | "POST"; readonly path: string }[]
  /** Answers an exchange, by its path and this method. */
  readonly handle: (exchange: Exchange, method: string) => void
  /** For `http.createServer`. */
  readonly listener: (incoming: IncomingMessage, outgoing: ServerResponse) => void
  readonly now: () => number
  /** Says that the server goes: `/readyz` 503, `connection: close`. Resolves when no request is being worked on. */
  drain(): Promise<void>
  /** From here on APIs answer 503. */
  refuse(): void
}

export function createApp(options: AppOptions): App {
  return new Server(options)
}

/** The one label of all paths that are no route of ours. */
const UNMATCHED = "unmatched"
const PROBE = "text/plain; charset=utf-8"
const JSON_TYPE = "application/json"

interface OwnRoute extends Route {
  readonly path: string
  readonly method: "GET" | "POST"
  readonly run: (exchange: Exchange) => void | Promise<void>
}

type FetchListener = (incoming: IncomingMessage, outgoing: ServerResponse) => unknown

class Server implements App {
  readonly newRequestId: () => string
  readonly sendTimeoutMs: number
  readonly now: () => number
  readonly #options: AppOptions
  readonly #routes = new Map<string, OwnRoute>()
  readonly #unmatched: Route
  /** Requests in flight, linked in the order in which they came. */
  #inFlight = 0
  /** Those to APIs: a probe or a scrape that takes its time takes no place of theirs. */
  #apisInFlight = 0
  #oldest: Exchange | undefined
  #newest: Exchange | undefined
  #fetchListener: Promise<FetchListener> | undefined
  #sweepIsSet = false
  #draining = false
  #refusing = false
  #drained: (() => void) | undefined

  constructor(options: AppOptions) {
    this.#options = options
    this.newRequestId = options.newRequestId
    this.now = () => options.clock.now()
    this.sendTimeoutMs = options.config.sendTimeoutMs
    this.#unmatched = { endpoint: UNMATCHED, metrics: this.#metricsOf(UNMATCHED), api: undefined }
    this.#addOwnRoutes()
    for (const api of options.service?.apis ?? []) this.#addApi(api)
  }

  get routes(): readonly OwnRoute[] {
    return [...this.#routes.values()]
  }

  readonly listener = (incoming: IncomingMessage, outgoing: ServerResponse): void => {
    const { url = "", method = "" } = incoming
    const query = url.indexOf("?")
    const path = query === -1 ? url : url.slice(0, query)
    const route = this.#routes.get(path)
    const { host } = incoming.headers
    const isHost = this.#isHost(host)
    if (isHost && (route === undefined || !isMethodOf(route, method))) {
      void this.#fetch().then(
        (listen) => listen(incoming, outgoing),
        (error: unknown) =>
          this.#failUnmatched(new NodeExchange(this, incoming, outgoing, path, this.now()), error),
      )
      return
    }
    const exchange = new NodeExchange(this, incoming, outgoing, path, this.#options.clock.now())
    if (isHost && route !== undefined) this.#run(route, exchange)
    else
      this.#failUnmatched(exchange, new ServeError("REQUEST_INVALID", 400, "the request has no valid host"))
  }

  /** Answers what came to no route. */
  #failUnmatched(exchange: Exchange, error: unknown): void {
    this.#begin(exchange, this.#unmatched)
    this.failed(exchange, error)
  }

  /** RFC 9112, 3.2. That of the request before is not looked at again: most are alike, and it is done for each request. */
  #isHost(host: string | undefined): boolean {
    if (host === this.#lastHost) return true
    if (host === undefined || !HOST.test(host)) return false
    this.#lastHost = host
    return true
  }

  #lastHost = ""

  /** Loaded for the first request that needs it: it takes 7 MiB and 50 ms, and behind a gateway there may never be one. */
  #fetch(): Promise<FetchListener> {
    this.#fetchListener ??= import("./hono.ts").then(
      ({ createFetchListener }) => createFetchListener(this),
      (error: unknown) => {
        // Without a descriptor to spare, say: the next request tries again.
        this.#fetchListener = undefined
        throw error
      },
    )
    return this.#fetchListener
  }

  readonly handle = (exchange: Exchange, method: string): void => {
    const route = this.#routes.get(exchange.path)
    if (method === "OPTIONS" && this.#preflight(exchange, route)) return
    if (route !== undefined && isMethodOf(route, method)) {
      this.#run(route, exchange)
      return
    }
    this.#begin(exchange, route ?? this.#unmatched)
    this.#addCors(exchange)
    this.#refuseRoute(exchange, route, method)
  }

  #run(route: OwnRoute, exchange: Exchange): void {
    this.#begin(exchange, route)
    this.#addCors(exchange)
    try {
      const running = route.run(exchange)
      running?.catch((error: unknown) => this.failed(exchange, error))
    } catch (error) {
      this.failed(exchange, error)
    }
  }

  drain(): Promise<void> {
    this.#draining = true
    for (let it = this.#oldest; it !== undefined; it = it.next) it.closes = true
    if (this.#inFlight === 0) return Promise.resolve()
    return new Promise((resolve) => {
      this.#drained = resolve
    })
  }

  refuse(): void {
    this.#refusing = true
  }

  // -------------------------------------------------------------------------------------------- APIs

  #addApi(api: Api): void {
    const { route: path } = api
    this.#routes.set(path, {
      path,
      method: "POST",
      api,
      endpoint: path,
      metrics: this.#metricsOf(path, [200, 500]),
      run: (exchange) => this.#answer(api, exchange),
    })
  }

  #answer(api: Api, exchange: Exchange): void {
    if (this.#refusing) throw unavailable("the server is shutting down")
    this.#checkConcurrency()
    this.#setDeadline(exchange)
    checkBodyType(api, exchange)
    exchange.readBody(this.#options.config.maxBodyBytes)
  }

  received(exchange: Exchange, body: Buffer): void {
    try {
      if (this.#options.config.serverTiming) exchange.decodeMs = -this.#options.clock.now()
      const decoded = apiOf(exchange).input.decode(body)
      if (isThenable(decoded)) this.#after(exchange, decoded, this.#handle)
      else this.#handle(exchange, decoded)
    } catch (error) {
      this.failed(exchange, error)
    }
  }

  readonly #handle = (exchange: Exchange, input: unknown): void => {
    const { config, clock } = this.#options
    if (config.serverTiming) exchange.decodeMs += clock.now()
    const api = apiOf(exchange)
    const value =
      api.knowsScope === true
        ? api.handler(input, exchange)
        : callScope.run(exchange, api.handler, input, exchange)
    if (isThenable(value)) this.#after(exchange, value, this.#encode)
    else this.#encode(exchange, value)
  }

  readonly #encode = (exchange: Exchange, value: unknown): void => {
    const { config, clock } = this.#options
    if (config.serverTiming) exchange.encodeMs = -clock.now()
    const text = apiOf(exchange).output.encode(value)
    if (isThenable(text)) this.#after(exchange, text, this.#sendText)
    else this.#sendText(exchange, text)
  }

  readonly #sendText = (exchange: Exchange, text: string): void => {
    const { config, clock } = this.#options
    if (config.serverTiming) exchange.encodeMs += clock.now()
    const { status } = exchange
    if (!(status >= 200 && status <= 599)) throw new RangeError(`not a status of an answer: ${status}`)
    exchange.send(status, apiOf(exchange).output.contentType, text, this.#sightOf(exchange))
  }

  #after<T>(exchange: Exchange, value: PromiseLike<T>, next: (exchange: Exchange, value: T) => void): void {
    value.then(
      (settled) => {
        try {
          next(exchange, settled)
        } catch (error) {
          this.failed(exchange, error)
        }
      },
      (error: unknown) => this.failed(exchange, error),
    )
  }

  /** What an answer of an API tells beside the answer. */
  #sightOf(exchange: Exchange): string[] | undefined {
    const { serverTiming, traceId } = this.#options.config
    if (exchange.route?.api === undefined || !(serverTiming || traceId)) return undefined
    const headers = serverTiming ? ["server-timing", timingOf(exchange, this.#options.clock.now())] : []
    const id = traceId ? exchange.traceId : undefined
    if (id !== undefined) headers.push("x-bentoml-trace-id", id)
    return headers
  }

  #metricsOf(endpoint: string, expected?: readonly number[]): RouteMetrics | undefined {
    return this.#options.config.metrics ? this.#options.metrics.route(endpoint, expected) : undefined
  }

  #checkConcurrency(): void {
    const { maxConcurrency } = this.#options.config
    if (maxConcurrency === null || this.#apisInFlightOfAll() <= maxConcurrency) return
    throw new ServeError("OVERLOADED", 429, `${maxConcurrency} requests are being worked on already`, {
      retryAfterS: 1,
    })
  }

  #apisInFlightOfAll(): number {
    return this.#options.siblings?.inFlight() ?? this.#apisInFlight
  }

  #begin(exchange: Exchange, route: Route): void {
    exchange.route = route
    route.metrics?.begin(exchange.startedMs)
    exchange.closes = this.#draining
    exchange.previous = this.#newest
    if (this.#newest === undefined) this.#oldest = exchange
    else this.#newest.next = exchange
    this.#newest = exchange
    this.#inFlight++
    if (route.api !== undefined) this.#countApis(1)
  }

  ended(exchange: Exchange, status: number): void {
    const tookMs = this.#options.clock.now() - exchange.startedMs
    exchange.route?.metrics?.end(status, tookMs)
    this.#options.accessLog?.request(exchange, status, tookMs)
    const { previous, next } = exchange
    if (previous === undefined) this.#oldest = next
    else previous.next = next
    if (next === undefined) this.#newest = previous
    else next.previous = previous
    exchange.previous = undefined
    exchange.next = undefined
    this.#inFlight--
    if (exchange.route?.api !== undefined) this.#countApis(-1)
    if (this.#inFlight === 0) this.#drained?.()
  }

  #countApis(more: 1 | -1): void {
    this.#apisInFlight += more
    this.#options.siblings?.setInFlight(this.#apisInFlight)
  }

  /**
   * Our own limit is the same for all, so the requests in flight are in the order of their deadlines and one timer looks
   * after them. A client may ask for less time: that takes a timer of its own.
   */
  #setDeadline(exchange: Exchange): void {
    const { clock, config } = this.#options
    if (config.timeoutMs !== null) {
      exchange.deadlineMs = exchange.startedMs + config.timeoutMs
      if (!this.#sweepIsSet) this.#setSweep(config.timeoutMs, config.timeoutMs)
    }
    const asked = exchange.header("x-request-timeout-ms")
    if (asked === undefined) return
    if (!/^[1-9]\d{0,8}$/.test(asked)) {
      throw badInput(
        `x-request-timeout-ms must be a whole number of milliseconds, not ${JSON.stringify(asked)}`,
      )
    }
    const deadlineMs = exchange.startedMs + Number(asked)
    if (exchange.deadlineMs !== undefined && deadlineMs >= exchange.deadlineMs) return
    exchange.deadlineMs = deadlineMs
    exchange.cancelTimer = clock.setTimer(() => this.#expire(exchange), deadlineMs - clock.now())
  }

  #setSweep(delayMs: number, timeoutMs: number): void {
    const { clock } = this.#options
    this.#sweepIsSet = true
    clock.setTimer(() => {
      this.#sweepIsSet = false
      const now = clock.now()
      while (this.#oldest !== undefined) {
        const leftMs = this.#oldest.startedMs + timeoutMs - now
        if (leftMs > 0) {
          this.#setSweep(leftMs, timeoutMs)
          return
        }
        this.#expire(this.#oldest)
      }
    }, delayMs)
  }

  #expire(exchange: Exchange): void {
    const tookMs = Math.round(this.#options.clock.now() - exchange.startedMs)
    const error = new ServeError("DEADLINE_EXCEEDED", 504, `no answer within ${tookMs} ms`)
    exchange.abort(error)
    this.failed(exchange, error)
  }

  failed(exchange: Exchange, error: unknown): void {
    if (exchange.ended) return
    const answer = answerTo(error)
    const { log } = this.#options
    if (answer.status >= 500 && !(error instanceof ApiError) && answer.code !== "UNAVAILABLE") {
      log.error(`${exchange.path}: ${answer.code}`, { requestId: exchange.requestId, ...errorFields(error) })
    }
    const { status, retryAfterS } = answer
    const headers = this.#sightOf(exchange) ?? []
    if (retryAfterS !== undefined) headers.push("retry-after", String(Math.max(1, Math.ceil(retryAfterS))))
    let body: string
    try {
      body = errorBody(answer)
    } catch (unwritable) {
      // Of an ApiError, whose detail the user's code gave.
      this.failed(exchange, unwritable)
      return
    }
    exchange.send(status, JSON_TYPE, body, headers)
  }

  // -------------------------------------------------------------------------------------------- other origins

  #addCors(exchange: Exchange): void {
    const { cors } = this.#options.config
    if (cors === null) return
    const origin = exchange.header("origin")
    if (origin === undefined) return
    exchange.addHeaders(corsHeaders(cors, origin, exchange.header("cookie") !== undefined))
  }

  /** Answers the question of a browser whether it may send a request, if this is one. */
  #preflight(exchange: Exchange, route: OwnRoute | undefined): boolean {
    const { cors } = this.#options.config
    const origin = exchange.header("origin")
    const method = exchange.header("access-control-request-method")
    if (cors === null || origin === undefined || method === undefined) return false
    this.#begin(exchange, route ?? this.#unmatched)
    const { headers, refused } = preflight(
      cors,
      origin,
      method,
      exchange.header("access-control-request-headers"),
    )
    exchange.addHeaders(headers)
    if (refused.length === 0) exchange.send(200, PROBE, "OK")
    else {
      const message = `Disallowed CORS ${refused.join(", ")}`
      this.failed(exchange, new ServeError("REQUEST_INVALID", 400, message))
    }
    return true
  }

  // -------------------------------------------------------------------------------------------- own routes

  #addOwnRoutes(): void {
    const { metrics, service, config } = this.#options
    this.#addGet("/livez", (it) => it.send(200, PROBE, "\n"))
    this.#addGet("/healthz", (it) => it.send(200, PROBE, "\n"))
    this.#addGet("/readyz", (it) => this.#readyz(it))
    if (config.metrics) {
      this.#addGet("/metrics", async (it) => it.send(200, metrics.contentType, await metrics.text()))
    }
    if (service === null) return
    const options = {
      version: service.version,
      ...(service.description === undefined ? {} : { description: service.description }),
    }
    this.#addGet("/docs.json", (it) =>
      it.send(200, JSON_TYPE, JSON.stringify(openApi(service.describe(), options))),
    )
    this.#addGet("/schema.json", (it) =>
      it.send(200, JSON_TYPE, JSON.stringify(serviceSchema(service.describe(), options))),
    )
  }

  #addGet(path: string, run: OwnRoute["run"]): void {
    this.#routes.set(path, {
      path,
      method: "GET",
      api: undefined,
      endpoint: path,
      metrics: this.#metricsOf(path),
      run,
    })
  }

  async #readyz(exchange: Exchange): Promise<void> {
    const { service, siblings } = this.#options
    const waiting = service?.runners.filter((runner) => !runner.ready).map((runner) => runner.name)
    if (this.#draining) throw unavailable("the server is shutting down")
    if (waiting === undefined) throw unavailable("the server is starting")
    if (waiting.length > 0) throw unavailable(`not ready: ${waiting.join(", ")}`)
    const reason = (await siblings?.notReady()) ?? null
    if (reason !== null) throw unavailable(reason)
    exchange.send(200, PROBE, "\n")
  }

  #refuseRoute(exchange: Exchange, route: OwnRoute | undefined, method: string): void {
    if (route !== undefined) {
      const allowed = route.method === "GET" ? "GET, HEAD" : route.method
      const message = `${exchange.path} takes ${allowed}, not ${clip(method)}`
      const error = new ServeError("METHOD_NOT_ALLOWED", 405, message)
      exchange.send(405, JSON_TYPE, errorBody(answerTo(error)), ["allow", allowed])
    } else if (this.#options.service === null) this.failed(exchange, unavailable("the server is starting"))
    else {
      const message = `there is no route ${clip(exchange.path)}`
      this.failed(exchange, new ServeError("ROUTE_NOT_FOUND", 404, message))
    }
  }
}

/** `decode;dur=0.03, queue;dur=0.1, batch;desc="rows=8", infer;dur=0.21, encode;dur=0.02`: as far as the request came. */
function timingOf({ decodeMs, queueMs, inferMs, batchRows, encodeMs }: Exchange, nowMs: number): string {
  let text = `decode;dur=${hundredths(decodeMs < 0 ? nowMs + decodeMs : decodeMs)}`
  if (batchRows > 0) {
    text += `, queue;dur=${hundredths(queueMs)}, batch;desc="rows=${batchRows}", infer;dur=${hundredths(inferMs)}`
  }
  return encodeMs === NOT_BEGUN
    ? text
    : `${text}, encode;dur=${hundredths(encodeMs < 0 ? nowMs + encodeMs : encodeMs)}`
}

/** With two decimals, at a third of the price of `toFixed`. */
function hundredths(ms: number): string {
  const all = Math.round(ms * 100)
  const rest = all % 100
  return `${(all - rest) / 100}.${rest < 10 ? "0" : ""}${rest}`
}

const isMethodOf = (route: OwnRoute, method: string): boolean =>
  method === route.method || (method === "HEAD" && route.method === "GET")

// ------------------------------------------------------------------------------------------------ errors

interface Answer {
  readonly status: number
  readonly code: string
  readonly message: string
  readonly detail: Json | undefined
  readonly retryAfterS: number | undefined
}

/** What a client is told of an error; of one that nobody foresaw, nothing but that it happened. */
function answerTo(error: unknown): Answer {
  if (error instanceof ServeError) {
    const { status, code, message, detail, retryAfterS } = error
    return { status, code, message, detail, retryAfterS }
  }
  if (error instanceof ApiError) {
    const { status, code, message, detail } = error
    return { status, code, message, detail, retryAfterS: undefined }
  }
  return {
    status: 500,
    code: "INTERNAL",
    message: "something failed in the server; its log tells more under this request id",
    detail: undefined,
    retryAfterS: undefined,
  }
}

function errorBody({ code, message, detail }: Answer): string {
  const error: JsonObject = { code, message, ...(detail === undefined ? {} : { detail }) }
  return JSON.stringify({ error })
}

/** The answer to what cannot be an exchange. */
export function errorResponse(requestId: string, error: ServeError): Response {
  return new Response(errorBody(answerTo(error)), {
    status: error.status,
    headers: { "content-type": JSON_TYPE, "x-request-id": requestId },
  })
}

/** The answer to what is not even a request, as it goes over the wire; the connection ends with it. */
export function rawErrorResponse(requestId: string, error: ServeError, reason: string): string {
  const body = errorBody(answerTo(error))
  return [
    `HTTP/1.1 ${error.status} ${reason}`,
    `content-type: ${JSON_TYPE}`,
    `content-length: ${Buffer.byteLength(body)}`,
    `x-request-id: ${requestId}`,
    "connection: close",
    "",
    body,
  ].join("\r\n")
}

function checkBodyType(api: Api, exchange: Exchange): void {
  const type = exchange.header("content-type")
  if (type !== JSON_TYPE || !api.input.accepts(JSON_TYPE)) {
    const mediaType = type === undefined ? "" : (type.split(";", 1)[0] ?? "").trim().toLowerCase()
    if (!api.input.accepts(mediaType)) {
      const { mediaType: wanted } = api.input.describeInput()
      throw new ServeError(
        "MEDIA_TYPE_UNSUPPORTED",
        415,
        `expected a body of ${wanted}, received ${JSON.stringify(clip(mediaType))}`,
      )
    }
  }
  const encoding = exchange.header("content-encoding")
  if (encoding !== undefined && encoding !== "identity") {
    throw new ServeError(
      "MEDIA_TYPE_UNSUPPORTED",
      415,
      `the body must not be encoded, but is ${JSON.stringify(clip(encoding))}`,
    )
  }
}

function apiOf(exchange: Exchange): Api {
  const api = exchange.route?.api
  if (api === undefined) throw new Error(`${exchange.path} is no API`)
  return api
}

function isThenable<T>(value: T | PromiseLike<T>): value is PromiseLike<T> {
  return typeof value === "object" && value !== null && "then" in value && typeof value.then === "function"
}

const badInput = (message: string): ServeError => new ServeError("BAD_INPUT", 400, message)
const unavailable = (message: string): ServeError =>
  new ServeError("UNAVAILABLE", 503, message, { retryAfterS: 1 })
const clip = (text: string): string => (text.length > 100 ? `${text.slice(0, 100)}…` : text)
