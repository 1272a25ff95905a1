/**
 * What a second HTTP thread (`api_server.workers: 2`) does on two cores: for rows of 784 floats as JSON, whose parsing is most of
 * a request, and for rows of 4, where the way through another thread is.
 *
 * The load generator has no core of its own here: it shares the two with the server, and takes the more of them the faster the
 * server answers. On a machine with more cores the ratio can only be better.
 */
import path from "node:path"
import {
  type BenchModel,
  type Row,
  type Started,
  RUNS,
  cpuUs,
  importModel,
  iris,
  loadFrom,
  median,
  pidOf,
  report,
  residentBytes,
  scratch,
  serveModel,
} from "./harness.ts"
import { WIDE_INPUT, rowBodies, writeMlp } from "./mlp.ts"

const CORES = "0,1"

interface Case {
  readonly what: string
  readonly model: BenchModel
  readonly bodies: readonly string[]
}

const mlpFile = path.join(scratch(), "mlp.onnx")
writeMlp(mlpFile, WIDE_INPUT)
const cases: Case[] = [
  { what: "784 floats, MLP 784-1024-1024-10", model: importModel(mlpFile, "mlp"), bodies: rowBodies(784) },
  {
    what: "4 floats, iris",
    model: iris(),
    bodies: rowBodies(4),
  },
]
const rows: Row[] = []
for (const one of cases) rows.push(...(await compare(one)))
report("A second HTTP thread, on two cores that the load generator shares", rows)

/** Both servers run all the time, and are loaded in turn, so that both see the same machine. */
async function compare({ what, model, bodies }: Case): Promise<Row[]> {
  const [one, two] = [await serve(model, 1), await serve(model, 2)]
  const idle = [one, two].map((server) => residentBytes(pidOf(server)) / 2 ** 20)
  const perSecond = { one: [] as number[], two: [] as number[], ratio: [] as number[] }
  const costUs = { one: [] as number[], two: [] as number[] }
  const alone = { one: [] as number[], two: [] as number[] }
  for (let round = 0; round < RUNS; round++) {
    const [a, b] = [await throughput(one, bodies), await throughput(two, bodies)]
    perSecond.one.push(a.perSecond)
    perSecond.two.push(b.perSecond)
    perSecond.ratio.push(b.perSecond / a.perSecond)
    costUs.one.push(a.cpuUs)
    costUs.two.push(b.cpuUs)
    alone.one.push(await lone(one, bodies))
    alone.two.push(await lone(two, bodies))
  }
  const memory = [one, two].map((server) => residentBytes(pidOf(server)) / 2 ** 20)
  await Promise.all([one.stop(), two.stop()])
  const ratio = median(perSecond.ratio)
  const extraMs = median(alone.two) - median(alone.one)
  const [ofOne = 0, ofTwo = 0] = memory
  const [idleOne = 0, idleTwo = 0] = idle
  const isWide = what.startsWith("784")
  return [
    {
      what: `${what}: 64 connections`,
      measured: `2 threads: ${median(perSecond.two).toFixed(0)} req/s`,
      against: `1 thread: ${median(perSecond.one).toFixed(0)} req/s: ×${ratio.toFixed(2)} (×${Math.min(...perSecond.ratio).toFixed(2)} to ×${Math.max(...perSecond.ratio).toFixed(2)})`,
      ...(isWide ? { goal: "> ×1", met: ratio > 1 } : {}),
    },
    {
      what: `${what}: CPU of the server`,
      measured: `2 threads: ${median(costUs.two).toFixed(0)} µs a request`,
      against: `1 thread: ${median(costUs.one).toFixed(0)} µs a request`,
    },
    {
      what: `${what}: one at a time`,
      measured: `2 threads: p50 ${median(alone.two).toFixed(3)} ms`,
      against: `1 thread: p50 ${median(alone.one).toFixed(3)} ms: +${extraMs.toFixed(3)} ms`,
    },
    {
      what: `${what}: memory when ready, after the load`,
      measured: `2 threads: ${idleTwo.toFixed(0)}, ${ofTwo.toFixed(0)} MiB`,
      against: `1 thread: ${idleOne.toFixed(0)}, ${ofOne.toFixed(0)} MiB`,
    },
  ]
}

async function throughput(
  server: Started,
  bodies: readonly string[],
): Promise<{ perSecond: number; cpuUs: number }> {
  const load = { port: server.port, path: "/run", bodies, connections: 64 }
  await loadFrom({ ...load, seconds: 1 }, CORES)
  const startUs = cpuUs(pidOf(server))
  const { perSecond, requests, statuses } = await loadFrom({ ...load, seconds: 4 }, CORES)
  const usedUs = (cpuUs(pidOf(server)) - startUs) / requests
  if (Object.keys(statuses).some((status) => status !== "200")) throw new Error(JSON.stringify(statuses))
  return { perSecond, cpuUs: usedUs }
}

async function lone(server: Started, bodies: readonly string[]): Promise<number> {
  const { latencyMs } = await loadFrom(
    { port: server.port, path: "/run", bodies, connections: 1, seconds: 1, warmUpSeconds: 0.3 },
    CORES,
  )
  return latencyMs.p50
}

function serve(model: BenchModel, workers: number): Promise<Started> {
  return serveModel(model, {
    cores: CORES,
    settings: {
      "api_server.workers": workers,
      "runners.intra_op_threads": 1,
      "api_server.logging.access.enabled": false,
    },
  })
}
