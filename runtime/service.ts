/**
 * What a user's module is made of: a service with its APIs and runners. Definitions only; app.ts serves them, load.ts binds
 * the runners to models.
 */
import { AsyncLocalStorage } from "node:async_hooks"
import type { ApiInfo, RunnerInfo, ServiceInfo } from "../store/bento.ts"
import { type Issue, IssueError } from "../store/errors.ts"
import { ServeError } from "./errors.ts"
import type { InputDescriptor, OutputDescriptor } from "./io.ts"
import type { ModelRunner, RunOptions, RunTiming } from "./runner.ts"
import type { Tensor, Tensors } from "./tensor.ts"
import { castTensor } from "./tensor-cast.ts"

/** What a handler knows of its request, and may say about the response. */
export interface ApiContext {
  /** The client's `x-request-id`, or one of ours; it is on the response and in every log line of this request. */
  readonly requestId: string
  /** Aborted when the client leaves or the request's time is over. Runners heed it by themselves. */
  readonly signal: AbortSignal
  readonly request: {
    readonly path: string
    /** The value of a header, by its name in any case. */
    header(name: string): string | undefined
    /** The first value of a query parameter. */
    query(name: string): string | undefined
  }
  readonly response: {
    /** 200 unless set. */
    status: number
    setHeader(name: string, value: string): void
  }
}

/** One API: a route, what it takes, what it gives, and the function between. `O` is fixed by `output` alone. */
export interface ApiOptions<I, O> {
  readonly name: string
  /** `/NAME` unless given. */
  readonly route?: string
  /** For the API's documentation. */
  readonly doc?: string
  readonly input: InputDescriptor<I>
  readonly output: OutputDescriptor<O>
  readonly handler: (input: I, context: ApiContext) => NoInfer<O> | Promise<NoInfer<O>>
}

/** An API whose types have been checked where it was written. */
export interface Api {
  readonly name: string
  readonly route: string
  readonly doc: string | null
  readonly input: InputDescriptor<unknown>
  readonly output: OutputDescriptor<unknown>
  readonly handler: (input: unknown, context: ApiContext) => unknown
  /** A handler of ours, which passes the scope on by itself. */
  readonly knowsScope?: boolean
}

/**
 * ```ts
 * api({ name: "classify", input: ndarray({ dtype: "float32", shape: [-1, 4] }), output: json<string[]>(), handler })
 * ```
 */
export function api<I, O>(options: ApiOptions<I, O>): Api {
  const { name, route = `/${name}`, doc = null, input, output, handler } = options
  // From here on nobody needs to know I and O: what `input` decodes goes to `handler`, what that returns to `output`.
  return { name, route, doc, input, output, handler } as unknown as Api
}

export interface RunMethodOptions {
  /**
   * Takes the job out of the queue when aborted; the call then rejects with its reason. The request's own signal is heeded
   * in any case.
   */
  readonly signal?: AbortSignal
}

/** Runs a signature: one tensor for a model with one input, else the tensors by input name. Outputs come by name. */
export type RunMethod = (input: Tensor | Tensors, options?: RunMethodOptions) => Promise<Tensors>

/** A model that handlers can call. */
export interface AnyRunner {
  /** The tag or alias that was asked for. */
  readonly model: string
  readonly methods: readonly string[]
}

export type Runner<M extends string = "run"> = AnyRunner & { readonly [K in M]: RunMethod }

/**
 * A runner of a model of the Bento, by its alias or tag. Each signature that handlers call is a method; `run` unless others
 * are named.
 *
 * ```ts
 * const iris = runner("iris_clf:latest")            // await iris.run(x)
 * const text = runner("clip", ["encode", "decode"]) // await text.encode(x)
 * ```
 */
export function runner(model: string): Runner
export function runner<const M extends string>(model: string, methods: readonly M[]): Runner<M>
export function runner(model: string, methods: readonly string[] = ["run"]): AnyRunner {
  const binding: Binding = { target: undefined }
  const handle = { model, methods }
  for (const method of methods) {
    if (method in handle || method === "then") {
      throw new TypeError(
        `runner(${JSON.stringify(model)}): a method cannot be called ${JSON.stringify(method)}`,
      )
    }
    Object.defineProperty(handle, method, {
      enumerable: true,
      value: (input: Tensor | Tensors, options?: RunMethodOptions) =>
        callRunner(handle, binding, method, input, options),
    })
  }
  bindings.set(handle, binding)
  return handle
}

interface Binding {
  target: ModelRunner | undefined
}
const bindings = new WeakMap<AnyRunner, Binding>()

/** Gives a runner of the user's module its model. */
export function bindRunner(handle: AnyRunner, target: ModelRunner): void {
  const binding = bindings.get(handle)
  if (binding === undefined) throw new Error(`not made by runner(): ${handle.model}`)
  binding.target = target
}

/** The part of an AbortSignal that runners use. A real one costs 0.3 µs and a kilobyte for each request. */
export interface CancelSignal {
  readonly aborted: boolean
  addEventListener(type: "abort", listener: () => void): void
  removeEventListener(type: "abort", listener: () => void): void
}

/** What of a request its runners must know: whether it is still wanted, until when, and where its time went. */
export interface CallScope {
  readonly cancel: CancelSignal
  /** The same as `cancel`, for those who need a real one. */
  readonly signal: AbortSignal
  readonly deadlineMs: number | undefined
  readonly timing: RunTiming
}

/**
 * The request whose handler is running, so that `iris.run(x)` heeds its signal and deadline without being told. Costs 0.2 µs
 * a request (bench/app.ts), and no handler can forget it.
 */
export const callScope = new AsyncLocalStorage<CallScope>()

async function callRunner(
  handle: AnyRunner,
  binding: Binding,
  method: string,
  input: Tensor | Tensors,
  options: RunMethodOptions | undefined,
): Promise<Tensors> {
  const { target } = binding
  if (target === undefined) {
    throw new TypeError(
      `runner(${JSON.stringify(handle.model)}) is called before the server has loaded its model, or is not listed in \`runners\` of the service`,
    )
  }
  return runInScope(target, method, fitInputs(target, method, input), callScope.getStore(), options?.signal)
}

/** Runs a signature for the request being handled, if there is one. */
export function runInScope(
  target: ModelRunner,
  signature: string,
  inputs: Tensors,
  scope: CallScope | undefined,
  signal?: AbortSignal,
): Promise<Tensors> {
  const running = target.run(signature, inputs, runOptions(scope, signal))
  if (signal === undefined) return running
  return running.catch((error: unknown) => {
    // Runners know of one signal and take it for the client's; this client is still there and must be told.
    const isOwn = signal.aborted && scope?.cancel.aborted !== true
    throw isOwn && error instanceof ServeError && error.code === "CLIENT_GONE" ? signal.reason : error
  })
}

function runOptions(scope: CallScope | undefined, signal: AbortSignal | undefined): RunOptions {
  if (scope === undefined) return signal === undefined ? {} : { signal }
  const { cancel, deadlineMs, timing } = scope
  // Runners use no more of a signal than a CancelSignal has.
  const either = signal === undefined ? (cancel as AbortSignal) : AbortSignal.any([scope.signal, signal])
  return deadlineMs === undefined ? { signal: either, timing } : { signal: either, timing, deadlineMs }
}

/** By name, and of the dtypes that the model wants where they can be converted; what else is wrong the runner says. */
function fitInputs(target: ModelRunner, method: string, input: Tensor | Tensors): Tensors {
  const specs = target.signatures[method]?.inputs ?? []
  const named: Tensors = isTensor(input) ? { [specs[0]?.name ?? "input"]: input } : input
  let fitted: Record<string, Tensor> | undefined
  for (const { name, dtype } of specs) {
    const tensor = named[name]
    if (tensor === undefined || tensor.dtype === dtype) continue
    fitted ??= { ...named }
    fitted[name] = castTensor(tensor, dtype) ?? tensor
  }
  return fitted ?? named
}

function isTensor(input: Tensor | Tensors): input is Tensor {
  return typeof input["dtype"] === "string"
}

export interface ServiceOptions {
  readonly name: string
  /** Every runner that a handler calls. */
  readonly runners?: readonly AnyRunner[]
  readonly apis: readonly Api[]
}

/** Made by `service()`, so that its definition has been checked. */
export class Service {
  readonly name: string
  readonly runners: readonly AnyRunner[]
  readonly apis: readonly Api[]

  constructor(options: ServiceOptions) {
    this.name = options.name
    this.runners = options.runners ?? []
    this.apis = options.apis
  }
}

/** A service, or an error with all that is wrong in its definition. */
export function service(options: ServiceOptions): Service {
  const issues = [...checkService(options)]
  if (issues.length > 0) {
    throw new IssueError("SERVICE_INVALID", `service ${JSON.stringify(options.name)} is not valid:`, issues)
  }
  return new Service(options)
}

/** Answered by the server itself. */
export const RESERVED_ROUTES = ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"]

const SERVICE_NAME = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/
const API_NAME = /^[A-Za-z_][A-Za-z0-9_-]{0,62}$/
/** Segments of characters that need no escape and that no router takes for a pattern. */
const ROUTE = /^(?:\/|(?:\/[A-Za-z0-9._~-]+)+)$/

function* checkService(options: ServiceOptions): Generator<Issue> {
  if (typeof options.name !== "string" || !SERVICE_NAME.test(options.name)) {
    yield {
      field: "name",
      message: `${JSON.stringify(options.name)} must be of lower-case letters, digits, ".", "_", "-", begin and end with a letter or digit, and have at most 63 characters`,
    }
  }
  for (const [index, handle] of (options.runners ?? []).entries()) {
    const field = `runners[${index}]`
    if (!bindings.has(handle)) yield { field, message: "must be made by runner()" }
    else if (handle.methods.length === 0) yield { field, message: "names no method" }
  }
  const apis = Array.isArray(options.apis) ? options.apis : []
  if (apis.length === 0) yield { field: "apis", message: "must hold at least one API" }
  const names = new Map<string, string>()
  const routes = new Map<string, string>()
  for (const [index, definition] of apis.entries()) {
    const { name, route } = definition
    const field = `apis[${index}]`
    if (typeof name !== "string" || !API_NAME.test(name)) {
      yield {
        field: `${field}.name`,
        message: `${JSON.stringify(name)} must begin with a letter or "_" and hold letters, digits, "_", "-", at most 63`,
      }
    }
    const sameName = names.get(name)
    if (sameName !== undefined)
      yield { field: `${field}.name`, message: `${JSON.stringify(name)} is already the name of ${sameName}` }
    else names.set(name, field)
    if (!ROUTE.test(route) || /\/\.{1,2}(?:\/|$)/.test(route)) {
      yield {
        field: `${field}.route`,
        message: `${JSON.stringify(route)} must begin with "/" and hold segments of letters, digits, ".", "_", "~", "-"`,
      }
    } else if (RESERVED_ROUTES.includes(route)) {
      yield { field: `${field}.route`, message: `${route} is a route of the server itself` }
    }
    const sameRoute = routes.get(route)
    if (sameRoute !== undefined)
      yield { field: `${field}.route`, message: `${route} is already the route of ${sameRoute}` }
    else routes.set(route, field)
    yield* checkParts(definition, field)
  }
}

/** Node strips types and checks none: what is written in a service can be anything. */
function* checkParts(definition: Partial<Api>, field: string): Generator<Issue> {
  const message = "must be a descriptor: json(), text(), ndarray()"
  if (typeof definition.input?.describeInput !== "function") yield { field: `${field}.input`, message }
  if (typeof definition.output?.describeOutput !== "function") yield { field: `${field}.output`, message }
  if (typeof definition.handler !== "function")
    yield { field: `${field}.handler`, message: "must be a function" }
}

/** The service as data. */
export function describeService(definition: Service): ServiceInfo {
  return {
    name: definition.name,
    runners: runnerInfos(definition.runners),
    apis: definition.apis.map(describeApi),
  }
}

function describeApi(definition: Api): ApiInfo {
  return {
    name: definition.name,
    route: definition.route,
    doc: definition.doc,
    input: definition.input.describeInput(),
    output: definition.output.describeOutput(),
  }
}

/** One for each model that is asked for, with the methods of all runners that ask for it. */
function runnerInfos(runners: readonly AnyRunner[]): RunnerInfo[] {
  return [...new Set(runners.map((handle) => handle.model))].map((model) => ({
    name: model.split(":", 1)[0] ?? model,
    model,
    methods: [
      ...new Set(runners.filter((handle) => handle.model === model).flatMap((handle) => handle.methods)),
    ],
  }))
}
