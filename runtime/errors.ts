/** Errors that end a request: thrown by descriptors, runners and user code, turned into a response in one place (app.ts). */
import type { Json } from "../store/bento.ts"
import { BentoError, type ErrorCode } from "../store/errors.ts"

/**
 * An error with an HTTP status. `message` and `detail` go to the client, `cause` only to the log.
 * `retryAfterS` becomes `Retry-After`: whole seconds, at least 1.
 */
export class ServeError extends BentoError {
  readonly status: number
  readonly retryAfterS: number | undefined
  readonly detail: Json | undefined

  constructor(
    code: ErrorCode,
    status: number,
    message: string,
    options: { retryAfterS?: number; detail?: Json; hint?: string; cause?: unknown } = {},
  ) {
    // No stack: nine tenths of the cost of an error (5 µs), paid for each refusal of an overloaded server, and never shown.
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    super(code, message, options)
    Error.stackTraceLimit = stackTraceLimit
    this.name = "ServeError"
    this.status = status
    this.retryAfterS = options.retryAfterS
    this.detail = options.detail
  }
}

/**
 * What a handler throws to answer with an error of its own:
 * `throw new ApiError(404, "no such customer", { code: "NO_CUSTOMER", detail: { id } })`. All of it goes to the client.
 */
export class ApiError extends Error {
  readonly status: number
  readonly code: string
  readonly detail: Json | undefined

  constructor(
    status: number,
    message: string,
    options: { readonly code?: string; readonly detail?: Json; readonly cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = "ApiError"
    if (!Number.isInteger(status) || status < 400 || status > 599) {
      throw new RangeError(`the status of an ApiError is from 400 to 599, not ${status}`)
    }
    this.status = status
    this.code = options.code ?? "API_ERROR"
    this.detail = options.detail
  }
}
