/** The listening side of the app: Node's HTTP server with its time limits, and answers to what is no request. */
import { createServer, type Server, type ServerResponse, STATUS_CODES } from "node:http"
import { Server as NetServer, type Socket } from "node:net"
import type { Duplex } from "node:stream"
import { type App, rawErrorResponse } from "./app.ts"
import { BentoError } from "../store/errors.ts"
import { ServeError } from "./errors.ts"
import { listenerOf } from "./ports.ts"

export interface HttpServerOptions {
  /** Asked for each request, since the app that starts is not the app that serves. */
  readonly app: () => App
  readonly newRequestId: () => string
  readonly maxBodyBytes: number
  /** For the whole of a request to arrive. */
  readonly receiveTimeoutMs: number
  readonly keepAliveTimeoutMs: number
}

/** The head of a request alone must be there after so long: a few hundred bytes need no more. */
const MAX_HEADERS_TIMEOUT_MS = 15_000

export function createHttpServer(options: HttpServerOptions): Server {
  const { app, newRequestId, maxBodyBytes, receiveTimeoutMs } = options
  const server = createServer(
    {
      requestTimeout: receiveTimeoutMs,
      headersTimeout: Math.min(receiveTimeoutMs, MAX_HEADERS_TIMEOUT_MS),
      keepAliveTimeout: options.keepAliveTimeoutMs,
      connectionsCheckingInterval: 1000,
      // The app answers a request without a host, in the shape of all errors.
      requireHostHeader: false,
      // And one with two of them, which are then joined: "a, b" is no host.
      joinDuplicateHeaders: true,
      insecureHTTPParser: false,
    },
    (incoming, outgoing) => app().listener(incoming, outgoing),
  )
  // A client that asks first whether it may send its body: not if that is too long.
  server.on("checkContinue", (incoming, outgoing) => {
    if (!(Number(incoming.headers["content-length"]) > maxBodyBytes)) outgoing.writeContinue()
    app().listener(incoming, outgoing)
  })
  server.on("checkExpectation", (incoming, outgoing) => {
    const expectation = JSON.stringify(incoming.headers.expect)
    refuse(outgoing.socket, new ServeError("REQUEST_INVALID", 417, `nobody here can meet ${expectation}`))
  })
  server.on("connect", (_, socket) => {
    refuse(socket, new ServeError("METHOD_NOT_ALLOWED", 405, "this is no proxy"))
  })
  server.on("clientError", (error: NodeJS.ErrnoException, socket: Socket) => {
    // `_httpMessage` is the response under way, if any: a second head must not follow its own.
    const { _httpMessage: started } = socket as Socket & { _httpMessage?: ServerResponse }
    if (error.code === "ECONNRESET" || !socket.writable || started?.headersSent === true) {
      socket.destroy()
    } else if (started?.req.complete === true) {
      // It belongs to the request before: that has its answer, then the connection ends.
      started.shouldKeepAlive = false
    } else refuse(socket, clientError(error))
  })
  const refuse = (socket: Duplex | null, answer: ServeError): void => {
    const reason = STATUS_CODES[answer.status] ?? ""
    socket?.end(rawErrorResponse(newRequestId(), answer, reason), () => socket.destroy())
  }
  return server
}

function clientError({ code = "" }: NodeJS.ErrnoException): ServeError {
  switch (code) {
    case "HPE_HEADER_OVERFLOW":
      return new ServeError("REQUEST_INVALID", 431, "the head of the request is too large")
    case "ERR_HTTP_REQUEST_TIMEOUT":
      return new ServeError("REQUEST_TIMEOUT", 408, "the request did not arrive in time")
    default:
      return new ServeError("REQUEST_INVALID", 400, "this is not HTTP/1.1")
  }
}

/**
 * The port of an address that several threads are to share: a free one for 0. PORT_IN_USE when anyone listens there, even
 * one who would share it.
 */
export async function findPort(address: Parameters<typeof listen>[1]): Promise<number> {
  const server = new NetServer()
  const port = await listen(server, address)
  await new Promise((resolve) => server.close(resolve))
  return port
}

/** Resolves with the port when the server listens; `shared` with other threads that listen there. */
export async function listen(
  server: NetServer,
  { host, port, backlog }: { readonly host: string; readonly port: number; readonly backlog: number },
  { shared = false }: { readonly shared?: boolean } = {},
): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once("error", reject)
  server.listen({ host, port, backlog, reusePort: shared }, resolve)
  try {
    await promise
  } catch (error) {
    throw listenError(error, host, port)
  } finally {
    server.removeListener("error", reject)
  }
  const address = server.address()
  return typeof address === "object" && address !== null ? address.port : port
}

/** A server that is asked without a pause is closed after so many turns of the event loop nevertheless. */
const MOST_TURNS = 1000

/**
 * Accepts nothing more, and leaves all that was accepted as it is: what is idle may have its next request on the way. A
 * connection that only the kernel has accepted so far would be reset; so this happens in a turn of the event loop in which
 * nobody connected or asked, as it has taken no time.
 */
export function stopListening(server: Server): Promise<void> {
  return new Promise((resolve) => {
    let turns = 0
    let busy = true
    const onEvent = (): void => {
      busy = true
    }
    const turn = (): void => {
      if (busy && ++turns < MOST_TURNS) {
        busy = false
        setImmediate(turn)
        return
      }
      // What http.Server's own close does, but for closing idle connections.
      NetServer.prototype.close.call(server)
      server.removeListener("connection", onEvent).removeListener("request", onEvent)
      resolve()
    }
    server.on("connection", onEvent).on("request", onEvent)
    turn()
  })
}

export function portInUse(port: number, holder: string | undefined, cause?: unknown): BentoError {
  return new BentoError(
    "PORT_IN_USE",
    `port ${port} is in use${holder === undefined ? "" : ` by ${holder}`}`,
    { hint: "Stop it, or choose another port: --port, PORT.", cause },
  )
}

function listenError(error: unknown, host: string, port: number): unknown {
  const { code = "" } = error as NodeJS.ErrnoException
  switch (code) {
    case "EADDRINUSE":
      return portInUse(port, listenerOf(port), error)
    case "EACCES":
      return new BentoError("PORT_IN_USE", `port ${port} is not open to this user`, {
        hint: "Choose a port from 1024 upwards: --port, PORT.",
        cause: error,
      })
    case "ENOTSUP":
      return new BentoError("CONFIG_INVALID", "several HTTP threads cannot share a port on this system", {
        hint: "Set api_server.workers to 1: the kernel of Linux shares out connections, others do not.",
        cause: error,
      })
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
      return new BentoError("CONFIG_INVALID", `this machine has no address ${host}`, {
        hint: "Choose one of its own: --host, BENTOML_HOST; 0.0.0.0 is all of them.",
        cause: error,
      })
    default:
      return error
  }
}
