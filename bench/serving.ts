/**
 * How the server behaves when it matters: alone, after a burst, near saturation, far beyond it. Each row is measured against
 * something else in the same run. `BENCH_SOAK_MINUTES=30` adds the soak.
 *
 * Latency is judged in an open loop (requests count from when they were due) from another core than the server's.
 */
import { readFileSync, readdirSync } from "node:fs"
import path from "node:path"
import {
  bentoctl,
  loadFrom,
  median,
  report,
  residentBytes,
  root,
  type Row,
  scratch,
  serveCommand,
  sleep,
  startServer,
  type Started,
} from "./harness.ts"
import { mulberry32, quantile } from "./load.ts"
import { NARROW_INPUT, WIDE_INPUT, writeMlp } from "./mlp.ts"
import { execFileSync } from "node:child_process"
import type { BareResult } from "./bare.ts"

const home = scratch()
const rows: Row[] = []
const asked = process.argv.slice(2)
const cases = { lone, saturation, poisson, overload, soak }
for (const [name, run] of Object.entries(cases)) {
  if (asked.length > 0 && !asked.includes(name)) continue
  process.stdout.write(`\n${name} …\n`)
  rows.push(...(await run()))
}
report("Serving", rows)

/** One request at a time: against the least that can serve the model, and against itself after a burst. */
async function lone(): Promise<Row[]> {
  const model = iris()
  const one = { path: "/run", bodies: ["[[5.9,3,5.1,1.8]]"], connections: 1, seconds: 2, warmUpSeconds: 0.5 }
  const direct = await startServer(
    [process.execPath, path.join(root, "bench/direct.ts"), JSON.stringify({ model: model.file, input: "X" })],
    { probe: "/" },
  )
  const server = await serve(model)
  const extra: number[] = []
  const directs: number[] = []
  const after: number[] = []
  for (let run = 0; run < 5; run++) {
    const directP50 = (await loadFrom({ ...one, port: direct.port })).latencyMs.p50
    const before = (await loadFrom({ ...one, port: server.port })).latencyMs.p50
    directs.push(directP50)
    extra.push(before - directP50)
    await loadFrom({ ...one, port: server.port, connections: 64, seconds: 10 })
    const first = await loadFrom({ ...one, port: server.port, seconds: 1, warmUpSeconds: 0 })
    after.push(first.latencyMs.p50 / before)
  }
  await Promise.all([direct.stop(), server.stop()])
  return [
    {
      what: "one request at a time, iris",
      measured: `p50 +${median(extra).toFixed(3)} ms`,
      against: `node:http + session.run: p50 ${median(directs).toFixed(3)} ms`,
      goal: "≤ +0.25 ms",
      met: median(extra) <= 0.25,
    },
    {
      what: "the same in the second after 10 s of 64-way load",
      measured: `p50 ×${median(after).toFixed(2)}`,
      against: "before the load",
      goal: "≤ ×1.10",
      met: median(after) <= 1.1,
    },
  ]
}

/** The most rows that the server answers, against onnxruntime-node alone with batches of the mean size seen. */
async function saturation(): Promise<Row[]> {
  const result: Row[] = []
  for (const [what, layers] of [
    ["MLP 784-1024-1024-10", WIDE_INPUT],
    ["MLP 16-4096-4096-10", NARROW_INPUT],
  ] as const) {
    const model = mlp(layers)
    const server = await serve(model, { cores: "0,1" })
    const load = await loadFrom({
      port: server.port,
      path: "/run",
      bodies: mlpBodies(layers[0] ?? 0),
      connections: 128,
      seconds: 6,
      warmUpSeconds: 2,
    })
    const batch = await meanBatch(server)
    await server.stop()
    const alone = bare(model, layers[0] ?? 0, Math.max(1, Math.round(batch)))
    const ratio = load.perSecond / alone.rowsPerSecond
    result.push({
      what: `${what} at saturation, 1-row JSON, 128 connections`,
      measured: `${load.perSecond.toFixed(0)} rows/s, mean batch ${batch.toFixed(1)}`,
      against: `onnxruntime-node alone, batches of ${Math.round(batch)}: ${alone.rowsPerSecond.toFixed(0)} rows/s: ${ratio.toFixed(2)}`,
      goal: "≥ 0.90",
      met: ratio >= 0.9,
    })
  }
  return result
}

/** 70 % of saturation, Poisson arrivals: the slowest percent against the mean time of a batch. */
async function poisson(): Promise<Row[]> {
  const { server, perSecond, bodies } = await narrow()
  const load = await loadFrom({
    port: server.port,
    path: "/run",
    bodies,
    connections: 512,
    seconds: 10,
    warmUpSeconds: 2,
    ratePerSecond: perSecond * 0.7,
  })
  const batchMs = await meanBatchMs(server)
  await server.stop()
  return [
    {
      what: `70 % of saturation (${(perSecond * 0.7).toFixed(0)}/s, Poisson), MLP 16-4096-4096-10`,
      measured: `p99 ${load.latencyMs.p99.toFixed(2)} ms, p50 ${load.latencyMs.p50.toFixed(2)} ms`,
      against: `mean batch time ${batchMs.toFixed(2)} ms: ×${(load.latencyMs.p99 / batchMs).toFixed(2)}`,
      goal: "≤ ×3",
      met: load.latencyMs.p99 <= 3 * batchMs,
    },
  ]
}

/** Ten times what the server can do, for a minute. */
async function overload(): Promise<Row[]> {
  const { server, perSecond, bodies } = await narrow({ "runners.batching.max_latency_ms": "200" })
  const pid = serverPid(server)
  const startBytes = residentBytes(pid)
  const probes: number[] = []
  let probing = true
  const probe = (async () => {
    while (probing) {
      const startedMs = performance.now()
      const response = await fetch(`http://127.0.0.1:${server.port}/livez`)
      await response.text()
      probes.push(performance.now() - startedMs)
      await sleep(20)
    }
  })()
  const seconds = Number(process.env["BENCH_OVERLOAD_SECONDS"] ?? 60)
  const load = await loadFrom({
    port: server.port,
    path: "/run",
    bodies,
    connections: 1024,
    seconds,
    warmUpSeconds: 2,
    ratePerSecond: perSecond * 10,
  })
  probing = false
  await probe
  const grownMiB = (residentBytes(pid) - startBytes) / 2 ** 20
  await server.stop()
  const good = (load.statuses["200"] ?? 0) / seconds / perSecond
  process.stdout.write(`statuses ${JSON.stringify(load.statuses)}\n`)
  const livez = quantile(probes, 0.99)
  const what = `10× overload for ${seconds} s`
  return [
    {
      what: `${what}: goodput`,
      measured: good.toFixed(2),
      against: `capacity ${perSecond.toFixed(0)}/s`,
      goal: "≥ 0.90",
      met: good >= 0.9,
    },
    {
      what: `${what}: refusals`,
      measured: `p99 ${load.refusedLatencyMs.p99.toFixed(1)} ms`,
      against: `answers p99 ${load.latencyMs.p99.toFixed(1)} ms`,
      goal: "< 20 ms",
      met: load.refusedLatencyMs.p99 < 20,
    },
    {
      what: `${what}: memory`,
      measured: `+${grownMiB.toFixed(0)} MiB`,
      against: `${(startBytes / 2 ** 20).toFixed(0)} MiB`,
      goal: "< +100 MiB",
      met: grownMiB < 100,
    },
    {
      what: `${what}: /livez`,
      measured: `p99 ${livez.toFixed(1)} ms`,
      against: `${probes.length} probes`,
      goal: "< 50 ms",
      met: livez < 50,
    },
  ]
}

/** At 70 % for as long as BENCH_SOAK_MINUTES says: memory and descriptors must not grow. */
async function soak(): Promise<Row[]> {
  const minutes = Number(process.env["BENCH_SOAK_MINUTES"] ?? 0)
  if (minutes === 0) {
    process.stdout.write("skipped: set BENCH_SOAK_MINUTES\n")
    return []
  }
  const server = await serve(iris())
  const pid = serverPid(server)
  const one = { port: server.port, path: "/run", bodies: ["[[5.9,3,5.1,1.8]]"], connections: 64 }
  const capacity = (await loadFrom({ ...one, seconds: 5, warmUpSeconds: 1 })).perSecond
  const at70 = { ...one, ratePerSecond: capacity * 0.7 }
  await loadFrom({ ...at70, seconds: 60 })
  const start = { bytes: residentBytes(pid), descriptors: readdirSync(`/proc/${pid}/fd`).length }
  const load = await loadFrom({ ...at70, seconds: minutes * 60 })
  const end = { bytes: residentBytes(pid), descriptors: readdirSync(`/proc/${pid}/fd`).length }
  await server.stop()
  const growth = end.bytes / start.bytes - 1
  process.stdout.write(`statuses ${JSON.stringify(load.statuses)}\n`)
  return [
    {
      what: `${minutes} min at 70 % (${(capacity * 0.7).toFixed(0)} req/s)`,
      measured: `memory ${(growth * 100).toFixed(1)} %, descriptors ${end.descriptors - start.descriptors}`,
      against: `${(start.bytes / 2 ** 20).toFixed(0)} MiB, ${start.descriptors} after the first minute`,
      goal: "< 5 %, 0",
      met: growth < 0.05 && end.descriptors <= start.descriptors,
    },
  ]
}

interface BenchModel {
  readonly tag: string
  readonly dir: string
  readonly file: string
}

function importModel(file: string, name: string): BenchModel {
  const tag = bentoctl(["models", "import", file, "--name", name, "-o", "tag"], { BENTOML_HOME: home })
    .trim()
    .replace("__tag__:", "")
  const dir = path.join(home, "models", ...tag.split(":"))
  return { tag, dir, file: path.join(dir, "saved_model.onnx") }
}

function iris(): BenchModel {
  return importModel(path.join(root, "examples/iris/iris.onnx"), "iris_clf")
}

function mlp(layers: readonly number[]): BenchModel {
  const file = path.join(scratch(), "mlp.onnx")
  writeMlp(file, layers)
  return importModel(file, "mlp")
}

function mlpBodies(columns: number): string[] {
  const random = mulberry32(1)
  return Array.from({ length: 16 }, () =>
    JSON.stringify([Array.from({ length: columns }, () => Math.round(random() * 255) / 255)]),
  )
}

/** One intra-op thread, as the bare loop has: what differs is then the server and not the number of threads. */
async function serve(
  model: BenchModel,
  options: { cores?: string; settings?: Readonly<Record<string, string>> } = {},
): Promise<Started> {
  const spec = {
    name: "bench",
    version: null,
    service: null,
    srcDir: model.dir,
    models: [{ tag: model.tag, dir: model.dir }],
  }
  const settings = Object.entries({ "runners.intra_op_threads": "1", ...options.settings }).map(
    ([key, value]) => `${key}=${value}`,
  )
  return startServer(serveCommand(spec), {
    env: { BENTOML_CONFIG_OPTIONS: settings.join(" ") },
    ...(options.cores === undefined ? {} : { cores: options.cores }),
  })
}

/** The narrow perceptron on one core, and how many rows a second it answers at most. */
async function narrow(
  settings: Readonly<Record<string, string>> = {},
): Promise<{ server: Started; perSecond: number; bodies: string[] }> {
  const server = await serve(mlp(NARROW_INPUT), { settings })
  const bodies = mlpBodies(NARROW_INPUT[0] ?? 0)
  const { perSecond } = await loadFrom({
    port: server.port,
    path: "/run",
    bodies,
    connections: 128,
    seconds: 5,
    warmUpSeconds: 2,
  })
  return { server, perSecond, bodies }
}

function bare(model: BenchModel, columns: number, rowsPerBatch: number): BareResult {
  const options = JSON.stringify({ model: model.file, input: "x", columns, rows: rowsPerBatch, seconds: 4 })
  const output = execFileSync(
    "taskset",
    ["-c", "0", process.execPath, path.join(root, "bench/bare.ts"), options],
    {
      encoding: "utf8",
      env: { ...process.env, ORT_DISABLE_TELEMETRY: "1" },
    },
  )
  return JSON.parse(output) as BareResult
}

async function metric(server: Started, name: string): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${server.port}/metrics`)).text()
  const values = [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? ([0-9.e+-]+)$`, "gm"))].map((match) =>
    Number(match[1]),
  )
  if (values.length === 0) throw new Error(`no metric ${name}`)
  return values.reduce((sum, value) => sum + value, 0)
}

async function meanBatch(server: Started): Promise<number> {
  return (
    (await metric(server, "bentoml_runner_adaptive_batch_size_sum")) /
    (await metric(server, "bentoml_runner_adaptive_batch_size_count"))
  )
}

async function meanBatchMs(server: Started): Promise<number> {
  return (
    (1000 * (await metric(server, "bentoml_runner_inference_seconds_sum"))) /
    (await metric(server, "bentoml_runner_inference_seconds_count"))
  )
}

/** taskset replaces itself by the program it starts, so the child is the server. */
function serverPid(server: Started): number {
  const pid = server.process.pid
  if (pid === undefined) throw new Error("no server")
  readFileSync(`/proc/${pid}/status`)
  return pid
}
