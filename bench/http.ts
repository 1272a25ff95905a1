/**
 * Iris rows as JSON over HTTP, 64 connections, the server (HTTP thread and inference thread) on one core, the load on the
 * other; against a node:http server on the same core that parses and answers the same bodies. Medians of 5 runs in turn.
 * Goal: at least 0.8 of the echo's requests per second.
 */
import { readFileSync } from "node:fs"
import path from "node:path"
import {
  bentoctl,
  loadFrom,
  median,
  report,
  root,
  scratch,
  serveCommand,
  startEcho,
  startServer,
} from "./harness.ts"

const home = scratch()
const tag = bentoctl(
  ["models", "import", path.join(root, "examples/iris/iris.onnx"), "--name", "iris_clf", "-o", "tag"],
  {
    BENTOML_HOME: home,
  },
)
  .trim()
  .replace("__tag__:", "")
const [name = "", version = ""] = tag.split(":")
const golden = JSON.parse(readFileSync(path.join(root, "examples/iris/golden.json"), "utf8")) as {
  inputs: number[][]
}
const bodies = golden.inputs.map((row) => JSON.stringify([row]))
const models = [{ tag, dir: path.join(home, "models", name, version) }]

const cases = [
  { what: "service.ts, ndarray in, json out", path: "/classify", service: "service.ts:svc" },
  { what: "no code (POST /run)", path: "/run", service: null },
]
const runs = Number(process.env["BENCH_RUNS"] ?? 5)
const seconds = Number(process.env["BENCH_SECONDS"] ?? 4)
const rates = new Map<string, number[]>()
for (let run = 0; run < runs; run++) {
  await measure("echo", "/", await startEcho())
  for (const { what, path: route, service } of cases) {
    const spec = {
      name: "iris_classifier",
      version: null,
      service,
      srcDir: path.join(root, "examples/iris"),
      models,
    }
    await measure(what, route, await startServer(serveCommand(spec)))
  }
}
const echo = median(rates.get("echo") ?? [])
report(
  "Iris over HTTP, one core, 64 connections",
  cases.map(({ what }) => {
    const rate = median(rates.get(what) ?? [])
    return {
      what,
      measured: `${rate.toFixed(0)} req/s`,
      against: `node:http echo ${echo.toFixed(0)} req/s: ${(rate / echo).toFixed(2)}`,
      goal: "≥ 0.80",
      met: rate / echo >= 0.8,
    }
  }),
)

async function measure(
  what: string,
  route: string,
  server: Awaited<ReturnType<typeof startServer>>,
): Promise<void> {
  const result = await loadFrom({
    port: server.port,
    path: route,
    bodies,
    connections: 64,
    seconds,
    warmUpSeconds: 1.5,
  })
  await server.stop()
  const failed = Object.entries(result.statuses).filter(([status]) => status !== "200")
  if (failed.length > 0)
    throw new Error(`${what}: answers other than 200: ${JSON.stringify(result.statuses)}`)
  rates.set(what, [...(rates.get(what) ?? []), result.perSecond])
  process.stdout.write(
    `${what}: ${result.perSecond.toFixed(0)} req/s, p50 ${result.latencyMs.p50.toFixed(2)} ms, p99 ${result.latencyMs.p99.toFixed(2)} ms\n`,
  )
}
