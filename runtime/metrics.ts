/**
 * What `/metrics` shows: BentoML's names for requests and batches, and ours for queues, workers and refusals.
 *
 * A request costs a few additions to plain numbers: prom-client, which looks up a hash of the labels for each observation (1 to
 * 2 µs a request), only renders. It is loaded at the first scrape. Labels are route templates and names from the Bento,
 * so no client can add a series.
 */
import type { RefusalReason } from "./batcher.ts"
import type { ModelRunner, RunnerMetrics, RunnerStats } from "./runner.ts"

export interface MetricsOptions {
  readonly serviceName: string
  /** "" where there is none. */
  readonly serviceVersion: string
  /** Unix time, in seconds, of the zero of the clock that gives `RouteMetrics` its milliseconds. */
  readonly epochS: number
  /** First part of the names of the API server's metrics. */
  readonly namespace?: string
  readonly durationBucketsS?: readonly number[]
  readonly maxBatchSize?: number
  /** Where the requests are served by other threads: what they have counted. */
  readonly collect?: () => Promise<Iterable<readonly RouteSnapshot[]>>
  /** In one of several HTTP threads: the text comes from the main thread. */
  readonly render?: () => Promise<string>
}

/** The counters of a route as another thread sends them. */
export interface RouteSnapshot {
  readonly endpoint: string
  readonly inProgress: number
  readonly lastMs: number
  readonly statuses: readonly { readonly status: number; readonly histogram: HistogramSnapshot }[]
}

interface HistogramSnapshot {
  readonly total: number
  readonly sum: number
  readonly counts: Float64Array
}

/** BentoML's, when nothing is configured. */
const DURATIONS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180]
/** For what runners do: of a small model, fractions of a millisecond. */
const RUN_S = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
]

const REASONS: Readonly<Record<RefusalReason, true>> = {
  full: true,
  "too-large": true,
  "too-late": true,
  expired: true,
  draining: true,
  aborted: true,
  lost: true,
}

export class Metrics implements RunnerMetrics {
  readonly #options: MetricsOptions
  #routes = new Map<string, RouteMetrics>()
  readonly #methods = new Map<string, Map<string, MethodMetrics>>()
  readonly #refused = new Map<string, number>()
  readonly #restarted = new Map<string, number>()
  readonly #loadedS = new Map<string, number>()
  readonly #runners = new Map<string, ModelRunner>()
  #httpRestarts = 0
  /** What HTTP threads that are gone have counted. */
  #retired = new Map<string, RouteMetrics>()
  #render: Promise<() => Promise<string>> | undefined

  constructor(options: MetricsOptions) {
    this.#options = options
  }

  /**
   * The counters of a route; `endpoint` is its template. The series of the statuses that are to be expected exist from the
   * start, so that the first error is a rise from 0 and not a series without a past.
   */
  route(endpoint: string, expected: readonly number[] = []): RouteMetrics {
    return getOrAdd(
      this.#routes,
      endpoint,
      () => new RouteMetrics(this.#options.durationBucketsS ?? DURATIONS_S, expected),
    )
  }

  /** A runner whose queue is to be shown. What may go wrong with it is counted from 0, as with the statuses of a route. */
  watch(runner: ModelRunner): void {
    const { name } = runner
    this.#runners.set(name, runner)
    for (const reason of Object.keys(REASONS)) count(this.#refused, `${name}\n${reason}`, 0)
    for (const reason of ["exit", "timeout"]) count(this.#restarted, `${name}\n${reason}`, 0)
  }

  loaded(event: { readonly runner: string; readonly loadMs: number; readonly warmUpMs: number }): void {
    this.#loadedS.set(event.runner, (event.loadMs + event.warmUpMs) / 1000)
  }

  batch(event: Parameters<RunnerMetrics["batch"]>[0]): void {
    const { runner, signature, outcome } = event
    const method = this.#method(runner, signature)
    method.rows.observe(event.rows)
    method.jobs.observe(event.jobs)
    if (outcome === "done") method.inferenceS.observe(event.inferMs / 1000)
    method.outcomes.set(outcome, (method.outcomes.get(outcome) ?? 0) + 1)
  }

  queued(runner: string, signature: string, queueMs: number): void {
    this.#method(runner, signature).queueS.observe(queueMs / 1000)
  }

  refused(event: { readonly runner: string; readonly reason: RefusalReason }): void {
    count(this.#refused, `${event.runner}\n${event.reason}`)
  }

  restarted(event: { readonly runner: string; readonly reason: "exit" | "timeout" }): void {
    count(this.#restarted, `${event.runner}\n${event.reason}`)
  }

  readonly contentType = "text/plain; version=0.0.4; charset=utf-8"

  /** What the routes have counted so far. */
  routes(): RouteSnapshot[] {
    return snapshots(this.#routes)
  }

  /** An HTTP thread is gone: what it has counted stays. */
  retire(routes: readonly RouteSnapshot[]): void {
    const counted = routes.map((route) => ({ ...route, inProgress: 0 }))
    this.#retired = this.#sum([snapshots(this.#retired), counted])
  }

  /** An HTTP thread that ended unasked was replaced. */
  httpThreadRestarted(): void {
    this.#httpRestarts++
  }

  /** The text of a scrape. */
  async text(): Promise<string> {
    const { render, collect } = this.#options
    if (render !== undefined) return render()
    if (collect !== undefined) this.#routes = this.#sum([snapshots(this.#retired), ...(await collect())])
    this.#render ??= this.#load().catch((error: unknown) => {
      // Without a descriptor to spare, say: the next scrape tries again.
      this.#render = undefined
      throw error
    })
    return (await this.#render)()
  }

  #sum(threads: Iterable<readonly RouteSnapshot[]>): Map<string, RouteMetrics> {
    const sums = new Map<string, RouteMetrics>()
    for (const routes of threads) {
      for (const route of routes) {
        const { durationBucketsS = DURATIONS_S } = this.#options
        getOrAdd(sums, route.endpoint, () => new RouteMetrics(durationBucketsS, [])).add(route)
      }
    }
    return sums
  }

  async #load(): Promise<() => Promise<string>> {
    // CommonJS: bundled it has nothing but a default export.
    const { default: prometheus } = await import("prom-client")
    const { Registry, collectDefaultMetrics } = prometheus
    const registry = new Registry()
    collectDefaultMetrics({ register: registry })
    for (const family of this.#families()) {
      // prom-client asks of a metric no more than its name and what `get` gives.
      registry.registerMetric(new Family(family) as never)
    }
    return () => registry.metrics()
  }

  #method(runner: string, signature: string): MethodMetrics {
    return getOrAdd(
      getOrAdd(this.#methods, runner, () => new Map<string, MethodMetrics>()),
      signature,
      () => new MethodMetrics(runner, signature, this.#options.maxBatchSize ?? 100),
    )
  }

  #families(): FamilyOptions[] {
    const api = this.#options.namespace ?? "bentoml_api_server"
    const service = { service_name: this.#options.serviceName, service_version: this.#options.serviceVersion }
    const routes = (): [RouteMetrics, Labels][] =>
      [...this.#routes].map(([endpoint, route]) => [route, { endpoint, ...service }])
    const methods = (): [MethodMetrics, Labels][] =>
      [...this.#methods.values()]
        .flatMap((ofRunner) => [...ofRunner.values()])
        .map((method) => [method, { runner_name: method.runner, method_name: method.signature, ...service }])
    const runners = (): [ModelRunner, Labels][] =>
      [...this.#runners.values()].map((runner) => [runner, { runner_name: runner.name, ...service }])
    const counted = (counts: Map<string, number>): Sample[] =>
      [...counts].map(([key, value]) => {
        const [runner = "", reason = ""] = key.split("\n")
        return { labels: { runner_name: runner, reason, ...service }, value }
      })
    return [
      {
        name: `${api}_request_total`,
        type: "counter",
        help: "Requests answered, by route and status.",
        samples: () =>
          routes().flatMap(([route, labels]) =>
            route.statuses().map(([status, { total }]) => ({
              labels: { ...labels, http_response_code: status },
              value: total,
            })),
          ),
      },
      {
        name: `${api}_request_duration_seconds`,
        type: "histogram",
        help: "From the head of the request until the answer was handed to the socket.",
        samples: () =>
          routes().flatMap(([route, labels]) =>
            route.statuses().flatMap(([status, histogram]) =>
              histogram.samples(`${api}_request_duration_seconds`, {
                ...labels,
                http_response_code: status,
              }),
            ),
          ),
      },
      {
        name: `${api}_request_in_progress`,
        type: "gauge",
        help: "Requests being worked on.",
        samples: () => routes().map(([route, labels]) => ({ labels, value: route.inProgress })),
      },
      {
        name: `${api}_last_request_timestamp_seconds`,
        type: "gauge",
        help: "Unix time at which the last request of an API began.",
        samples: () => {
          const last = Math.max(...[...this.#routes.values()].map((route) => route.lastMs))
          return last >= 0 ? [{ labels: service, value: this.#options.epochS + last / 1000 }] : []
        },
      },
      {
        name: `${api}_thread_restarts_total`,
        type: "counter",
        help: "HTTP threads replaced, where api_server.workers is more than 1.",
        samples: () =>
          this.#options.collect === undefined ? [] : [{ labels: service, value: this.#httpRestarts }],
      },
      {
        name: "bentoml_runner_adaptive_batch_size",
        type: "histogram",
        help: "Rows in each batch.",
        samples: () =>
          methods().flatMap(([method, labels]) =>
            method.rows.samples("bentoml_runner_adaptive_batch_size", labels),
          ),
      },
      {
        name: "bentoml_runner_batch_jobs",
        type: "histogram",
        help: "Requests joined in each batch.",
        samples: () =>
          methods().flatMap(([method, labels]) => method.jobs.samples("bentoml_runner_batch_jobs", labels)),
      },
      {
        name: "bentoml_runner_queue_seconds",
        type: "histogram",
        help: "From a job's arrival until its first batch began.",
        samples: () =>
          methods().flatMap(([method, labels]) =>
            method.queueS.samples("bentoml_runner_queue_seconds", labels),
          ),
      },
      {
        name: "bentoml_runner_inference_seconds",
        type: "histogram",
        help: "Time of a batch in ONNX Runtime.",
        samples: () =>
          methods().flatMap(([method, labels]) =>
            method.inferenceS.samples("bentoml_runner_inference_seconds", labels),
          ),
      },
      {
        name: "bentoml_runner_batches_total",
        type: "counter",
        help: "Batches run, by outcome.",
        samples: () =>
          methods().flatMap(([method, labels]) =>
            [...method.outcomes].map(([outcome, value]) => ({ labels: { ...labels, outcome }, value })),
          ),
      },
      {
        name: "bentoml_runner_refused_total",
        type: "counter",
        help: "Jobs that were not run, by reason.",
        samples: () => counted(this.#refused),
      },
      {
        name: "bentoml_runner_worker_restarts_total",
        type: "counter",
        help: "Workers replaced, by reason.",
        samples: () => counted(this.#restarted),
      },
      {
        name: "bentoml_runner_model_load_seconds",
        type: "gauge",
        help: "Loading and warming up the model, the last time.",
        samples: () =>
          [...this.#loadedS].map(([runner, value]) => ({
            labels: { runner_name: runner, ...service },
            value,
          })),
      },
      ...(["queueRows", "queueBytes", "queueJobs", "workersUp"] as const).map((key): FamilyOptions => ({
        name: `bentoml_runner_${key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`,
        type: "gauge",
        help: STAT_HELP[key],
        samples: () => runners().map(([runner, labels]) => ({ labels, value: runner.stats()[key] })),
      })),
      ...(["fixedMs", "perRowMs"] as const).map((key): FamilyOptions => ({
        name: `bentoml_runner_cost_${key === "fixedMs" ? "fixed" : "per_row"}_seconds`,
        type: "gauge",
        help: `The cost model's ${key === "fixedMs" ? "time of a batch apart from its rows" : "time of one more row"}.`,
        samples: () =>
          runners().flatMap(([runner, labels]) =>
            bySignature(runner.stats().groups).map((group) => ({
              labels: { ...labels, method_name: group.name },
              value: group[key] / 1000,
            })),
          ),
      })),
    ]
  }
}

/** A signature has a group for each shape that clients send: shown is the one that the cost model knows best. */
function bySignature(groups: RunnerStats["groups"]): RunnerStats["groups"] {
  const best = new Map<string, RunnerStats["groups"][number]>()
  for (const group of groups) {
    const known = best.get(group.name)
    if (known === undefined || group.samples > known.samples) best.set(group.name, group)
  }
  return [...best.values()]
}

const STAT_HELP = {
  queueRows: "Rows that wait.",
  queueBytes: "Bytes of the inputs that wait.",
  queueJobs: "Requests that wait.",
  workersUp: "Worker threads that hold the model and answer.",
}

function snapshots(routes: ReadonlyMap<string, RouteMetrics>): RouteSnapshot[] {
  return [...routes].map(([endpoint, route]) => route.snapshot(endpoint))
}

/** Requests of one route. */
export class RouteMetrics {
  inProgress = 0
  /** When the last request began; -1 when there was none. */
  lastMs = -1
  readonly #bucketsS: readonly number[]
  readonly #byStatus = new Map<number, Histogram>()
  #lastStatus = 0
  #lastHistogram: Histogram | undefined

  constructor(bucketsS: readonly number[], expected: readonly number[]) {
    this.#bucketsS = bucketsS
    for (const status of expected) this.#byStatus.set(status, new Histogram(bucketsS))
  }

  begin(nowMs: number): void {
    this.inProgress++
    this.lastMs = nowMs
  }

  end(status: number, durationMs: number): void {
    this.inProgress--
    if (status !== this.#lastStatus || this.#lastHistogram === undefined) {
      this.#lastStatus = status
      this.#lastHistogram = getOrAdd(this.#byStatus, status, () => new Histogram(this.#bucketsS))
    }
    this.#lastHistogram.observe(durationMs / 1000)
  }

  snapshot(endpoint: string): RouteSnapshot {
    const { inProgress, lastMs } = this
    const statuses = this.statuses().map(([status, histogram]) => ({
      status,
      histogram: histogram.snapshot(),
    }))
    return { endpoint, inProgress, lastMs, statuses }
  }

  add({ inProgress, lastMs, statuses }: RouteSnapshot): void {
    this.inProgress += inProgress
    this.lastMs = Math.max(this.lastMs, lastMs)
    for (const { status, histogram } of statuses) {
      getOrAdd(this.#byStatus, status, () => new Histogram(this.#bucketsS)).add(histogram)
    }
  }

  statuses(): [number, Histogram][] {
    return [...this.#byStatus].sort(([a], [b]) => a - b)
  }
}

class MethodMetrics {
  readonly runner: string
  readonly signature: string
  readonly rows: Histogram
  readonly jobs: Histogram
  readonly queueS = new Histogram(RUN_S)
  readonly inferenceS = new Histogram(RUN_S)
  readonly outcomes = new Map<string, number>()

  constructor(runner: string, signature: string, maxBatchSize: number) {
    this.runner = runner
    this.signature = signature
    const powers = Array.from({ length: 31 }, (_, exponent) => 2 ** exponent)
    const sizes = [...powers.filter((size) => size < maxBatchSize), maxBatchSize]
    this.rows = new Histogram(sizes)
    this.jobs = new Histogram(sizes)
  }
}

/** Counts by bucket, not yet added up: an observation touches three numbers. */
class Histogram {
  total = 0
  readonly #bounds: readonly number[]
  readonly #counts: Float64Array
  #sum = 0

  constructor(bounds: readonly number[]) {
    this.#bounds = bounds
    this.#counts = new Float64Array(bounds.length + 1)
  }

  observe(value: number): void {
    let bucket = 0
    while (bucket < this.#bounds.length && value > (this.#bounds[bucket] ?? 0)) bucket++
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1
    this.#sum += value
    this.total++
  }

  snapshot(): HistogramSnapshot {
    return { total: this.total, sum: this.#sum, counts: this.#counts }
  }

  add({ total, sum, counts }: HistogramSnapshot): void {
    this.total += total
    this.#sum += sum
    counts.forEach((value, bucket) => {
      this.#counts[bucket] = (this.#counts[bucket] ?? 0) + value
    })
  }

  samples(name: string, labels: Labels): Sample[] {
    let upTo = 0
    return [
      ...[...this.#bounds, "+Inf"].map((le, bucket): Sample => {
        upTo += this.#counts[bucket] ?? 0
        return { metricName: `${name}_bucket`, labels: { ...labels, le }, value: upTo }
      }),
      { metricName: `${name}_sum`, labels, value: this.#sum },
      { metricName: `${name}_count`, labels, value: this.total },
    ]
  }
}

type Labels = Readonly<Record<string, string | number>>

interface Sample {
  readonly metricName?: string
  readonly labels: Labels
  readonly value: number
}

interface FamilyOptions {
  readonly name: string
  readonly type: "counter" | "gauge" | "histogram"
  readonly help: string
  readonly samples: () => Sample[]
}

/** A metric as prom-client's registry asks for it, computed from our numbers at the scrape. */
class Family {
  readonly name: string
  readonly #options: FamilyOptions

  constructor(options: FamilyOptions) {
    this.name = options.name
    this.#options = options
  }

  get(): Promise<unknown> {
    const { name, type, help, samples } = this.#options
    return Promise.resolve({ name, type, help, values: samples(), aggregator: "sum" })
  }
}

function getOrAdd<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  let value = map.get(key)
  if (value === undefined) map.set(key, (value = make()))
  return value
}

function count(counts: Map<string, number>, key: string, by = 1): void {
  counts.set(key, (counts.get(key) ?? 0) + by)
}
