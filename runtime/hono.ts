/** The app behind Fetch: Hono routes its requests, @hono/node-server makes them of Node's. Loaded when first needed (app.ts). */
import type { IncomingMessage, ServerResponse } from "node:http"
import { getRequestListener } from "@hono/node-server"
import { type Context, Hono } from "hono"
import { type App, errorResponse } from "./app.ts"
import { ServeError } from "./errors.ts"
import { FetchExchange } from "./exchange.ts"

export function createHono(app: App): Hono {
  const hono = new Hono()
  const answer = (c: Context): Promise<Response> => {
    const exchange = new FetchExchange(app, c.req.raw, c.req.path, app.now())
    app.handle(exchange, c.req.method)
    return exchange.answer
  }
  for (const { method, path } of app.routes) hono.on(method, path, answer)
  hono.notFound(answer)
  return hono
}

export function createFetchListener(
  app: App,
): (incoming: IncomingMessage, outgoing: ServerResponse) => unknown {
  return getRequestListener(createHono(app).fetch, {
    // A request that is none: a target that is no path.
    errorHandler: () =>
      errorResponse(
        app.newRequestId(),
        new ServeError("REQUEST_INVALID", 400, "the request has no valid target"),
      ),
  })
}
