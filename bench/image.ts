/**
 * The image of examples/iris: size by layer, `docker run` to the first 200 of /readyz, the rebuild after a one-line change
 * of the service; and what a model of 1 or 2 GiB costs: first build, rebuild, another Bento with it, memory.
 * Needs a Docker Engine and a base image (`BENTOCTL_BASE_IMAGE` where the default can't be pulled); 12 GiB of disk.
 */
import { execFileSync, spawn } from "node:child_process"
import { randomFillSync } from "node:crypto"
import {
  appendFileSync,
  closeSync,
  cpSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { ensureBaseImage, ensureEngine } from "../test/setup/engine.ts"
import { bentoctl, cli, median, report, root, scratch, sleep } from "./harness.ts"
import { makeDistroless } from "../test/setup/distroless.ts"
import type { Row } from "./harness.ts"

const docker = (...args: string[]): string => execFileSync("docker", args, { encoding: "utf8" }).trim()
const log = (line: string): void => void process.stdout.write(`${line}\n`)

const engine = await ensureEngine({ log })
if (!engine.available) {
  log(`skipped: ${engine.reason ?? "no Docker Engine"}`)
  process.exit(0)
}
const base = await ensureBaseImage({ log })
const home = scratch()
const context = path.join(scratch(), "iris")
cpSync(path.join(root, "examples/iris"), context, { recursive: true })
const env = { BENTOML_HOME: home, ...(base.standIn ? { BENTOCTL_BASE_IMAGE: base.image } : {}) }
bentoctl(["models", "import", path.join(context, "iris.onnx"), "--name", "iris_clf"], env)

const GIB = 2 ** 30
const image = "iris_classifier:latest"
const made = new Set<string>()
process.on("exit", () => {
  if (made.size > 0) execFileSync("docker", ["rmi", "-f", ...made], { stdio: "ignore" })
})

/** Builds a project and its image; every run is a new process, as users run it. */
function build(project: string): void {
  const tag = bentoctl(["build", project, "--containerize", "-o", "tag"], env).trim().replace("__tag__:", "")
  made.add(tag).add(`${tag.split(":")[0]}:latest`)
}

function rebuildsMs(project: string, runs: number): number[] {
  return Array.from({ length: runs }, (_, run) => {
    appendFileSync(path.join(project, "service.ts"), `// change ${run}\n`)
    return time(() => build(project))
  })
}

const first = time(() => build(context))
const rebuilds = rebuildsMs(context, 7)

log(`\nlayers of ${image} (base ${base.image}):`)
const baseLayers = layers(base.image).length
const ours = layers(image).slice(baseLayers)
const sizes = docker(
  "history",
  "--no-trunc",
  "--human=false",
  "--format",
  "{{.Size}}\t{{.CreatedBy}}",
  image,
).split("\n")
for (const line of sizes.slice(0, ours.length + 12)) {
  const [size = "0", by = ""] = line.split("\t")
  if (Number(size) > 0) log(`  ${(Number(size) / 2 ** 20).toFixed(2).padStart(8)} MiB  ${by.slice(0, 90)}`)
}
const bytes = (name: string): number => Number(docker("image", "inspect", "-f", "{{.Size}}", name))
const above = bytes(image) - bytes(base.image)

const starts: number[] = []
for (let run = 0; run < 5; run++) starts.push(await startMs())

const bareNodeMs = median(
  Array.from({ length: 5 }, () => time(() => execFileSync(process.execPath, ["-e", "0"]))),
)
const rows: Row[] = [
  row("all layers above the base", above / 1e6, 55, "MB", `base ${(bytes(base.image) / 1e6).toFixed(0)} MB`),
  row(
    "docker run → first 200 of /readyz",
    median(starts),
    600,
    "ms",
    `docker run of node -e 0: ${(await bareRunMs()).toFixed(0)} ms`,
  ),
  row(
    "rebuild after a one-line change",
    median(rebuilds),
    500,
    "ms",
    `node -e 0: ${bareNodeMs.toFixed(0)} ms; first build ${first.toFixed(0)} ms`,
  ),
  distrolessRow(),
  ...(await withLargeModels()),
]
report("Images", rows)

/** The same project on a base that has Node, what it needs, and nothing else. */
function distrolessRow(): Row {
  const on = makeDistroless(base.image)
  const project = path.join(scratch(), "iris")
  cpSync(context, project, { recursive: true })
  const docker = `name: bench_distroless\ndocker: { distro: distroless, base_image: "${on}" }\n`
  const file = path.join(project, "bentofile.yaml")
  writeFileSync(file, readFileSync(file, "utf8").replace(/^name: .*\n/m, docker))
  build(project)
  const against = `ONNX Runtime + FastAPI, published: 296 MB; base ${(bytes(on) / 1e6).toFixed(0)} MB`
  return row("whole image, distroless stand-in", bytes("bench_distroless:latest") / 1e6, 200, "MB", against)
}

/** CPU time of the engine and of what it has started and waited for; NaN where it runs elsewhere. */
function engineCpuMs(): number {
  try {
    const pid = readFileSync("/var/run/docker.pid", "utf8").trim()
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    // utime, stime, cutime, cstime, in hundredths of a second.
    return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks) * 10, 0)
  } catch {
    return NaN
  }
}

/** Models with weights of random bytes, beside the graph of iris; projects that do nothing but hold one of them. */
async function withLargeModels(): Promise<Row[]> {
  const folder = scratch()
  const model = (name: string, size: number): string => {
    const to = path.join(home, "models", name, "v1")
    const [from = ""] = bentoctl(["models", "get", "iris_clf", "-o", "path"], env).split("\n")
    cpSync(from, to, { recursive: true })
    const yaml = path.join(to, "model.yaml")
    const text = readFileSync(yaml, "utf8").replace(/^name: .*$/m, `name: ${name}`)
    writeFileSync(yaml, text.replace(/^version: .*$/m, "version: v1"))
    const file = path.join(to, "weights.bin")
    const handle = openSync(file, "w")
    const chunk = Buffer.alloc(1 << 22)
    for (let at = 0; at < size; at += chunk.length) writeSync(handle, randomFillSync(chunk))
    fsyncSync(handle)
    closeSync(handle)
    return file
  }
  const project = (name: string, of: string): string => {
    const to = path.join(folder, name)
    mkdirSync(to)
    const from = path.join(root, "examples/iris")
    cpSync(path.join(from, "service.ts"), path.join(to, "service.ts"))
    const text = readFileSync(path.join(from, "bentofile.yaml"), "utf8")
    const models = text.replace("iris_clf:latest", `iris_clf:latest\n  - ${of}:v1`)
    writeFileSync(path.join(to, "bentofile.yaml"), models.replace(/^name: .*$/m, `name: ${name}`))
    return to
  }

  const weights = model("bench_1g", GIB)
  // Files that stay, as what the engine writes stays: memory that was freed a moment ago is faster to write to.
  const copiesMs = Array.from({ length: 3 }, (_, copy) =>
    time(() => {
      const to = path.join(folder, `copy${copy}`)
      execFileSync("cp", [weights, to])
      const handle = openSync(to, "r")
      fsyncSync(handle)
      closeSync(handle)
    }),
  )
  const copyMs = median(copiesMs)
  // What every door into the engine has behind it: unpack the layer, hash it, write it down.
  const importMs = time(() => {
    const pack = `tar -C '${path.dirname(weights)}' -cf - '${path.basename(weights)}'`
    execFileSync("sh", ["-c", `${pack} | docker import - bench_import:latest`], { stdio: "ignore" })
  })
  docker("rmi", "bench_import:latest")
  execFileSync("sync")
  const cpuBeforeMs = engineCpuMs()
  const firstMs = time(() => build(project("bench_first", "bench_1g")))
  const engineMs = engineCpuMs() - cpuBeforeMs
  execFileSync("sync")
  const secondsMs = Array.from({ length: 3 }, (_, run) =>
    time(() => build(project(`bench_second${run}`, "bench_1g"))),
  )
  model("bench_2g", 2 * GIB)
  const large = project("bench_large", "bench_2g")
  const peakMiB = await peakMemoryMiB(large)
  execFileSync("sync")
  const largeMs = median(rebuildsMs(large, 5))
  return [
    row(
      "first build with a model of 1 GiB",
      firstMs / copyMs,
      3,
      "×",
      `cp + fsync of it: ${copiesMs.map((ms) => ms.toFixed(0)).join(", ")} ms; the build ${firstMs.toFixed(0)} ms, ` +
        `in which the engine computed for ${engineMs.toFixed(0)} ms; \`docker import\` of the same bytes alone ` +
        `${importMs.toFixed(0)} ms: ${(importMs / copyMs).toFixed(1)} ×`,
      1,
    ),
    row("another Bento with the same model", median(secondsMs), 500, "ms", "no byte of the model is sent"),
    row(
      "rebuild after a one-line change, model of 2 GiB",
      largeMs,
      500,
      "ms",
      `without it ${median(rebuilds).toFixed(0)} ms`,
    ),
    row("memory of the command, model of 2 GiB", peakMiB, 200, "MiB", "peak of the resident set"),
  ]
}

/** Of a first build; the kernel keeps the peak, so that looking now and then is enough. */
async function peakMemoryMiB(project: string): Promise<number> {
  const args = [cli, "build", project, "--containerize", "-o", "tag"]
  const child = spawn(process.execPath, args, {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "inherit"],
  })
  let tag = ""
  child.stdout.on("data", (chunk: Buffer) => (tag += chunk.toString()))
  let peakKiB = 0
  while (child.exitCode === null) {
    try {
      peakKiB = Number(
        /VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"))?.[1] ?? peakKiB,
      )
    } catch {
      // It has ended.
    }
    await sleep(20)
  }
  if (child.exitCode !== 0) throw new Error(`the build of ${project} failed`)
  const name = tag.trim().replace("__tag__:", "")
  made.add(name).add(`${name.split(":")[0]}:latest`)
  return peakKiB / 1024
}

function row(what: string, value: number, goal: number, unit: string, against: string, digits = 0): Row {
  return {
    what,
    measured: `${value.toFixed(digits)} ${unit}`,
    against,
    goal: `< ${goal} ${unit}`,
    met: value < goal,
  }
}

function layers(name: string): string[] {
  return JSON.parse(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", name)) as string[]
}

function time(act: () => unknown): number {
  const startedMs = performance.now()
  act()
  return performance.now() - startedMs
}

async function startMs(): Promise<number> {
  const startedMs = performance.now()
  const id = docker("run", "-d", "--rm", "-p", "127.0.0.1::3000", image)
  const port = docker("port", id, "3000").split(":").at(-1)
  for (;;) {
    const ready = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      (response) => response.status === 200,
      () => false,
    )
    if (ready) break
    if (performance.now() - startedMs > 20_000) throw new Error("the container is not ready after 20 s")
    await sleep(2)
  }
  const elapsed = performance.now() - startedMs
  docker("stop", id)
  return elapsed
}

async function bareRunMs(): Promise<number> {
  return median(
    Array.from({ length: 5 }, () =>
      time(() => docker("run", "--rm", "--entrypoint", "node", image, "-e", "0")),
    ),
  )
}
