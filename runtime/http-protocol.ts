/**
 * The messages between the main thread, which has the runners, and the HTTP threads (`api_server.workers`). What one turn of
 * the event loop brings travels in one message, since a message costs as much as a small request.
 */
import type { Json, ServeSpec } from "../store/bento.ts"
import type { ErrorCode } from "../store/errors.ts"
import type { RunTiming } from "./batcher.ts"
import type { ServerConfig } from "./config.ts"
import { ServeError } from "./errors.ts"
import type { SpecModel } from "./load.ts"
import type { RouteSnapshot } from "./metrics.ts"
import type { SignatureSpec } from "./runner.ts"
import { type DType, type TensorData, type Tensors, dataOver, makeTensor } from "./tensor.ts"

/** `workerData` of an HTTP thread. */
export interface HttpThreadSettings {
  readonly spec: ServeSpec
  readonly models: readonly SpecModel[]
  readonly config: ServerConfig
  readonly logFormat: "text" | "json"
  /** Where the thread is to listen; the port is a real one. */
  readonly listen: { readonly host: string; readonly port: number; readonly backlog: number }
  /** Listen before the service is loaded, so that `/livez` answers; not where other threads answer meanwhile. */
  readonly listensEarly: boolean
  /** Requests to APIs in flight, a cell for each thread. */
  readonly inFlight: Int32Array
  readonly cell: number
}

/** What an HTTP thread asks, since only the main thread knows. */
export interface Questions {
  /** Why the server is not ready; null when it is. */
  readonly readiness: string | null
  readonly metrics: string
}

export type ToHttpThread =
  /** All models are ready. */
  | { readonly type: "serve"; readonly signatures: Readonly<Record<string, Signatures>> }
  | { readonly type: "results"; readonly results: readonly WireResult[] }
  | { readonly type: "answer"; readonly id: number; readonly value: Questions[keyof Questions] }
  | { readonly type: "unanswered"; readonly id: number; readonly error: WireError }
  | { readonly type: "scrape"; readonly id: number }
  | { readonly type: "drain" | "refuse" | "close" }

export type FromHttpThread =
  | { readonly type: "listening" }
  /** The user's module is imported; the names of the runners that it calls. */
  | { readonly type: "loaded"; readonly runners: readonly string[] }
  | { readonly type: "serving" }
  /** It cannot start: why, for people. */
  | { readonly type: "failed"; readonly text: string }
  /** An exception that nobody caught: it finishes what it has and ends. */
  | { readonly type: "leaving" }
  | {
      readonly type: "calls"
      readonly runs: readonly WireRun[]
      readonly cancels: readonly number[]
      /** The elements of small tensors, one after the other. */
      readonly packed: ArrayBuffer
    }
  | { readonly type: "ask"; readonly id: number; readonly what: keyof Questions }
  | { readonly type: "routes"; readonly id: number; readonly routes: readonly RouteSnapshot[] }
  | { readonly type: "drained" }

type Signatures = Readonly<Record<string, SignatureSpec>>

export interface WireRun {
  readonly id: number
  readonly runner: string
  readonly signature: string
  readonly deadlineMs: number | undefined
  readonly inputs: readonly WireInput[]
}

export type WireInput = readonly [
  name: string,
  dtype: DType,
  shape: readonly number[],
  /** Where it begins in `packed`, and how many elements it has; or the elements themselves. */
  elements: readonly [at: number, length: number] | { readonly data: TensorData[DType] },
]

export type WireResult =
  | { readonly id: number; readonly outputs: Tensors; readonly timing: RunTiming }
  | { readonly id: number; readonly error: WireError }

// ------------------------------------------------------------------------------------------------ tensors

/** Smaller ones share a buffer: to hand over a buffer costs more than to copy these. */
const PACKED_BYTES = 16_384

/**
 * The inputs of calls, copied once, as a thread sends them: what a handler has given to a runner stays its own.
 */
export class InputPacker {
  readonly transfer: ArrayBuffer[] = []
  #small: { readonly at: number; readonly bytes: Uint8Array }[] = []
  #size = 0

  add(inputs: Tensors): WireInput[] {
    return Object.entries(inputs).map(([name, { dtype, shape, data }]): WireInput => {
      if (Array.isArray(data)) return [name, dtype, shape, { data }]
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
      if (bytes.length <= PACKED_BYTES) {
        const at = this.#size
        // Every kind of element may begin at a multiple of 8.
        this.#size += Math.ceil(bytes.length / 8) * 8
        this.#small.push({ at, bytes })
        return [name, dtype, shape, [at, data.length]]
      }
      const own = new Uint8Array(bytes)
      this.transfer.push(own.buffer)
      return [name, dtype, shape, { data: dataOver(dtype, own.buffer, 0, data.length) }]
    })
  }

  /** The buffer of the small ones, which is to be transferred too. */
  pack(): ArrayBuffer {
    const packed = new Uint8Array(this.#size)
    for (const { at, bytes } of this.#small) packed.set(bytes, at)
    this.transfer.push(packed.buffer)
    return packed.buffer
  }
}

export function unpackInputs(inputs: readonly WireInput[], packed: ArrayBuffer): Tensors {
  const tensors: Record<string, Tensors[string]> = Object.create(null) as Record<string, Tensors[string]>
  for (const [name, dtype, shape, elements] of inputs) {
    const data = "data" in elements ? elements.data : dataOver(dtype, packed, ...elements)
    tensors[name] = makeTensor(dtype, shape, data)
  }
  return tensors
}

/** Outputs belong to nobody else: the buffers of large ones change hands, small ones are copied. */
export function outputBuffers(outputs: Tensors): ArrayBuffer[] {
  return Object.values(outputs).flatMap(({ data }) =>
    !Array.isArray(data) && data.buffer instanceof ArrayBuffer && data.buffer.byteLength > PACKED_BYTES
      ? [data.buffer]
      : [],
  )
}

// ------------------------------------------------------------------------------------------------ errors

/** An error as data: for the client what a ServeError says, for the log where it came from. */
export interface WireError {
  readonly serve:
    | {
        readonly code: ErrorCode
        readonly status: number
        readonly message: string
        readonly detail: Json | undefined
        readonly retryAfterS: number | undefined
      }
    | undefined
  readonly cause: { readonly message: string; readonly stack: string | undefined } | undefined
}

export function toWireError(error: unknown): WireError {
  if (!(error instanceof ServeError)) return { serve: undefined, cause: causeOf(error) }
  const { code, status, message, detail, retryAfterS, cause } = error
  return {
    serve: { code, status, message, detail, retryAfterS },
    cause: cause === undefined ? undefined : causeOf(cause),
  }
}

function causeOf(error: unknown): NonNullable<WireError["cause"]> {
  return error instanceof Error
    ? { message: error.message, stack: error.stack }
    : { message: String(error), stack: undefined }
}

export function fromWireError({ serve, cause }: WireError): Error {
  const origin = cause === undefined ? undefined : new Error(cause.message)
  if (origin !== undefined && cause?.stack !== undefined) origin.stack = cause.stack
  if (serve === undefined) return origin ?? new Error("a runner failed")
  const { code, status, message, detail, retryAfterS } = serve
  return new ServeError(code, status, message, {
    ...(detail === undefined ? {} : { detail }),
    ...(retryAfterS === undefined ? {} : { retryAfterS }),
    ...(origin === undefined ? {} : { cause: origin }),
  })
}
