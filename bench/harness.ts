/** What the benches share: processes on chosen cores, a store of their own, medians, and a table of ratios. */
import { type ChildProcess, execFile, execFileSync, spawn, spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import net from "node:net"
import { cpus, tmpdir } from "node:os"
import path from "node:path"
import { NODE_FLAGS } from "../store/node-flags.ts"
import type { LoadOptions, LoadResult } from "./load.ts"

export const root = path.resolve(import.meta.dirname, "..")
export const cli = path.join(root, "dist/cli/main.js")

/** The server's core and the load's core. On a machine with one core both are the same, and the table says so. */
export const SERVER_CORE = 0
export const LOAD_CORE = 1
/** Medians are of so many runs, in turn with what they are measured against. */
export const RUNS = Number(process.env["BENCH_RUNS"] ?? 5)

const cleanups: (() => void)[] = []
process.on("exit", () => {
  for (const cleanup of cleanups.reverse()) cleanup()
})
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130))

/** A folder that goes when the bench ends. */
export function scratch(): string {
  const folder = mkdtempSync(path.join(tmpdir(), "bentoctl-bench-"))
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Runs the command line to its end; its stdout. */
export function bentoctl(args: readonly string[], env: Readonly<Record<string, string>> = {}): string {
  return execFileSync(process.execPath, [cli, ...args], { encoding: "utf8", env: { ...process.env, ...env } })
}

export interface Started {
  readonly process: ChildProcess
  readonly port: number
  /** Milliseconds from exec to the first 200 of the probed path. */
  readonly readyMs: number
  stop(): Promise<void>
}

/** Starts a server on one core and waits until `probe` answers 200. `{port}` in the arguments is filled in. */
export async function startServer(
  command: readonly string[],
  options: {
    env?: Readonly<Record<string, string>>
    probe?: string
    cores?: string
    timeoutMs?: number
  } = {},
): Promise<Started> {
  const port = await freePort()
  const args = command.map((argument) => argument.replaceAll("{port}", String(port)))
  const startedMs = performance.now()
  const child = spawn("taskset", ["-c", options.cores ?? String(SERVER_CORE), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ORT_DISABLE_TELEMETRY: "1", ...options.env, PORT: String(port) },
  })
  let output = ""
  child.stdout.on("data", (chunk: Buffer) => (output = (output + chunk.toString()).slice(-4000)))
  child.stderr.on("data", (chunk: Buffer) => (output = (output + chunk.toString()).slice(-4000)))
  const kill = (): void => void child.kill("SIGKILL")
  cleanups.push(kill)
  const deadlineMs = startedMs + (options.timeoutMs ?? 30_000)
  while (!(await answers200(port, options.probe ?? "/readyz"))) {
    if (child.exitCode !== null) throw new Error(`${args.join(" ")} ended with ${child.exitCode}:\n${output}`)
    if (performance.now() > deadlineMs) throw new Error(`${args.join(" ")} is not ready:\n${output}`)
    await sleep(2)
  }
  const readyMs = performance.now() - startedMs
  return {
    process: child,
    port,
    readyMs,
    stop: () =>
      new Promise((resolve) => {
        child.once("exit", () => resolve())
        child.kill("SIGTERM")
        setTimeout(kill, 5000).unref()
      }),
  }
}

/** `bentoctl/runtime`'s server for one model folder without code, or a service, as `bentoctl serve` starts it. */
export function serveCommand(spec: object): readonly string[] {
  return [
    process.execPath,
    ...NODE_FLAGS,
    path.join(root, "dist/image/serve.js"),
    "--spec",
    JSON.stringify(spec),
    "--port",
    "{port}",
  ]
}

/** Builds a Bento of these files in the bench's own store, with the options; its tag. */
export function buildBento(
  project: Readonly<Record<string, string>>,
  options: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): string {
  home ??= scratch()
  const sources = scratch()
  for (const [name, text] of Object.entries(project)) writeFileSync(path.join(sources, name), text)
  const output = bentoctl(["build", sources, "-o", "tag", ...options], { ...env, BENTOML_HOME: home })
  return output.trim().replace("__tag__:", "")
}

/** What an image of the project starts, from its files in a folder: the Bento with all that was prepared, the server, the model. */
export function imageCommand(project: Readonly<Record<string, string>>): readonly string[] {
  const tag = buildBento(project)
  const context = path.join(scratch(), "context")
  bentoctl(["containerize", tag, "--output-dir", context], { BENTOML_HOME: home ?? "" })
  const bento = path.join(context, "bento")
  renameSync(path.join(context, "models"), path.join(bento, "models"))
  const entry = path.join(context, "runtime/entrypoint.js")
  return [process.execPath, ...NODE_FLAGS, entry, "serve", "--bento", bento, "--port", "{port}"]
}

export interface BenchModel {
  readonly tag: string
  readonly dir: string
  readonly file: string
}

let home: string | undefined

/** Puts a model file into a store of the bench's own. */
export function importModel(file: string, name: string): BenchModel {
  home ??= scratch()
  const output = bentoctl(["models", "import", file, "--name", name, "-o", "tag"], { BENTOML_HOME: home })
  const tag = output.trim().replace("__tag__:", "")
  const dir = path.join(home, "models", ...tag.split(":"))
  return { tag, dir, file: path.join(dir, "saved_model.onnx") }
}

export function iris(): BenchModel {
  return importModel(path.join(root, "examples/iris/iris.onnx"), "iris_clf")
}

/** The rows of the iris data, a JSON body each. */
export function irisBodies(): string[] {
  const file = path.join(root, "examples/iris/golden.json")
  const { inputs } = JSON.parse(readFileSync(file, "utf8")) as { inputs: number[][] }
  return inputs.map((row) => JSON.stringify([row]))
}

/** The server for one model without code (`POST /run`), with these settings. */
export function serveModel(
  { tag, dir }: BenchModel,
  options: { cores?: string; settings?: Readonly<Record<string, string | number | boolean>> } = {},
): Promise<Started> {
  const settings = Object.entries(options.settings ?? {}).map(([key, value]) => `${key}=${value}`)
  return startServer(
    serveCommand({ name: "bench", version: null, service: null, srcDir: dir, models: [{ tag, dir }] }),
    {
      env: { BENTOML_CONFIG_OPTIONS: settings.join(" ") },
      ...(options.cores === undefined ? {} : { cores: options.cores }),
    },
  )
}

/** The load generator in a process of its own on the other core. */
export function loadFrom(options: LoadOptions, core: number | string = LOAD_CORE): Promise<LoadResult> {
  return new Promise((resolve, reject) => {
    const child = spawn("taskset", ["-c", String(core), process.execPath, path.join(root, "bench/load.ts")], {
      stdio: ["pipe", "pipe", "inherit"],
    })
    child.stdin.on("error", reject).end(JSON.stringify(options))
    let output = ""
    child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()))
    child.on("close", (code) =>
      code === 0 ? resolve(JSON.parse(output) as LoadResult) : reject(new Error(`load ended with ${code}`)),
    )
  })
}

/** What makes the load where only throughput counts: wrk where it is installed. */
export const generator = spawnSync("wrk", ["--version"]).error === undefined ? "wrk" : "bench/load.ts"

type ClosedLoop = Pick<LoadOptions, "port" | "path" | "bodies" | "connections" | "seconds">
type Throughput = Pick<LoadResult, "requests" | "perSecond">

/** As many requests as the connections can carry, from the load's core; each of them must be answered with 200. */
export async function closedLoop(options: ClosedLoop): Promise<Throughput> {
  const { statuses, ...throughput } = await (generator === "wrk" ? wrk(options) : loadFrom(options))
  if (Object.keys(statuses).some((status) => status !== "200")) {
    throw new Error(`port ${options.port}${options.path}: not only 200: ${JSON.stringify(statuses)}`)
  }
  return throughput
}

/** A closed loop from wrk: it costs a tenth of what a generator under Node does. */
async function wrk(options: ClosedLoop): Promise<Throughput & Pick<LoadResult, "statuses">> {
  const { port, path: route, bodies, connections, seconds } = options
  const script = path.join(scratch(), "load.lua")
  writeFileSync(
    script,
    `local bodies = {${bodies.map((body) => JSON.stringify(body)).join(",")}}
     local requests, next = {}, 0
     function init() for i, body in ipairs(bodies) do
       requests[i] = wrk.format("POST", nil, {["content-type"] = "application/json"}, body)
     end end
     function request() next = next % #requests + 1; return requests[next] end
     function done(summary) io.write(string.format(
       '{"requests":%d,"us":%d,"failed":%d}\\n', summary.requests, summary.duration, summary.errors.status)) end`,
  )
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const wrk = [
    "wrk",
    "-t1",
    `-c${connections}`,
    `-d${seconds}s`,
    "-s",
    script,
    `http://127.0.0.1:${port}${route}`,
  ]
  execFile("taskset", ["-c", String(LOAD_CORE), ...wrk], (error, stdout) =>
    error === null ? resolve(stdout) : reject(error),
  )
  const line = (await promise).trim().split("\n").at(-1) ?? "{}"
  const { requests, us, failed } = JSON.parse(line) as { requests: number; us: number; failed: number }
  return {
    requests,
    perSecond: (requests / us) * 1e6,
    statuses: { 200: requests - failed, ...(failed > 0 ? { other: failed } : {}) },
  }
}

/** An HTTP server that parses each JSON body and answers it again: what Node itself can do for such requests. */
export function startEcho(): Promise<Started> {
  const source = `
    const http = require("node:http")
    http.createServer((request, response) => {
      if (request.method === "GET") return response.writeHead(200).end("\\n")
      const chunks = []
      request.on("data", (chunk) => chunks.push(chunk))
      request.on("end", () => {
        const body = JSON.stringify(JSON.parse(chunks.length === 1 ? chunks[0].toString() : Buffer.concat(chunks).toString()))
        response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(body) }).end(body)
      })
    }).listen(Number(process.env.PORT), "127.0.0.1")`
  return startServer([process.execPath, "-e", source])
}

/** taskset replaces itself by the program it starts, so the child is the server. */
export function pidOf({ process: { pid } }: Started): number {
  if (pid === undefined) throw new Error("no server")
  return pid
}

/** Resident memory of a process in bytes. */
export function residentBytes(pid: number): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024
}

/** CPU time of a process so far, all threads, in the kernel too. */
export function cpuUs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10_000
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted[Math.floor(sorted.length / 2)]
  if (middle === undefined) throw new Error("median of nothing")
  return middle
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** One line of a bench's result: what was measured, what it was measured against, and the ratio to the goal. */
export interface Row {
  readonly what: string
  readonly measured: string
  readonly against: string
  /** Absent, with `met`: only for comparison. */
  readonly goal?: string
  readonly met?: boolean
}

/** Ticks that all CPUs were busy for since the bench began, those that were stolen, and those of us and our children. */
function ticks(): { busy: number; stolen: number; ours: number; all: number } {
  const fields = (readFileSync("/proc/stat", "utf8").split("\n")[0] ?? "")
    .split(/\s+/)
    .slice(1, 9)
    .map(Number)
  const [user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, softIrq = 0, stolen = 0] = fields
  const own = readFileSync("/proc/self/stat", "utf8")
    .replace(/^.*\) /s, "")
    .split(" ")
    .slice(11, 15)
    .map(Number)
  const busy = user + nice + system + irq + softIrq
  return { busy, stolen, ours: own.reduce((sum, n) => sum + n, 0), all: busy + idle + waiting + stolen }
}

const begun = ticks()

/** How much of the machine others took meanwhile: what is measured on a busy one says little. Children count once they ended. */
function others(): string {
  const now = ticks()
  const all = now.all - begun.all
  const theirs = now.busy - begun.busy - (now.ours - begun.ours)
  const percent = (part: number): string => `${Math.max(0, (100 * part) / all).toFixed(0)} %`
  return `other programs took ${percent(theirs)} of the CPUs, the host ${percent(now.stolen - begun.stolen)}`
}

export function report(title: string, rows: readonly Row[]): void {
  const cells = [
    ["case", "measured", "against", "goal", ""],
    ...rows.map((row) => [row.what, row.measured, row.against, row.goal ?? "", verdict(row)]),
  ]
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...cells.map((line) => line[column]?.length ?? 0)))
  const [cpu] = cpus()
  const machine = `${cpus().length} × ${cpu?.model.trim() ?? "CPU"}, Node ${process.versions.node}`
  process.stdout.write(
    `\n## ${title}\n\n${machine}, ${new Date().toISOString().slice(0, 10)}; ${others()}\n\n`,
  )
  cells.forEach((line, index) => {
    process.stdout.write(`| ${line.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |\n`)
    if (index === 0) process.stdout.write(`| ${widths.map((width) => "-".repeat(width)).join(" | ")} |\n`)
  })
}

function verdict({ met }: Row): string {
  if (met === undefined) return ""
  return met ? "met" : "MISSED"
}

async function answers200(port: number, probe: string): Promise<boolean> {
  try {
    return (await fetch(`http://127.0.0.1:${port}${probe}`)).status === 200
  } catch {
    return false
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = net.createServer()
    server.on("error", reject)
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() =>
        typeof address === "object" && address !== null
          ? resolve(address.port)
          : reject(new Error("no port")),
      )
    })
  })
}
