/**
 * What it costs a request to be seen: iris rows over HTTP as in http.ts, the server on one core, with and without metrics,
 * `Server-Timing` and the access log. The same server each time but for its configuration; medians of 5 runs in turn. Compared
 * is the server's CPU time for a request, which others on the same machine disturb less than its rate.
 * Goal: metrics and `Server-Timing`, which are on by default, cost less than a tenth together.
 */
import { readFileSync } from "node:fs"
import path from "node:path"
import { bentoctl, loadFrom, median, report, root, scratch, serveCommand, startServer } from "./harness.ts"

const home = scratch()
const [name = "", version = ""] = bentoctl(
  ["models", "import", path.join(root, "examples/iris/iris.onnx"), "--name", "iris_clf", "-o", "tag"],
  { BENTOML_HOME: home },
)
  .trim()
  .replace("__tag__:", "")
  .split(":")
const golden = JSON.parse(readFileSync(path.join(root, "examples/iris/golden.json"), "utf8")) as {
  inputs: number[][]
}
const bodies = golden.inputs.map((row) => JSON.stringify([row]))
const models = [{ tag: `${name}:${version}`, dir: path.join(home, "models", name, version) }]
const spec = { name: "iris", version: null, service: null, srcDir: root, models }

interface Sight {
  readonly metrics?: boolean
  readonly timing?: boolean
  readonly log?: boolean
  readonly share?: number
}
const CASES: { readonly what: string; readonly sight: Sight; readonly goal: number }[] = [
  { what: "metrics", sight: { metrics: true }, goal: 1.05 },
  { what: "Server-Timing", sight: { timing: true }, goal: 1.07 },
  { what: "both (default)", sight: { metrics: true, timing: true }, goal: 1.1 },
  { what: "access log, 1 of 100", sight: { log: true, share: 0.01 }, goal: 1.05 },
  { what: "access log", sight: { log: true }, goal: 1.4 },
  { what: "everything", sight: { metrics: true, timing: true, log: true }, goal: 1.5 },
]

const runs = Number(process.env["BENCH_RUNS"] ?? 5)
const seconds = Number(process.env["BENCH_SECONDS"] ?? 4)
const costsUs = new Map<string, number[]>()
for (let run = 0; run < runs; run++) {
  await measure("nothing", {})
  for (const { what, sight } of CASES) await measure(what, sight)
}
const blindUs = median(costsUs.get("nothing") ?? [])
report(
  "What it costs to be seen: CPU time of a request, one core, 64 connections",
  CASES.map(({ what, goal }) => {
    const us = median(costsUs.get(what) ?? [])
    return {
      what,
      measured: `${us.toFixed(1)} µs (${(us - blindUs).toFixed(1)} more)`,
      against: `without any ${blindUs.toFixed(1)} µs: ${(us / blindUs).toFixed(2)}`,
      goal: `≤ ${goal.toFixed(2)}`,
      met: us / blindUs <= goal,
    }
  }),
)

async function measure(
  what: string,
  { metrics = false, timing = false, log = false, share = 1 }: Sight,
): Promise<void> {
  const options = {
    "metrics.enabled": metrics,
    "http.response.server_timing": timing,
    "logging.access.enabled": log,
    "logging.access.sample_rate": share,
  }
  const server = await startServer(serveCommand(spec), {
    env: {
      BENTOML_CONFIG_OPTIONS: Object.entries(options)
        .map(([key, value]) => `api_server.${key}=${value}`)
        .join(" "),
    },
  })
  const load = { port: server.port, path: "/run", bodies, connections: 64 }
  await loadFrom({ ...load, seconds: 1.5, warmUpSeconds: 0 })
  const beforeUs = cpuUs(server.process.pid)
  const result = await loadFrom({ ...load, seconds, warmUpSeconds: 0 })
  const tookUs = cpuUs(server.process.pid) - beforeUs
  await server.stop()
  const failed = Object.entries(result.statuses).filter(([status]) => status !== "200")
  if (failed.length > 0)
    throw new Error(`${what}: answers other than 200: ${JSON.stringify(result.statuses)}`)
  const requests = Object.values(result.statuses).reduce((sum, count) => sum + count, 0)
  costsUs.set(what, [...(costsUs.get(what) ?? []), tookUs / requests])
  process.stdout.write(`${what}: ${(tookUs / requests).toFixed(1)} µs\n`)
}

/** CPU time of a process so far, all threads, in the kernel too. */
function cpuUs(pid: number | undefined): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10_000
}
