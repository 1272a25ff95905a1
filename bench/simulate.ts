/**
 * Compares batching policies in simulated time, and writes what comes out into docs/batching.md (its tables) and
 * docs/batching.svg. Nothing here is random: the same numbers come out each time. `--check` writes nothing and fails
 * when the page holds others.
 */
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  DEADLINE_MS,
  POLICIES,
  Simulation,
  type SimulatedJob,
  SimulatedWorker,
  randomFrom,
} from "./policies.ts"

const SEED = 20_260_101
const SECONDS = 10
/** Arrivals of this first part are not counted: policies that learn may do so. */
const WARM_SECONDS = 3
const root = path.resolve(import.meta.dirname, "..")

interface Arrival {
  readonly atMs: number
  readonly rows: number
}

interface Result {
  readonly policy: string
  readonly load: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** Rows answered within the deadline, per second. */
  readonly goodput: number
  readonly meanBatch: number
  /** Share of the jobs that were refused, or answered too late. */
  readonly failed: number
  /** How long those refused waited for it. */
  readonly refusedAfterMs: number
}

/** Nine jobs of ten have one row, the tenth 2 to 20: two rows on average. */
function rowsOfJob(random: () => number): number {
  return random() < 0.9 ? 1 : 2 + Math.floor(random() * 19)
}

/** Independent clients: exponential gaps. `rateAt` gives rows per second at a time. */
function arrivals(seconds: number, seed: number, rateAt: (atMs: number) => number): Arrival[] {
  const random = randomFrom(seed)
  const all: Arrival[] = []
  for (let atMs = 0; ;) {
    // Two rows a job.
    atMs += (-Math.log(1 - random()) * 2000) / rateAt(atMs)
    if (atMs >= seconds * 1000) return all
    all.push({ atMs, rows: rowsOfJob(random) })
  }
}

async function simulate(
  policy: string,
  all: readonly Arrival[],
  untilMs: number,
): Promise<{ jobs: SimulatedJob[]; worker: SimulatedWorker }> {
  const simulation = new Simulation()
  const worker = new SimulatedWorker(simulation, SEED)
  const target = POLICIES[policy]?.(simulation, worker)
  if (target === undefined) throw new Error(`no policy ${policy}`)
  const jobs: SimulatedJob[] = []
  for (const { atMs, rows } of all) {
    simulation.setTimer(() => {
      const job = { rows, arrivedMs: atMs, answeredMs: null, refusedMs: null }
      jobs.push(job)
      target.arrive(job)
    }, atMs)
  }
  await simulation.runUntil(untilMs)
  return { jobs, worker }
}

async function measure(policy: string, load: number, rateAt: (atMs: number) => number): Promise<Result> {
  const seconds = WARM_SECONDS + SECONDS
  const { jobs, worker } = await simulate(
    policy,
    arrivals(seconds, SEED + load, rateAt),
    seconds * 1000 + 5000,
  )
  const counted = jobs.filter((job) => job.arrivedMs >= WARM_SECONDS * 1000)
  const latencies = counted
    .map((job) => (job.answeredMs === null ? Number.POSITIVE_INFINITY : job.answeredMs - job.arrivedMs))
    .filter((_, index) => counted[index]?.refusedMs === null)
    .toSorted((a, b) => a - b)
  const good = counted.filter(
    (job) => job.answeredMs !== null && job.answeredMs - job.arrivedMs <= DEADLINE_MS,
  )
  return {
    policy,
    load,
    p50Ms: quantile(latencies, 0.5),
    p99Ms: quantile(latencies, 0.99),
    goodput: good.reduce((sum, job) => sum + job.rows, 0) / SECONDS,
    meanBatch: worker.batches.reduce((sum, rows) => sum + rows, 0) / worker.batches.length,
    failed: 1 - good.length / counted.length,
    refusedAfterMs: quantile(
      counted
        .flatMap(({ refusedMs, arrivedMs }) => (refusedMs === null ? [] : [refusedMs - arrivedMs]))
        .toSorted((a, b) => a - b),
      0.99,
    ),
  }
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN
}

/** A client that asks four times a second, before and after five seconds of heavy load: its latency over time. */
async function hangover(policy: string): Promise<{ atS: number; ms: number }[]> {
  const burst = arrivals(5, SEED, () => 3000).map(({ atMs, rows }) => ({ atMs: atMs + 10_000, rows }))
  const lone = Array.from({ length: 160 }, (_, index) => ({ atMs: index * 250 + 7, rows: 1 }))
  const all = [...burst, ...lone.filter(({ atMs }) => atMs < 10_000 || atMs >= 15_100)].toSorted(
    (a, b) => a.atMs - b.atMs,
  )
  const { jobs } = await simulate(policy, all, 60_000)
  return jobs
    .filter(({ arrivedMs }) => arrivedMs < 10_000 || arrivedMs >= 15_100)
    .map(({ arrivedMs, answeredMs }) => ({
      atS: arrivedMs / 1000 - 15,
      ms: answeredMs === null ? Number.POSITIVE_INFINITY : answeredMs - arrivedMs,
    }))
}

const LOADS = [20, 100, 300, 1000, 2000, 3000, 3600, 8000, 40_000]
const names = Object.keys(POLICIES)
const poisson: Result[] = []
for (const policy of names) {
  for (const load of LOADS) {
    // An unbounded queue of ten seconds of it shows what forty show.
    poisson.push(await measure(policy, load, () => load))
  }
}
const bursty: Result[] = []
const BURSTY = 1500
for (const policy of names) {
  // A fifth of each second at five times the rest's rate.
  bursty.push(await measure(policy, BURSTY, (atMs) => (atMs % 1000 < 200 ? 5 : 1) * (BURSTY / 1.8)))
}
const after: { policy: string; series: { atS: number; ms: number }[] }[] = []
for (const policy of names) after.push({ policy, series: await hangover(policy) })

writePage()

function writePage(): void {
  const check = process.argv.includes("--check")
  const page = path.join(root, "docs/batching.md")
  const plot = path.join(root, "docs/batching.svg")
  const text = readFileSync(page, "utf8")
  const written = text.replace(
    /(<!-- simulation -->\n)[^]*(<!-- end -->)/,
    (_whole, begin: string, end: string) => `${begin}\n${tables()}\n${end}`,
  )
  const svg = draw()
  if (check) {
    const same = written === text && svg === readFileSync(plot, "utf8")
    process.stdout.write(same ? "docs/batching.md and docs/batching.svg hold these numbers\n" : tables())
    process.exitCode = same ? 0 : 1
    return
  }
  writeFileSync(page, written)
  writeFileSync(plot, svg)
  process.stdout.write(tables())
}

function tables(): string {
  const header =
    "| policy | load, rows/s | p50 ms | p99 ms | good rows/s | rows a batch | refused or late | refused after, p99 ms |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
  const line = ({ policy, load, p50Ms, p99Ms, goodput, meanBatch, failed, refusedAfterMs }: Result): string =>
    `| ${policy === "bentoctl" ? "**bentoctl**" : policy} | ${load.toLocaleString("en")} | ${ms(p50Ms)} | ${ms(p99Ms)} | ${Math.round(goodput).toLocaleString("en")} | ${meanBatch.toFixed(1)} | ${(100 * failed).toFixed(1)} % | ${Number.isNaN(refusedAfterMs) ? "" : ms(refusedAfterMs)} |\n`
  const shown = [100, 1000, 3000, 40_000]
  const steady = shown.flatMap((load) => poisson.filter((result) => result.load === load)).map(line)
  const lone = after.map(({ policy, series }) => {
    const median = (from: number, to: number): string =>
      ms(
        quantile(
          series
            .filter(({ atS }) => atS >= from && atS < to)
            .map((point) => point.ms)
            .toSorted((a, b) => a - b),
          0.5,
        ),
      )
    return `| ${policy === "bentoctl" ? "**bentoctl**" : policy} | ${median(-12, -5)} | ${median(0, 2)} | ${median(8, 12)} | ${median(18, 25)} |\n`
  })
  return [
    "Independent arrivals (Poisson):\n\n",
    header,
    ...steady,
    "\nBursts (a fifth of each second at five times the rest's rate):\n\n",
    header,
    ...bursty.map(line),
    "\nA lone client four times a second, median latency in ms, before and after five seconds at 3,000 rows/s:\n\n",
    "| policy | before | 0–2 s after | 8–12 s after | 18–25 s after |\n| --- | ---: | ---: | ---: | ---: |\n",
    ...lone,
  ].join("")
}

function ms(value: number): string {
  if (!Number.isFinite(value)) return "∞"
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1)
}

// ------------------------------------------------------------------------------------------------------------- plot

interface Panel {
  readonly title: string
  readonly left: number
  readonly xLabel: string
  readonly yLabel: string
  readonly x: Scale
  readonly y: Scale
  readonly lines: readonly { policy: string; points: readonly (readonly [x: number, y: number])[] }[]
}

interface Scale {
  readonly from: number
  readonly to: number
  readonly log: boolean
  readonly ticks: readonly (readonly [value: number, label: string])[]
}

function draw(): string {
  const colours: Readonly<Record<string, string>> = {
    "no batching": "#8c8c8c",
    "size + timeout 10 ms": "#d9a441",
    "size + timeout 50 ms": "#b5651d",
    "BentoML, learned": "#3b6fb6",
    bentoctl: "#1d7f4b",
  }
  const [width, height, top] = [1160, 420, 64]
  const size = { width: 300, height: 260 }
  const perPolicy = (value: (result: Result) => number): Panel["lines"] =>
    names.map((policy) => ({
      policy,
      points: poisson
        .filter((result) => result.policy === policy)
        .map((result) => [result.load, value(result)] as const)
        .filter(([, y]) => Number.isFinite(y)),
    }))
  const loads: Scale = {
    from: 20,
    to: 40_000,
    log: true,
    ticks: [20, 100, 1000, 4000, 40_000].map((value) => [value, value.toLocaleString("en")]),
  }
  const latency = (to: number): Scale => ({
    from: 4,
    to,
    log: true,
    ticks: [5, 10, 20, 50, 100, 200, 500, 1000, 5000]
      .filter((value) => value <= to)
      .map((value) => [value, value.toLocaleString("en")]),
  })
  const panels: Panel[] = [
    {
      title: "p99 of those answered, ms",
      left: 60,
      xLabel: "rows/s offered (capacity 4,000)",
      yLabel: "",
      x: loads,
      y: latency(5000),
      lines: perPolicy((result) => Math.min(result.p99Ms, 5000)),
    },
    {
      title: "rows/s answered within 500 ms",
      left: 440,
      xLabel: "rows/s offered (capacity 4,000)",
      yLabel: "",
      x: loads,
      y: {
        from: 0,
        to: 4000,
        log: false,
        ticks: [0, 1000, 2000, 3000, 4000].map((value) => [value, value.toLocaleString("en")]),
      },
      lines: perPolicy((result) => result.goodput),
    },
    {
      title: "a lone client after a burst, ms",
      left: 820,
      xLabel: "seconds since the burst of 5 s",
      yLabel: "",
      x: {
        from: -12,
        to: 25,
        log: false,
        ticks: [-10, -5, 0, 5, 10, 15, 20, 25].map((value) => [value, String(value)]),
      },
      y: latency(200),
      lines: after.map(({ policy, series }) => ({
        policy,
        points: series
          .filter(({ atS }) => atS > -12 && atS < 25)
          .map(({ atS, ms: y }) => [atS, Math.min(y, 200)] as const),
      })),
    },
  ]
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="12">`,
    `<title>Batching policies in simulation</title>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
  ]
  for (const panel of panels) {
    const at = (scale: Scale, value: number): number => {
      const [from, to, v] = scale.log
        ? [Math.log(scale.from), Math.log(scale.to), Math.log(value)]
        : [scale.from, scale.to, value]
      return Math.max(0, Math.min(1, (v - from) / (to - from)))
    }
    const px = (value: number): string => (panel.left + size.width * at(panel.x, value)).toFixed(1)
    const py = (value: number): string => (top + size.height * (1 - at(panel.y, value))).toFixed(1)
    const [bottom, right] = [top + size.height, panel.left + size.width]
    parts.push(
      `<text x="${panel.left}" y="${top - 14}" font-size="14" font-weight="600">${panel.title}</text>`,
    )
    for (const [value, label] of panel.y.ticks) {
      parts.push(`<path d="M${panel.left} ${py(value)}H${right}" stroke="#e4e4e4"/>`)
      parts.push(
        `<text x="${panel.left - 6}" y="${Number(py(value)) + 4}" text-anchor="end" fill="#555">${label}</text>`,
      )
    }
    for (const [value, label] of panel.x.ticks) {
      parts.push(`<text x="${px(value)}" y="${bottom + 18}" text-anchor="middle" fill="#555">${label}</text>`)
    }
    parts.push(
      `<text x="${(panel.left + right) / 2}" y="${bottom + 38}" text-anchor="middle" fill="#555">${panel.xLabel}</text>`,
    )
    parts.push(`<path d="M${panel.left} ${top}V${bottom}H${right}" fill="none" stroke="#999"/>`)
    for (const { policy, points } of panel.lines) {
      const path = points.map(([x, y], index) => `${index === 0 ? "M" : "L"}${px(x)} ${py(y)}`).join("")
      parts.push(
        `<path d="${path}" fill="none" stroke="${colours[policy]}" stroke-width="${policy === "bentoctl" ? 2.5 : 1.5}" stroke-linejoin="round"/>`,
      )
    }
  }
  names.forEach((policy, index) => {
    const x = 60 + index * 200
    parts.push(
      `<path d="M${x} ${height - 18}h24" stroke="${colours[policy]}" stroke-width="${policy === "bentoctl" ? 2.5 : 1.5}"/>`,
    )
    parts.push(`<text x="${x + 30}" y="${height - 14}">${policy}</text>`)
  })
  parts.push("</svg>\n")
  return parts.join("\n")
}
