/**
 * What can be configured: every setting once, with its type, its range, its default and what it means. From this come
 * the check of each source, the type of the result and the table in docs/configuration.md.
 *
 * zod and yaml take 35 ms to load, so nothing imports this at start-up (types cost nothing): config.ts asks for it only
 * when there is a file or an override, and holds the defaults as a constant that a test compares with these.
 */
// As a namespace: `{ z }` would drag all of zod's languages into the bundle, half a megabyte.
import * as z from "zod"
import { HOST, LIMITS, isHost, seconds, wholeNumber } from "./config-entry.ts"

interface About {
  /** Completes "must be …". */
  readonly expected: string
  readonly meaning: string
  /** Not BentoML's. */
  readonly ours: boolean
}

const ABOUT = z.registry<About>()

/** One of our settings: those tell their unit in their name. (BentoML's `timeout`s are seconds.) */
function ours<T extends z.ZodType>(type: T, expected: string, fallback: z.output<T>, meaning: string) {
  return setting(type, fallback, { expected, meaning, ours: true })
}

function theirs<T extends z.ZodType>(type: T, expected: string, fallback: z.output<T>, meaning: string) {
  return setting(type, fallback, { expected, meaning, ours: false })
}

function setting<T extends z.ZodType>(type: T, fallback: z.output<T>, about: About): z.ZodDefault<T> {
  // `never`: zod asks for "not undefined", which no default here is, and cannot be said of a free T.
  const schema = z._default(type, fallback as never)
  ABOUT.add(schema, about)
  return schema
}

/** A section: all of its keys are known, none has to be there. */
function section<S extends z.ZodRawShape>(shape: S) {
  // `never`: that no key has to be there is not known of a free S.
  return z.prefault(z.strictObject(shape), {} as never)
}

const MAX_INT = 2 ** 31 - 1
const SWITCH = "true or false"
const bool = () => z.boolean()
const int = (min: number, max = MAX_INT) => z.int().min(min).max(max)
const span = (min: number = LIMITS.seconds[0]) => z.number().min(min).max(LIMITS.seconds[1])
const names = (form: RegExp) => z.array(z.string().regex(form)).max(100)
/** null stands for the default, as BentoML writes it. */
const orDefault = <T>(type: z.ZodType<T>, fallback: T) =>
  type.nullable().transform((value) => value ?? fallback)

const TOKEN = /^[!#$%&'*+.^_`|~0-9a-z-]+$/i
const ORIGIN = /^(\*|[a-z][a-z0-9+.-]*:\/\/[^\s/,]+|null)$/i
const METRIC = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/
const methods: string[] = ["GET", "HEAD", "POST"]
const buckets: number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180]
const rising = (values: readonly number[]): boolean =>
  values.every((value, index) => index === 0 || value > (values[index - 1] ?? value))

/** A list may be written as one text. */
const listOf = (form: RegExp, fallback: string[]) =>
  orDefault(
    z.union([
      names(form),
      z
        .string()
        .regex(form)
        .transform((one) => [one]),
    ]),
    fallback,
  )
const ORIGINS = "a list of origins such as https://example.com, or *"
const HEADERS = "a list of header names"

/** Given under `runners` for all, under `runners.<name>` for one. */
const RUNNER = {
  batching: section({
    enabled: theirs(
      bool(),
      SWITCH,
      true,
      "Join rows of several requests into one batch. Off: each request runs alone.",
    ),
    max_batch_size: theirs(
      int(1),
      wholeNumber(1, MAX_INT),
      100,
      "Most **rows** in one batch. A longer request runs in parts.",
    ),
    max_latency_ms: theirs(
      z.number().min(1).max(MAX_INT),
      `a number of milliseconds from 1 to ${MAX_INT}`,
      60_000,
      "Deadline of each job, from the moment it came. One that cannot be met is refused at once with 503.",
    ),
    batch_wait_ms: ours(
      z.number().min(0).max(60_000),
      "a number of milliseconds from 0 to 60000",
      0,
      "How long a job may be kept back for company although a worker is free. 0: never.",
    ),
  }),
  traffic: section({
    timeout: theirs(
      span(),
      seconds(),
      900,
      "A worker that does not answer a batch for so many seconds is replaced. `runners.timeout` is the same.",
    ),
  }),
  workers: ours(
    int(...LIMITS.workers),
    wholeNumber(...LIMITS.workers),
    1,
    "Threads that each hold the model.",
  ),
  intra_op_threads: ours(
    int(1, 1024).nullable(),
    `${wholeNumber(1, 1024)}, or null`,
    null,
    "Threads of ONNX Runtime within each worker. null: the CPUs that the container may use, shared among the workers. " +
      "`resources.cpu`, rounded up, is the same.",
  ),
  max_queue_rows: ours(int(1), wholeNumber(1, MAX_INT), 10_000, "Rows that may wait. Beyond it: 429."),
  max_queue_bytes: ours(
    int(1, Number.MAX_SAFE_INTEGER),
    "a whole number of bytes, at least 1",
    256 * 1024 * 1024,
    "Bytes of input that may wait. Beyond it: 429.",
  ),
  load_timeout_s: ours(span(), seconds(), 300, "A model that is not loaded after so long stops the server."),
  warm_up: ours(
    bool(),
    SWITCH,
    true,
    "Run each signature before `/readyz` says yes: at one row, and at `max_batch_size` (or as many rows as take 2 s).",
  ),
  allow_cpu_fallback: ours(
    bool(),
    SWITCH,
    false,
    "Run on the CPU where CUDA cannot be loaded. Off: that is an error.",
  ),
} as const

const RUNNER_SCHEMA = z.strictObject(RUNNER)

export const CONFIG_SCHEMA = z.strictObject({
  version: theirs(z.literal(1), "1", 1, "Version of these keys: BentoML's v1."),
  api_server: section({
    workers: theirs(
      orDefault(int(...LIMITS.workers), 1),
      `${wholeNumber(...LIMITS.workers)}, or null for 1`,
      1,
      "Threads that read and answer HTTP. More of them never mean more copies of a model; docs/serving.md says when they help.",
    ),
    backlog: theirs(
      int(1, 65_535),
      wholeNumber(1, 65_535),
      2048,
      "Connections that may wait to be accepted.",
    ),
    graceful_shutdown_timeout_s: ours(
      span(0),
      seconds(0),
      25,
      "After SIGTERM: how long requests in flight may take to finish. Kubernetes kills after 30 s, `docker stop` after 10 s, unless told otherwise.",
    ),
    traffic: section({
      timeout: theirs(
        span(),
        seconds(),
        60,
        "Seconds until a request that has no answer gets 504. A client may ask for less (`x-request-timeout-ms`).",
      ),
      max_concurrency: theirs(
        int(1).nullable(),
        `${wholeNumber(1, MAX_INT)}, or null`,
        null,
        "Requests in flight, in all HTTP threads together; one more gets 429. null: no limit but the runners' queues. Probes and metrics do not count.",
      ),
    }),
    http: section({
      host: theirs(z.string().refine(isHost), HOST, "0.0.0.0", "Address to listen on."),
      port: theirs(
        int(...LIMITS.port),
        wholeNumber(...LIMITS.port),
        3000,
        "Port to listen on; 0: any free one.",
      ),
      body_limit_bytes: ours(
        int(1),
        wholeNumber(1, MAX_INT),
        100 * 1024 * 1024,
        "Largest request body; a larger one gets 413.",
      ),
      receive_timeout_s: ours(
        span(),
        seconds(),
        60,
        "How long a client may take to send one whole request; a slower one gets 408. Also how long it may take nothing of its answer.",
      ),
      keep_alive_timeout_s: ours(
        span(),
        seconds(),
        65,
        "How long an idle connection stays open. More than the load balancer's, or it meets closed connections.",
      ),
      cors: section({
        enabled: theirs(bool(), SWITCH, false, "Answer browsers of other origins."),
        access_control_allow_origins: theirs(listOf(ORIGIN, []), ORIGINS, [], "Origins that may ask."),
        access_control_allow_origin_regex: theirs(
          z.string().refine(isRegExp).nullable(),
          "a regular expression, or null",
          null,
          "Origins that may ask, as a regular expression for the whole origin.",
        ),
        access_control_allow_credentials: theirs(
          orDefault(bool(), false),
          SWITCH,
          false,
          "May cookies and authorization be sent? Not together with the origin `*`.",
        ),
        access_control_allow_methods: theirs(
          listOf(TOKEN, methods),
          "a list of methods",
          methods,
          "Methods that may be used.",
        ),
        access_control_allow_headers: theirs(
          listOf(TOKEN, []),
          HEADERS,
          [],
          "Headers that may be sent, beyond those that always may.",
        ),
        access_control_expose_headers: theirs(
          listOf(TOKEN, []),
          HEADERS,
          [],
          "Headers of the answer that a script may read.",
        ),
        access_control_max_age: theirs(
          orDefault(int(0), 600),
          wholeNumber(0, MAX_INT),
          600,
          "Seconds for which a browser may keep the answer to a preflight.",
        ),
      }),
      response: section({
        trace_id: theirs(
          bool(),
          SWITCH,
          false,
          "Answer with `x-bentoml-trace-id`, where the client sent a trace (`traceparent`).",
        ),
        server_timing: ours(
          bool(),
          SWITCH,
          true,
          "Tell clients where the time of a request went (`Server-Timing`).",
        ),
      }),
    }),
    metrics: section({
      enabled: theirs(bool(), SWITCH, true, "Serve `/metrics`."),
      namespace: theirs(
        z.string().regex(METRIC).max(100),
        "letters, digits and underscores, not beginning with a digit",
        "bentoml_api_server",
        "What the names of the server's metrics begin with.",
      ),
      duration: section({
        buckets: theirs(
          z.array(z.number().positive()).min(1).max(100).refine(rising).nullable(),
          "a list of 1 to 100 rising seconds, or null",
          buckets,
          "Upper bounds of the buckets of the request duration, in seconds. null: the default ones, unless there is a rule.",
        ),
        min: theirs(
          z.number().positive().nullable(),
          "a number of seconds above 0",
          null,
          "Buckets by rule: the first bound.",
        ),
        max: theirs(
          z.number().positive().nullable(),
          "a number of seconds above `min`",
          null,
          "Buckets by rule: the last bound.",
        ),
        factor: theirs(
          z.number().gt(1).nullable(),
          "a number above 1",
          null,
          "Buckets by rule: each bound over the one before.",
        ),
      }),
    }),
    logging: section({
      access: section({
        enabled: theirs(
          bool(),
          SWITCH,
          false,
          "One JSON line for each request on stdout. BentoML's default is true.",
        ),
        sample_rate: ours(
          z.number().min(0).max(1),
          "a number from 0 to 1",
          1,
          "Share of the requests that get a line. Failed ones (500 and above) always do.",
        ),
        skip_paths: theirs(
          z.array(z.string().startsWith("/")).max(100),
          "a list of paths that begin with a slash",
          ["/metrics", "/healthz", "/livez", "/readyz"],
          "Paths that get no line; each stands for all that begin with it.",
        ),
      }),
    }),
  }),
  // Anything else under `runners` is the name of a runner.
  runners: z.prefault(z.object(RUNNER).catchall(RUNNER_SCHEMA), {}),
})

/** The settings of the file, all there. Not yet merged per runner. */
type Parsed = z.output<typeof CONFIG_SCHEMA>
export type RunnerValues = z.output<typeof RUNNER_SCHEMA>
export type ConfigValues = Omit<Parsed, "runners"> & { readonly runners: RunnerValues }

export interface Setting extends About {
  readonly path: readonly string[]
  readonly fallback: unknown
}

/** Every setting in the order of the schema; those of the runners once, under `runners`. */
export const SETTINGS: readonly Setting[] = [...walk(CONFIG_SCHEMA, [])]

function* walk(schema: z.core.$ZodType, path: readonly string[]): Generator<Setting> {
  const about = ABOUT.get(schema)
  if (about !== undefined) {
    yield { ...about, path, fallback: schema instanceof z.ZodDefault ? schema.def.defaultValue : undefined }
  } else if (schema instanceof z.ZodPrefault) {
    yield* walk(schema.def.innerType, path)
  } else if (schema instanceof z.ZodObject) {
    for (const [key, value] of Object.entries(schema.shape)) yield* walk(value, [...path, key])
  } else {
    throw new Error(`${path.join(".")} is neither a setting nor a section`)
  }
}

function isRegExp(text: string): boolean {
  try {
    return text.length <= 1000 && new RegExp(text) instanceof RegExp
  } catch {
    return false
  }
}
