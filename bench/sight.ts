/**
 * What it costs a request to be seen: iris rows over HTTP as in http.ts, the server on one core, with and without metrics,
 * `Server-Timing` and the access log. The same server each time but for its configuration; medians of 5 runs in turn. Compared
 * is the server's CPU time for a request, which others on the same machine disturb less than its rate.
 * Goal: metrics and `Server-Timing`, which are on by default, cost less than a tenth together.
 */
import { RUNS, cpuUs, iris, irisBodies, loadFrom, median, pidOf, report, serveModel } from "./harness.ts"

const model = iris()
const bodies = irisBodies()

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

const seconds = Number(process.env["BENCH_SECONDS"] ?? 4)
const costsUs = new Map<string, number[]>()
for (let run = 0; run < RUNS; run++) {
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
  const server = await serveModel(model, {
    settings: {
      "api_server.metrics.enabled": metrics,
      "api_server.http.response.server_timing": timing,
      "api_server.logging.access.enabled": log,
      "api_server.logging.access.sample_rate": share,
    },
  })
  const load = { port: server.port, path: "/run", bodies, connections: 64 }
  await loadFrom({ ...load, seconds: 1.5, warmUpSeconds: 0 })
  const beforeUs = cpuUs(pidOf(server))
  const result = await loadFrom({ ...load, seconds, warmUpSeconds: 0 })
  const tookUs = cpuUs(pidOf(server)) - beforeUs
  await server.stop()
  const failed = Object.entries(result.statuses).filter(([status]) => status !== "200")
  if (failed.length > 0)
    throw new Error(`${what}: answers other than 200: ${JSON.stringify(result.statuses)}`)
  const requests = Object.values(result.statuses).reduce((sum, count) => sum + count, 0)
  costsUs.set(what, [...(costsUs.get(what) ?? []), tookUs / requests])
  process.stdout.write(`${what}: ${(tookUs / requests).toFixed(1)} µs\n`)
}
