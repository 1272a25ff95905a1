/**
 * One request and its answer, whatever carries them: node:http itself for the APIs under load, Fetch's Request and Response
 * for all else and for tests through `app.request`. To handlers it is their context, to runners the scope of their call.
 *
 * This is the hot path: an exchange is its own timing, its own signal for runners and its own link in the list of
 * requests in flight, and its listeners are shared functions, so that a request leaves little behind to collect.
 */
import type { IncomingMessage, ServerResponse } from "node:http"
import type { RunTiming } from "./batcher.ts"
import { ServeError } from "./errors.ts"
import type { RouteMetrics } from "./metrics.ts"
import type { Api, ApiContext, CallScope, CancelSignal } from "./service.ts"

/** What an exchange tells the app, and what it needs of it. */
export interface Host {
  readonly newRequestId: () => string
  /** A client that takes nothing of its answer for so long is given up. */
  readonly sendTimeoutMs: number
  /** The whole body is there. */
  received(exchange: Exchange, body: Buffer): void
  failed(exchange: Exchange, error: unknown): void
  /** Called once: the answer has been handed over, or the client has left. */
  ended(exchange: Exchange, status: number): void
}

/** Where an exchange belongs: an API, or one of the server's own routes. */
export interface Route {
  /** Its name in metrics and in the access log. */
  readonly endpoint: string
  readonly api: Api | undefined
  /** Undefined where metrics are off. */
  readonly metrics: RouteMetrics | undefined
}

/** A status of our own for a client that left: it is counted, nobody receives it. */
export const CLIENT_GONE = 499

export const NOT_BEGUN = -1

export abstract class Exchange implements CallScope, ApiContext, RunTiming, CancelSignal {
  readonly path: string
  readonly startedMs: number
  /** What a handler may set before it returns. */
  status = 200
  deadlineMs: number | undefined = undefined
  /** The answer says `connection: close`: the server drains. */
  closes = false
  /** Whether no answer is wanted any more. */
  ended = false
  /** Whether the work is to stop: the client has left, or its time is over. */
  aborted = false
  queueMs = 0
  inferMs = 0
  batchRows = 0
  /** Where the time went before and after the handler. Below 0: less the time at which it began, since it goes on. */
  decodeMs = 0
  encodeMs = NOT_BEGUN
  /** Bytes of the two bodies. */
  bytesIn = 0
  bytesOut = 0
  route: Route | undefined = undefined
  /** Neighbours among the requests in flight; the app's. */
  previous: Exchange | undefined = undefined
  next: Exchange | undefined = undefined
  /** Takes back the timer of a deadline that the client asked for. */
  cancelTimer: (() => void) | undefined = undefined
  readonly #host: Host
  #requestId: string | undefined
  #headers: string[] | undefined
  #abort: AbortController | undefined
  #abortReason: ServeError | undefined
  #onAbort: (() => void)[] | undefined

  constructor(host: Host, path: string, startedMs: number) {
    this.#host = host
    this.path = path
    this.startedMs = startedMs
  }

  abstract get method(): string
  abstract header(name: string): string | undefined
  abstract query(name: string): string | undefined
  /** Hands the whole body to the host; BODY_TOO_LARGE as soon as it is known to be longer than the limit. */
  abstract readBody(maxBytes: number): void
  protected abstract write(status: number, headers: string[], body: string): void

  /** The client's, where it is harmless in logs and headers; else a new one. */
  get requestId(): string {
    if (this.#requestId === undefined) {
      const given = this.header("x-request-id")
      this.#requestId = given !== undefined && REQUEST_ID.test(given) ? given : this.#host.newRequestId()
    }
    return this.#requestId
  }

  /** The trace that the client says this request belongs to (W3C Trace Context). */
  get traceId(): string | undefined {
    const parent = this.header("traceparent")
    return parent === undefined ? undefined : TRACE_PARENT.exec(parent)?.[1]
  }

  // -------------------------------------------------------------------------- the context of a handler

  get request(): ApiContext["request"] {
    return this
  }

  get response(): ApiContext["response"] {
    return this
  }

  setHeader(name: string, value: string): void {
    if (!HEADER_NAME.test(name) || !HEADER_VALUE.test(value)) {
      throw new TypeError(`not a header: ${JSON.stringify(name)}: ${JSON.stringify(value)}`)
    }
    if (RESERVED_HEADERS.includes(name.toLowerCase())) {
      throw new TypeError(`the server itself sets the header ${name}`)
    }
    ;(this.#headers ??= []).push(name, value)
  }

  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController()
      if (this.aborted) this.#abort.abort(this.#abortReason ?? clientGone())
    }
    return this.#abort.signal
  }

  // -------------------------------------------------------------------------- the scope of a runner's call

  get timing(): RunTiming {
    return this
  }

  get cancel(): CancelSignal {
    return this
  }

  addEventListener(_: "abort", listener: () => void): void {
    ;(this.#onAbort ??= []).push(listener)
  }

  removeEventListener(_: "abort", listener: () => void): void {
    const listeners = this.#onAbort
    if (listeners === undefined) return
    if (listeners.length === 1 && listeners[0] === listener) this.#onAbort = undefined
    else this.#onAbort = listeners.filter((other) => other !== listener)
  }

  // -------------------------------------------------------------------------- the answer

  /** Headers of the server itself, as name, value, name, value. */
  addHeaders(headers: readonly string[]): void {
    ;(this.#headers ??= []).push(...headers)
  }

  /**
   * Answers, once; what comes after the end is dropped. Some statuses have no body (RFC 9110, 15.3.5, 15.3.6, 15.4.5), whatever a
   * handler that set one of them has returned: clients take it for the begin of the next answer.
   */
  send(status: number, contentType: string, body: string, more?: readonly string[]): void {
    if (this.ended) return
    const isBare = status === 204 || status === 205 || status === 304
    const headers = isBare
      ? ["x-request-id", this.requestId]
      : ["content-type", contentType, "x-request-id", this.requestId]
    if (this.#headers !== undefined) headers.push(...this.#headers)
    if (more !== undefined) headers.push(...more)
    this.write(status, headers, isBare ? "" : body)
    this.#end(status)
  }

  /** Stops the work; without a reason, because the client has left. */
  abort(reason?: ServeError): void {
    if (this.ended || this.aborted) return
    this.aborted = true
    this.#abortReason = reason
    for (const listener of this.#onAbort?.splice(0) ?? []) listener()
    this.#abort?.abort(reason ?? clientGone())
  }

  left(): void {
    if (this.ended) return
    this.abort()
    this.#end(CLIENT_GONE)
  }

  protected get sendTimeoutMs(): number {
    return this.#host.sendTimeoutMs
  }

  protected received(body: Buffer): void {
    this.bytesIn = body.length
    this.#host.received(this, body)
  }

  protected failed(error: unknown): void {
    this.#host.failed(this, error)
  }

  #end(status: number): void {
    this.ended = true
    this.cancelTimer?.()
    this.#host.ended(this, status)
  }
}

const TRACE_PARENT = /^(?!ff)[\da-f]{2}-(?!0{32})([\da-f]{32})-(?!0{16})[\da-f]{16}-[\da-f]{2}(?:-|$)/
const REQUEST_ID = /^[\w.:@/+=-]{1,128}$/
const HEADER_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/
const HEADER_VALUE = /^[\t\u0020-\u007e\u0080-\u00ff]*$/
const RESERVED_HEADERS = ["content-length", "connection", "transfer-encoding", "x-request-id", "content-type"]

const clientGone = (): ServeError => new ServeError("CLIENT_GONE", CLIENT_GONE, "the client left")

function tooLarge(received: string, maxBytes: number): ServeError {
  return new ServeError(
    "BODY_TOO_LARGE",
    413,
    `the body has ${received} bytes; at most ${maxBytes} are read`,
    {
      detail: { maxBytes },
    },
  )
}

const EMPTY = Buffer.alloc(0)

/**
 * Pieces of a body put together. One piece is taken as it is; more are copied into one growing buffer, so that a body sent
 * byte by byte costs its length and not an object for each byte.
 */
class BodyBuffer {
  size = 0
  readonly #maxBytes: number
  #bytes: Buffer = EMPTY
  #owned = false

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** An error when the limit is passed. */
  add(piece: Buffer): ServeError | undefined {
    const { size } = this
    this.size += piece.length
    if (this.size > this.#maxBytes) return tooLarge(`more than ${this.#maxBytes}`, this.#maxBytes)
    if (size === 0) this.#bytes = piece
    else {
      if (!this.#owned || this.size > this.#bytes.length) {
        const grown = Buffer.allocUnsafeSlow(Math.max(65_536, this.size * 2))
        this.#bytes.copy(grown, 0, 0, size)
        this.#bytes = grown
        this.#owned = true
      }
      piece.copy(this.#bytes, size)
    }
    return undefined
  }

  take(): Buffer {
    return this.#owned ? this.#bytes.subarray(0, this.size) : this.#bytes
  }
}

const OWNER = Symbol("exchange")

interface Owned {
  [OWNER]?: NodeExchange
}

function onClose(this: ServerResponse & Owned): void {
  this[OWNER]?.left()
}

function onData(this: IncomingMessage & Owned, piece: Buffer): void {
  this[OWNER]?.receive(piece)
}

function onEnd(this: IncomingMessage & Owned): void {
  this[OWNER]?.receiveEnd()
}

export class NodeExchange extends Exchange {
  readonly #incoming: IncomingMessage & Owned
  readonly #outgoing: ServerResponse & Owned
  /** Bytes that the client has declared; -1 without a declaration: the end of the stream tells. */
  #length = -1
  #maxBytes = 0
  /** Only where the body comes in pieces. */
  #pieces: BodyBuffer | undefined
  /** The whole body has arrived, though Node may not have said so yet. */
  #hasBody = false

  constructor(
    host: Host,
    incoming: IncomingMessage,
    outgoing: ServerResponse,
    path: string,
    startedMs: number,
  ) {
    super(host, path, startedMs)
    this.#incoming = incoming
    this.#outgoing = outgoing
    this.#outgoing[OWNER] = this
    outgoing.on("close", onClose)
  }

  get method(): string {
    return this.#incoming.method ?? ""
  }

  /** Node keeps the names of headers in lower case. */
  header(name: string): string | undefined {
    const { headers } = this.#incoming
    const value = headers[name] ?? headers[name.toLowerCase()]
    return Array.isArray(value) ? value.join(", ") : value
  }

  query(name: string): string | undefined {
    const { url = "" } = this.#incoming
    const start = url.indexOf("?")
    return start === -1 ? undefined : (new URLSearchParams(url.slice(start + 1)).get(name) ?? undefined)
  }

  readBody(maxBytes: number): void {
    const incoming = this.#incoming
    const declared = incoming.headers["content-length"]
    if (declared === "0") {
      this.#complete(EMPTY)
      return
    }
    if (declared !== undefined) {
      this.#length = Number(declared)
      if (this.#length > maxBytes) {
        this.failed(tooLarge(declared, maxBytes))
        return
      }
    }
    this.#maxBytes = maxBytes
    incoming[OWNER] = this
    incoming.on("data", onData)
    // Where the client leaves before the end, the response closes; nobody waits here.
    if (declared === undefined) incoming.on("end", onEnd)
  }

  receive(piece: Buffer): void {
    if (this.#pieces === undefined && piece.length === this.#length) {
      this.#complete(piece)
      return
    }
    this.#pieces ??= new BodyBuffer(this.#maxBytes)
    const error = this.#pieces.add(piece)
    if (error !== undefined) {
      this.#incoming.removeAllListeners()
      this.failed(error)
    } else if (this.#pieces.size === this.#length) this.#complete(this.#pieces.take())
  }

  receiveEnd(): void {
    this.#complete(this.#pieces?.take() ?? EMPTY)
  }

  #complete(body: Buffer): void {
    this.#hasBody = true
    this.received(body)
  }

  protected write(status: number, headers: string[], body: string): void {
    const outgoing = this.#outgoing
    if (outgoing.headersSent || outgoing.destroyed) return
    this.bytesOut = Buffer.byteLength(body)
    // Where there is never one, its length must not be told either (RFC 9110, 8.6).
    if (status !== 204 && status !== 304) headers.push("content-length", String(this.bytesOut))
    const early = !this.#hasBody && this.#awaitsBody()
    if (early || this.closes) headers.push("connection", "close")
    outgoing.writeHead(status, headers)
    if (early) this.#endLate(body)
    else outgoing.end(body)
    // Not all went into the socket's buffer; Node's own limit, for idle connections, begins when it has.
    if (outgoing.writableLength > 0) outgoing.setTimeout(this.sendTimeoutMs, () => outgoing.destroy())
  }

  #awaitsBody(): boolean {
    const { complete, headers } = this.#incoming
    if (complete) return false
    return headers["transfer-encoding"] !== undefined || (headers["content-length"] ?? "0") !== "0"
  }

  /**
   * An answer before the end of the body (too long, wrong type): the connection is given up, but only after the client had a
   * chance to read. Closing with unread bytes would reset it and throw our answer away.
   */
  #endLate(body: string): void {
    const [incoming, outgoing] = [this.#incoming, this.#outgoing]
    outgoing.write(body)
    let unread = 0
    const end = (): void => {
      clearTimeout(timer)
      outgoing.end()
    }
    const timer = setTimeout(end, LINGER_MS)
    incoming.removeAllListeners()
    incoming.on("data", (piece: Buffer) => {
      unread += piece.length
      if (unread > MAX_LINGER_BYTES) end()
    })
    incoming.on("end", end)
    incoming.resume()
  }
}

const LINGER_MS = 1000
const MAX_LINGER_BYTES = 16 * 2 ** 20

export class FetchExchange extends Exchange {
  readonly #answer = Promise.withResolvers<Response>()
  readonly #request: Request

  constructor(host: Host, request: Request, path: string, startedMs: number) {
    super(host, path, startedMs)
    this.#request = request
  }

  /** The answer, when it is there. */
  get answer(): Promise<Response> {
    return this.#answer.promise
  }

  get method(): string {
    return this.#request.method
  }

  header(name: string): string | undefined {
    return this.#request.headers.get(name) ?? undefined
  }

  query(name: string): string | undefined {
    return new URL(this.#request.url).searchParams.get(name) ?? undefined
  }

  readBody(maxBytes: number): void {
    this.#collect(maxBytes).then(
      (body) => this.received(body),
      (error: unknown) => this.failed(error),
    )
  }

  async #collect(maxBytes: number): Promise<Buffer> {
    const declared = this.header("content-length")
    if (declared !== undefined && Number(declared) > maxBytes) throw tooLarge(declared, maxBytes)
    const body = new BodyBuffer(maxBytes)
    for await (const piece of this.#request.body ?? []) {
      const error = body.add(Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength))
      if (error !== undefined) throw error
    }
    return body.take()
  }

  protected write(status: number, headers: string[], body: string): void {
    this.bytesOut = Buffer.byteLength(body)
    const record: Record<string, string> = {}
    for (let index = 0; index < headers.length; index += 2) {
      record[headers[index] ?? ""] = headers[index + 1] ?? ""
    }
    if (this.closes) record["connection"] = "close"
    // With some statuses even an empty body is an error.
    this.#answer.resolve(new Response(body === "" ? null : body, { status, headers: record }))
  }
}
