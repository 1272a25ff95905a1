/**
 * How the server behaves when it matters: alone, after a burst, with bad rows, at saturation, near it and far beyond it. Each row
 * is measured against something else in the same run. `BENCH_SOAK_MINUTES=30` adds the soak; `node bench/serving.ts overload`
 * runs only some of the cases.
 *
 * Latency is judged in an open loop (requests count from when they were due) from another core than the server's.
 */
import { execFileSync } from "node:child_process"
import { readdirSync } from "node:fs"
import path from "node:path"
import type { BareResult } from "./bare.ts"
import {
  type BenchModel,
  type Row,
  type Started,
  RUNS,
  SERVER_CORE,
  importModel,
  iris,
  irisBodies,
  loadFrom,
  median,
  pidOf,
  report,
  residentBytes,
  root,
  scratch,
  serveModel,
  sleep,
  startServer,
} from "./harness.ts"
import { type LoadOptions, type LoadResult, quantile } from "./load.ts"
import { DEEP, NARROW_INPUT, WIDE_INPUT, rowBodies, writeMlp } from "./mlp.ts"

const rows: Row[] = []
const asked = process.argv.slice(2)
const cases = { lone, poisoned, saturation, poisson, overload, soak }
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
  for (let run = 0; run < RUNS; run++) {
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

/** Twelve clients at once, two of them with a row that makes any batch with it fail. */
async function poisoned(): Promise<Row[]> {
  const file = path.join(root, "test/fixtures/models/fail_on_negative.onnx")
  const server = await serve(importModel(file, "picky"))
  const rounds = 100 * RUNS
  let right = 0
  for (let round = 0; round < rounds; round++) {
    const values = Array.from({ length: 12 }, (_, index) =>
      index === round % 11 || index === 11 ? -1 : index % 10,
    )
    const answers = await Promise.all(
      values.map(async (value) => {
        const response = await fetch(`http://127.0.0.1:${server.port}/run`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify([value]),
        })
        const text = await response.text()
        if (value < 0) return response.status === 500
        return response.status === 200 && text === JSON.stringify({ Y: [[value, value ** 2]] })
      }),
    )
    if (answers.every((right) => right)) right++
  }
  await server.stop()
  return [
    {
      what: "2 rows of 12 poisoned, 12 clients",
      measured: `10 right answers and 2 errors in ${right} of ${rounds} rounds`,
      against: "each row alone",
      goal: "all",
      met: right === rounds,
    },
  ]
}

/**
 * The most rows that the server answers, against onnxruntime-node alone with batches of the mean size seen. There is no binary
 * body: where a row is 784 numbers, JSON on the HTTP thread decides and not the model, whose runner is measured by batcher.ts.
 */
async function saturation(): Promise<Row[]> {
  const result: Row[] = []
  for (const { what, layers, rowsEach, goal } of [
    { what: "MLP 16-4096-4096-10, 1 row a request", layers: NARROW_INPUT, rowsEach: 1, goal: true },
    { what: "MLP 784-1024-1024-10, 1 row a request", layers: WIDE_INPUT, rowsEach: 1, goal: false },
    { what: "MLP 784-1024-1024-10, 16 rows a request", layers: WIDE_INPUT, rowsEach: 16, goal: false },
  ]) {
    const columns = layers[0] ?? 0
    const model = mlp(layers)
    const server = await serve(model, { cores: "0,1" })
    const bodies = rowBodies(columns, rowsEach)
    const ratios: number[] = []
    const rates: number[] = []
    const batches: number[] = []
    // Where the rows go that are missing: the runner waits, or its batches take longer beside the rest of the server.
    const busy: number[] = []
    const slower: number[] = []
    for (let run = 0; run < RUNS; run++) {
      const seen = await during(server, {
        path: "/run",
        bodies,
        connections: 256 / rowsEach,
        seconds: 4,
        warmUpSeconds: 1,
      })
      const perSecond = ((seen.load.statuses["200"] ?? 0) * rowsEach) / 4
      const alone = bare(model, columns, Math.max(1, Math.round(seen.rowsPerBatch)))
      ratios.push(perSecond / alone.rowsPerSecond)
      rates.push(perSecond)
      batches.push(seen.rowsPerBatch)
      busy.push((perSecond / seen.rowsPerBatch) * (seen.msPerBatch / 1000))
      slower.push(seen.msPerBatch / alone.callMs.p50)
    }
    await server.stop()
    const ratio = median(ratios)
    result.push({
      what: `${what}, at saturation, JSON over HTTP`,
      measured:
        `${median(rates).toFixed(0)} rows/s, mean batch ${median(batches).toFixed(1)}; ` +
        `inferring ${(100 * median(busy)).toFixed(0)} % of the time, a batch ×${median(slower).toFixed(2)} of its time alone`,
      against: `onnxruntime-node alone at that batch size: ${ratio.toFixed(2)}`,
      ...(goal ? { goal: "≥ 0.90", met: ratio >= 0.9 } : {}),
    })
  }
  return result
}

/** 70 % of saturation, Poisson arrivals: the slowest percent against the mean time of a batch. */
async function poisson(): Promise<Row[]> {
  const result: Row[] = []
  for (const { what, model, bodies, goal } of [
    { what: "MLP 16-4096-4096-10", model: mlp(NARROW_INPUT), bodies: rowBodies(16), goal: true },
    { what: "MLP 784-1024-1024-10", model: mlp(WIDE_INPUT), bodies: rowBodies(784), goal: false },
    { what: "iris", model: iris(), bodies: irisBodies(), goal: false },
  ]) {
    const server = await serve(model)
    const capacity = await capacityOf(server, bodies)
    const p99: number[] = []
    const batchMs: number[] = []
    for (let run = 0; run < RUNS; run++) {
      const { load, msPerBatch } = await during(server, {
        path: "/run",
        bodies,
        connections: 512,
        seconds: 8,
        warmUpSeconds: 1,
        ratePerSecond: capacity * 0.7,
        seed: run + 1,
      })
      process.stdout.write(`${what}: ${JSON.stringify({ ...load, msPerBatch })}\n`)
      p99.push(load.latencyMs.p99)
      batchMs.push(msPerBatch)
    }
    await server.stop()
    const ratio = median(p99.map((ms, run) => ms / (batchMs[run] ?? 0)))
    result.push({
      what: `70 % of saturation (${(capacity * 0.7).toFixed(0)}/s, Poisson), ${what}`,
      measured: `p99 ${median(p99).toFixed(2)} ms`,
      against: `mean batch time ${median(batchMs).toFixed(2)} ms: ×${ratio.toFixed(2)}`,
      ...(goal ? { goal: "≤ ×3", met: ratio <= 3 } : {}),
    })
  }
  return result
}

/**
 * Ten times what the server can do, for a minute. Refusals are made on the same core as the answers: at ten times the capacity
 * they take 10 · capacity · (CPU time of a refusal) of it, so the model must be one that decides what the capacity is.
 */
async function overload(): Promise<Row[]> {
  const seconds = Number(process.env["BENCH_OVERLOAD_SECONDS"] ?? 60)
  const server = await serve(mlp(DEEP), { settings: { "runners.batching.max_latency_ms": 2000 } })
  const pid = pidOf(server)
  const bodies = rowBodies(DEEP[0] ?? 0)
  const good: number[] = []
  const factors: number[] = []
  const refusedP99: number[] = []
  const livezP99: number[] = []
  const grownMiB: number[] = []
  const capacities: number[] = []
  for (let run = 0; run < RUNS; run++) {
    // No more connections than are answered in time: what is refused takes from what is answered.
    const before = await capacityOf(server, bodies, 64, 12)
    const startBytes = residentBytes(pid)
    const probes = probe(server, "/livez")
    const load = await loadFrom({
      port: server.port,
      path: "/run",
      bodies,
      connections: 1024,
      seconds,
      warmUpSeconds: 2,
      ratePerSecond: before * 10,
      seed: run + 1,
    })
    livezP99.push(quantile(await probes.stop(), 0.99))
    grownMiB.push((residentBytes(pid) - startBytes) / 2 ** 20)
    // On a machine that others use, what it can do changes: the better of before and after counts.
    const capacity = Math.max(before, await capacityOf(server, bodies, 64, 12))
    capacities.push(capacity)
    factors.push(load.perSecond / capacity)
    good.push((load.statuses["200"] ?? 0) / seconds / capacity)
    refusedP99.push(load.refusedLatencyMs.p99)
    process.stdout.write(
      `capacity ${before.toFixed(0)}/s before, at best ${capacity.toFixed(0)}/s: ${JSON.stringify(load)}\n`,
    )
  }
  await server.stop()
  const what = `10× overload for ${seconds} s`
  return [
    {
      what: `${what}: goodput`,
      measured: median(good).toFixed(2),
      against: `capacity ${median(capacities).toFixed(0)}/s, asked for ${median(factors).toFixed(1)}×`,
      goal: "≥ 0.90 at 10×",
      met: median(good) >= 0.9 && median(factors) >= 9,
    },
    {
      what: `${what}: refusals`,
      measured: `p99 ${median(refusedP99).toFixed(1)} ms`,
      against: "from when they were due",
      goal: "< 20 ms",
      met: median(refusedP99) < 20,
    },
    {
      what: `${what}: memory`,
      measured: `+${Math.max(...grownMiB).toFixed(0)} MiB`,
      against: "before the overload",
      goal: "< +100 MiB",
      met: Math.max(...grownMiB) < 100,
    },
    {
      what: `${what}: /livez`,
      measured: `p99 ${median(livezP99).toFixed(1)} ms`,
      against: "a probe each 20 ms",
      goal: "< 50 ms",
      met: median(livezP99) < 50,
    },
  ]
}

/**
 * At 70 % for as long as BENCH_SOAK_MINUTES says: memory and descriptors must not grow after the first minute. What 70 % is, is
 * measured anew each minute, as nobody has a machine to himself for so long.
 */
async function soak(): Promise<Row[]> {
  const minutes = Number(process.env["BENCH_SOAK_MINUTES"] ?? 0)
  if (minutes === 0) {
    process.stdout.write("skipped: set BENCH_SOAK_MINUTES\n")
    return []
  }
  const server = await serve(iris())
  const pid = pidOf(server)
  const bodies = irisBodies()
  const rates: number[] = []
  let failed = 0
  const minute = async (seed: number): Promise<{ bytes: number; descriptors: number }> => {
    const ratePerSecond = 0.7 * (await capacityOf(server, bodies, 64, 2))
    const load = {
      port: server.port,
      path: "/run",
      bodies,
      connections: 64,
      seconds: 56,
      ratePerSecond,
      seed,
    }
    const { requests, statuses, unanswered } = await loadFrom(load)
    rates.push(ratePerSecond)
    failed += requests - (statuses["200"] ?? 0)
    const bytes = residentBytes(pid)
    const descriptors = readdirSync(`/proc/${pid}/fd`).length
    process.stdout.write(
      `${seed} min: ${(bytes / 2 ** 20).toFixed(1)} MiB, ${descriptors} descriptors, ${ratePerSecond.toFixed(0)} req/s, ${JSON.stringify({ ...statuses, unanswered })}\n`,
    )
    return { bytes, descriptors }
  }
  const start = await minute(0)
  let end = start
  for (let passed = 1; passed <= minutes; passed++) end = await minute(passed)
  await server.stop()
  const growth = end.bytes / start.bytes - 1
  return [
    {
      what: `${minutes} min at 70 % (about ${median(rates).toFixed(0)} req/s), iris`,
      measured: `memory ${(growth * 100).toFixed(1)} %, descriptors ${end.descriptors - start.descriptors}, ${failed} failed`,
      against: `${(start.bytes / 2 ** 20).toFixed(0)} MiB, ${start.descriptors} after the first minute`,
      goal: "< 5 %, 0",
      met: growth < 0.05 && end.descriptors <= start.descriptors && failed === 0,
    },
  ]
}

function mlp(layers: readonly number[]): BenchModel {
  const file = path.join(scratch(), "mlp.onnx")
  writeMlp(file, layers)
  return importModel(file, "mlp")
}

/** One intra-op thread, as the bare loop has: what differs is then the server and not the number of threads. */
function serve(
  model: BenchModel,
  options: { cores?: string; settings?: Readonly<Record<string, number>> } = {},
): Promise<Started> {
  return serveModel(model, { ...options, settings: { "runners.intra_op_threads": 1, ...options.settings } })
}

/** How many requests a second a server answers at most. */
async function capacityOf(
  { port }: Started,
  bodies: readonly string[],
  connections = 128,
  seconds = 5,
): Promise<number> {
  const load = { port, path: "/run", bodies, connections, seconds, warmUpSeconds: 2 }
  return ((await loadFrom(load)).statuses["200"] ?? 0) / seconds
}

/** A load, and the mean batch of its time by the server's own metrics. */
async function during(
  server: Started,
  options: Omit<LoadOptions, "port">,
): Promise<{ load: LoadResult; rowsPerBatch: number; msPerBatch: number }> {
  const before = await batchesOf(server)
  const load = await loadFrom({ ...options, port: server.port })
  const after = await batchesOf(server)
  const batches = after.batches - before.batches
  if (batches === 0) throw new Error("the metrics tell of no batch")
  return {
    load,
    rowsPerBatch: (after.rows - before.rows) / batches,
    msPerBatch: (1000 * (after.seconds - before.seconds)) / batches,
  }
}

async function batchesOf({ port }: Started): Promise<{ batches: number; rows: number; seconds: number }> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
  const sum = (name: string): number => {
    const found = [...text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? ([0-9.e+-]+)$`, "gm"))]
    return found.reduce((total, [, value]) => total + Number(value), 0)
  }
  return {
    batches: sum("bentoml_runner_inference_seconds_count"),
    rows: sum("bentoml_runner_adaptive_batch_size_sum"),
    seconds: sum("bentoml_runner_inference_seconds_sum"),
  }
}

function bare(model: BenchModel, columns: number, rowsPerBatch: number): BareResult {
  const options = JSON.stringify({ model: model.file, input: "x", columns, rows: rowsPerBatch, seconds: 3 })
  const output = execFileSync(
    "taskset",
    ["-c", String(SERVER_CORE), process.execPath, path.join(root, "bench/bare.ts"), options],
    {
      encoding: "utf8",
      env: { ...process.env, ORT_DISABLE_TELEMETRY: "1" },
    },
  )
  return JSON.parse(output) as BareResult
}

/** Asks a path every 20 ms until stopped; how long each answer took, in milliseconds. */
function probe({ port }: Started, route: string): { stop: () => Promise<number[]> } {
  const tookMs: number[] = []
  let probing = true
  const done = (async () => {
    while (probing) {
      const startedMs = performance.now()
      const response = await fetch(`http://127.0.0.1:${port}${route}`)
      await response.text()
      tookMs.push(performance.now() - startedMs)
      await sleep(20)
    }
  })()
  return {
    stop: async () => {
      probing = false
      await done
      return tookMs
    },
  }
}
