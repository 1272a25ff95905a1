/**
 * Iris rows as JSON over HTTP, 64 connections, the server (HTTP thread and inference thread) on one core, the load on the
 * other; against a node:http server on the same core that parses and answers the same bodies. Medians of 5 runs in turn.
 * Goal: at least 0.8 of the echo's requests per second.
 *
 * The load is wrk's where it is installed (Debian: `apt-get install wrk`). Our own generator costs as much CPU as the servers
 * do, so that with it the load's core may be the one that is full: then the CPU time for each request tells more.
 */
import path from "node:path"
import {
  type Started,
  RUNS,
  closedLoop,
  cpuUs,
  generator,
  iris,
  irisBodies,
  median,
  pidOf,
  report,
  root,
  serveCommand,
  startEcho,
  startServer,
} from "./harness.ts"

const model = iris()
const bodies = irisBodies()

const cases = [
  { what: "service.ts, ndarray in, json out", path: "/classify", service: "service.ts:svc" },
  { what: "no code (POST /run)", path: "/run", service: null },
]
const seconds = Number(process.env["BENCH_SECONDS"] ?? 4)

interface Measured {
  readonly perSecond: number
  /** CPU time of the server for one request, in microseconds: what it costs, whoever else slows the machine down. */
  readonly cpuUs: number
  /** Share of its core that the server used; far below 1 the load was the bottleneck, and `perSecond` is the load's. */
  readonly busy: number
}

// All of them live at once, as an idle one costs nothing, and are measured in turn: a machine that slows down slows all.
const servers = [
  { what: "echo", path: "/", server: await startEcho() },
  ...(await Promise.all(
    cases.map(async ({ what, path: route, service }) => {
      const srcDir = path.join(root, "examples/iris")
      const spec = { name: "iris_classifier", version: null, service, srcDir, models: [model] }
      return { what, path: route, server: await startServer(serveCommand(spec)) }
    }),
  )),
]
const all = new Map<string, Measured[]>(servers.map(({ what }) => [what, []]))
for (const { path: route, server } of servers) await measure(server, route, 3)
for (let run = 0; run < RUNS; run++) {
  for (const { what, path: route, server } of servers) {
    const measured = await measure(server, route, seconds)
    all.get(what)?.push(measured)
    const { perSecond, cpuUs, busy } = measured
    process.stdout.write(
      `${what}: ${perSecond.toFixed(0)} req/s, ${cpuUs.toFixed(1)} µs of CPU each, core ${(busy * 100).toFixed(0)} % busy\n`,
    )
  }
}
for (const { server } of servers) await server.stop()

const echo = all.get("echo") ?? []
const middle = (what: string, key: keyof Measured): number =>
  median((all.get(what) ?? []).map((it) => it[key]))
report(
  `Iris over HTTP, one core, 64 connections, load by ${generator}`,
  cases.map(({ what }) => {
    const ratios = (all.get(what) ?? []).map(({ perSecond }, run) => perSecond / (echo[run]?.perSecond ?? 0))
    const ratio = median(ratios)
    return {
      what,
      measured: `${middle(what, "perSecond").toFixed(0)} req/s, ${middle(what, "cpuUs").toFixed(1)} µs CPU`,
      against: `node:http echo ${middle("echo", "perSecond").toFixed(0)} req/s, ${middle("echo", "cpuUs").toFixed(1)} µs CPU: ${ratio.toFixed(2)}`,
      goal: "≥ 0.80",
      met: ratio >= 0.8,
    }
  }),
)

async function measure(server: Started, route: string, length: number): Promise<Measured> {
  const { port } = server
  const beforeUs = cpuUs(pidOf(server))
  const options = { port, path: route, bodies, connections: 64, seconds: length }
  const { requests, perSecond } = await closedLoop(options)
  const usedUs = cpuUs(pidOf(server)) - beforeUs
  return { perSecond, cpuUs: usedUs / requests, busy: usedUs / 1e6 / (requests / perSecond) }
}
