/**
 * Iris against what else serves it: BentoML with adaptive batching over the same ONNX file, and Flask around scikit-learn's
 * random forest. Each server is on one core, one worker and one thread of inference each; the same rows as JSON over 64
 * connections, from the same load generator; in turn. And what a container feels: the time from exec to ready, memory, and where
 * a Docker Engine answers the time from `docker run` to the first prediction.
 *
 * `bench/peers/install.sh` puts the peers into .cache/peers (Python 3.11, PyPI, 500 MB); without them they are skipped.
 */
import { execFileSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import path from "node:path"
import { ensureBaseImage, ensureEngine } from "../test/setup/engine.ts"
import {
  type Row,
  type Started,
  RUNS,
  buildBento,
  closedLoop,
  generator,
  imageCommand,
  iris,
  irisBodies,
  median,
  pidOf,
  report,
  residentBytes,
  root,
  scratch,
  sleep,
  startServer,
} from "./harness.ts"

interface Contestant {
  readonly name: string
  readonly route: string
  readonly bodies: readonly string[]
  readonly start: () => Promise<Started>
}

const SECONDS = 5
const environment = path.join(root, ".cache/peers")
const peersFolder = path.join(root, "bench/peers")
const bodies = irisBodies()
iris()
const example = (name: string): string => readFileSync(path.join(root, "examples/iris", name), "utf8")
const project = { "bentofile.yaml": example("bentofile.yaml"), "service.ts": example("service.ts") }
const withCode = imageCommand(project)
const noCode = imageCommand({ "bentofile.yaml": "models: [iris_clf]\n" })

const ours: Contestant = {
  name: "bentoctl",
  route: "/classify",
  bodies,
  start: () => startServer(withCode),
}
const withoutCode: Contestant = {
  name: "bentoctl without code",
  route: "/run",
  bodies,
  start: () => startServer(noCode),
}
const bentoml: Contestant = {
  name: "BentoML",
  route: "/classify",
  bodies: bodies.map((body) => `{"rows":${body}}`),
  start: () =>
    startServer(command("bentoml", "serve bentoml_iris:Iris --host 127.0.0.1 --port {port} --working-dir"), {
      env: { BENTOML_DO_NOT_TRACK: "True", BENTOML_HOME: scratch() },
      timeoutMs: 120_000,
    }),
}
const flask: Contestant = {
  name: "Flask + scikit-learn",
  route: "/classify",
  bodies,
  start: () =>
    startServer(command("gunicorn", "flask_iris:app --workers 1 --bind 127.0.0.1:{port} --chdir"), {
      timeoutMs: 120_000,
    }),
}

const missing = missingPeers()
if (missing !== null) process.stdout.write(`skipped: ${missing}\n`)
else report(`Iris against its peers, one core, 64 connections, load by ${generator}`, await compare())

async function compare(): Promise<Row[]> {
  const all = [ours, bentoml, flask]
  const servers: Started[] = []
  for (const { start } of all) servers.push(await start())
  const rates = all.map((): number[] => [])
  for (let run = -1; run < RUNS; run++) {
    for (const [index, { name, route, bodies }] of all.entries()) {
      const port = servers[index]?.port ?? 0
      const seconds = run < 0 ? 2 : SECONDS
      const { perSecond } = await closedLoop({ port, path: route, bodies, connections: 64, seconds })
      if (run < 0) continue
      rates[index]?.push(perSecond)
      process.stdout.write(`${name}: ${perSecond.toFixed(0)} req/s\n`)
    }
  }
  for (const server of servers) await server.stop()

  const starting = [ours, withoutCode, bentoml]
  const readyMs = starting.map((): number[] => [])
  const bytes = starting.map((): number[] => [])
  for (let run = 0; run < RUNS; run++) {
    for (const [index, { name, start }] of starting.entries()) {
      const server = await start()
      // BentoML's worker is a child of the process that was started; ours is that process.
      const pid = name === bentoml.name ? largestChild(pidOf(server)) : pidOf(server)
      readyMs[index]?.push(server.readyMs)
      bytes[index]?.push(residentBytes(pid))
      await server.stop()
      process.stdout.write(
        `${name}: ready after ${server.readyMs.toFixed(0)} ms, ${((bytes[index]?.at(-1) ?? 0) / 2 ** 20).toFixed(0)} MiB\n`,
      )
    }
  }
  const [ourRates = [], bentomlRates = [], flaskRates = []] = rates
  const [, , bentomlReady = 0] = readyMs.map(median)
  const [, , bentomlBytes = 0] = bytes.map(median)
  return [
    faster(`BentoML ${versionOf("bentoml")}, batchable API over ONNX`, ourRates, bentomlRates, 40),
    faster(`Flask ${versionOf("flask")} + scikit-learn's random forest`, ourRates, flaskRates, 100),
    ...[ours, withoutCode].flatMap(({ name }, index): Row[] => {
      const ready = median(readyMs[index] ?? [])
      const resident = median(bytes[index] ?? [])
      return [
        {
          what: `ready after exec, ${name}`,
          measured: `${ready.toFixed(0)} ms`,
          against: `BentoML ${bentomlReady.toFixed(0)} ms: 1/${(bentomlReady / ready).toFixed(1)}`,
          goal: "≤ 1/8",
          met: ready <= bentomlReady / 8,
        },
        {
          what: `resident memory when ready, ${name}`,
          measured: `${(resident / 2 ** 20).toFixed(0)} MiB`,
          against: `one worker of BentoML's ${(bentomlBytes / 2 ** 20).toFixed(0)} MiB: ${(resident / bentomlBytes).toFixed(2)}`,
          goal: "≤ 1/2",
          met: resident <= bentomlBytes / 2,
        },
      ]
    }),
    ...(await containerRow(bentomlReady)),
  ]
}

/** All that a user waits for, with one CPU, against BentoML's server process alone. */
async function containerRow(bentomlReady: number): Promise<Row[]> {
  const log = (line: string): void => void process.stdout.write(`${line}\n`)
  const engine = await ensureEngine({ log })
  if (!engine.available) {
    log(`skipped: ${engine.reason ?? "no Docker Engine"}`)
    return []
  }
  const docker = (...args: string[]): string => execFileSync("docker", args, { encoding: "utf8" }).trim()
  const base = await ensureBaseImage({ log })
  const image = `bentoctl-bench-peers-${process.pid}:1`
  const env: Record<string, string> = base.standIn ? { BENTOCTL_BASE_IMAGE: base.image } : {}
  buildBento(project, ["--containerize", "-t", image], env)
  const predictedMs: number[] = []
  try {
    for (let run = 0; run < RUNS; run++) {
      const startedMs = performance.now()
      const id = docker("run", "-d", "--cpus", "1", "-p", "127.0.0.1::3000", image)
      const url = `http://${docker("port", id, "3000")}/classify`
      const isAnswered = (): Promise<boolean> =>
        fetch(url, { method: "POST", body: bodies[0] ?? "" }).then(
          ({ status }) => status === 200,
          () => false,
        )
      while (!(await isAnswered())) await sleep(2)
      predictedMs.push(performance.now() - startedMs)
      docker("rm", "-f", id)
    }
  } finally {
    docker("rmi", "-f", image)
  }
  const ms = median(predictedMs)
  return [
    {
      what: "docker run → first prediction, 1 CPU",
      measured: `${ms.toFixed(0)} ms`,
      against: `BentoML's server process, ready: ${bentomlReady.toFixed(0)} ms: 1/${(bentomlReady / ms).toFixed(1)}`,
      goal: "< 1/3",
      met: ms < bentomlReady / 3,
    },
  ]
}

/** A program of the peers' environment; its last option is given their folder. */
function command(program: string, options: string): string[] {
  return [path.join(environment, "bin", program), ...options.split(" "), peersFolder]
}

function faster(peer: string, ours: readonly number[], theirs: readonly number[], goal: number): Row {
  const ratio = median(ours.map((rate, run) => rate / (theirs[run] ?? 0)))
  return {
    what: "requests per second",
    measured: `${median(ours).toFixed(0)} req/s`,
    against: `${peer}: ${median(theirs).toFixed(0)} req/s: ×${ratio.toFixed(0)}`,
    goal: `≥ ×${goal}`,
    met: ratio >= goal,
  }
}

function missingPeers(): string | null {
  const installed = path.join(environment, "installed.txt")
  if (!existsSync(installed)) return "the peers are not there; bench/peers/install.sh installs them"
  const wanted = readFileSync(path.join(peersFolder, "requirements.txt"), "utf8")
  if (readFileSync(installed, "utf8") === wanted) return null
  return "the peers are of other versions; bench/peers/install.sh installs those of requirements.txt"
}

function versionOf(name: string): string {
  const requirements = readFileSync(path.join(peersFolder, "requirements.txt"), "utf8")
  return new RegExp(`^${name}==(.*)$`, "m").exec(requirements)?.[1] ?? ""
}

function largestChild(pid: number): number {
  const children = execFileSync("ps", ["-o", "pid=", "--ppid", String(pid)], { encoding: "utf8" })
  const [largest] = children
    .trim()
    .split(/\s+/)
    .map(Number)
    .sort((a, b) => residentBytes(b) - residentBytes(a))
  if (largest === undefined) throw new Error(`process ${pid} has no children`)
  return largest
}
