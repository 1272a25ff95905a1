/**
 * `npm run quickstart [-- --yes]`: from a model file to a running container, with the commands that a user would type.
 *
 * Imports a scikit-learn model, builds a Bento, serves it and asks it; then, where a Docker Engine answers, makes a
 * container image, runs it and asks that. Each command is printed before it runs, each step with its time. It works
 * in a store of its own below .cache/quickstart and stops everything that it started, on Ctrl-C too.
 *
 * Where no engine answers it offers to install one (root on Debian or Ubuntu); `--yes` or CI=true: without asking.
 */

import { spawn } from "node:child_process"
import type { ChildProcess } from "node:child_process"
import { once } from "node:events"
import { rm } from "node:fs/promises"
import { createServer } from "node:net"
import { delimiter, join, relative, resolve } from "node:path"
import { createInterface } from "node:readline/promises"
import { setTimeout as sleep } from "node:timers/promises"
import { isDeepStrictEqual } from "node:util"
import { ensureBaseImage, REAL_BASE } from "../test/setup/base-image.ts"
import { canInstallEngine, engineAdvice, ensureEngine, probeEngine } from "../test/setup/engine.ts"
import { explain, formatBytes, formatDuration, run, SetupError, tail } from "../test/setup/process.ts"

const root = resolve(import.meta.dirname, "..")
const storeFolder = join(root, ".cache/quickstart/bentoml")
const main = "dist/cli/main.js"
const rows = [
  [5.9, 3, 5.1, 1.8],
  [4.9, 3, 1.4, 0.2],
]

const print = (line = ""): void => void process.stdout.write(`${line}\n`)
const detail = (line: string): void => print(`    ${line}`)

/** What is to be stopped, newest last. */
const closers: (() => Promise<void>)[] = []
const interrupted = new AbortController()

/** The environment of every command: our store, our Node first on PATH, and none of the user's own settings. */
function commandEnv(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    ...extra,
    BENTOML_HOME: storeFolder,
    ORT_DISABLE_TELEMETRY: "1",
  }
  env["PATH"] = [join(root, "node_modules/.bin"), env["PATH"] ?? ""].join(delimiter)
  for (const name of ["PORT", "BENTOML_PORT", "BENTOML_HOST"]) delete env[name]
  return env
}

/** An argument as a shell wants it. */
export function shellQuote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}

function showCommand(program: string, args: readonly string[], env: Record<string, string> = {}): void {
  const settings = Object.entries(env).map(([name, value]) => `${name}=${shellQuote(value)}`)
  print(`  $ ${[...settings, program, ...args.map(shellQuote)].join(" ")}`)
}

let steps = 0

/** Announces a step, does it, and says how long it took. */
async function step<T>(title: string, action: () => Promise<T>): Promise<T> {
  interrupted.signal.throwIfAborted()
  steps += 1
  print(`\n${steps}. ${title}`)
  const startedMs = performance.now()
  const result = await action()
  interrupted.signal.throwIfAborted()
  detail(`done in ${formatDuration(performance.now() - startedMs)}`)
  return result
}

/**
 * Runs one of the commands to its end, showing what it prints; what it wrote to stdout is the result. A `whole` one is
 * short and comes to its end even when we are interrupted: half a `docker run` would leave a container behind.
 */
async function command(
  program: string,
  args: string[],
  options: { extra?: Record<string, string>; whole?: boolean } = {},
): Promise<string> {
  showCommand(program, args, options.extra)
  const result = await run(program, args, {
    cwd: root,
    env: commandEnv(options.extra),
    onLine: detail,
    ...(options.whole === true ? { detached: true } : { signal: interrupted.signal }),
  })
  interrupted.signal.throwIfAborted()
  if (result.code === 0) return result.stdout.trim()
  throw new SetupError(
    `${program} ${args.slice(0, 3).join(" ")} ... ended with exit code ${result.code}`,
    "Its own message stands above.",
  )
}

const bentoctl = (args: string[], extra: Record<string, string> = {}): Promise<string> =>
  command("node", [main, ...args], { extra })

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  await once(server, "close")
  if (address === null || typeof address === "string")
    throw new Error("a TCP server has an address and a port")
  return address.port
}

/** Waits until the URL answers 200. `ended` tells when waiting makes no sense any more. */
async function untilReady(url: string, limitMs: number, ended: () => string | undefined): Promise<void> {
  const untilMs = performance.now() + limitMs
  for (;;) {
    interrupted.signal.throwIfAborted()
    const status = await fetch(url, { signal: AbortSignal.timeout(2000) }).then(
      async (response) => {
        await response.body?.cancel()
        return response.status
      },
      () => 0,
    )
    if (status === 200) return
    const reason = ended()
    if (reason !== undefined) throw new SetupError(reason, "Its output stands above.")
    if (performance.now() > untilMs) {
      throw new SetupError(
        `${url} was not ready within ${formatDuration(limitMs)}`,
        "Look at the server's output.",
      )
    }
    await sleep(10)
  }
}

/** The route of the example's API, as the server itself documents it. */
async function apiRoute(base: string): Promise<string> {
  const response = await fetch(`${base}/docs.json`)
  // The shape is OpenAPI's.
  const document = (await response.json()) as { paths?: Record<string, Record<string, unknown>> }
  const route = Object.entries(document.paths ?? {}).find(([, operations]) => "post" in operations)?.[0]
  if (route === undefined)
    throw new SetupError("The server documents no POST route", `Look at ${base}/docs.json.`)
  return route
}

/** Asks the model, shown as the curl command that does the same. */
async function ask(base: string, route: string): Promise<unknown> {
  const body = JSON.stringify(rows)
  showCommand("curl", ["-s", `${base}${route}`, "-H", "content-type: application/json", "-d", body])
  const startedMs = performance.now()
  const response = await fetch(`${base}${route}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body,
    signal: AbortSignal.any([interrupted.signal, AbortSignal.timeout(10_000)]),
  })
  const text = await response.text()
  detail(text.trim())
  detail(`HTTP ${response.status} in ${formatDuration(performance.now() - startedMs)}`)
  if (response.status !== 200)
    throw new SetupError(`${route} answered ${response.status}`, "Its body stands above.")
  return JSON.parse(text)
}

/** Starts `bentoctl serve`, which goes on until `stop`; its log is shown only when it ends by itself. */
async function serve(target: string, port: number): Promise<{ base: string; stop(): Promise<void> }> {
  const args = [main, "serve", target, "--host", "127.0.0.1", "--port", String(port)]
  showCommand("node", args)
  const child = spawn("node", args, { cwd: root, env: commandEnv(), stdio: ["ignore", "pipe", "pipe"] })
  let output = ""
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => (output += text))
  }
  let ended: string | undefined
  child.once("error", (error) => (ended = error.message))
  child.once("exit", (code, signal) => (ended = `bentoctl serve ended (${code ?? signal})`))
  const stop = async (): Promise<void> => stopProcess(child)
  closers.push(stop)
  const base = `http://127.0.0.1:${port}`
  try {
    await untilReady(`${base}/readyz`, 30_000, () => ended)
  } catch (error) {
    if (!interrupted.signal.aborted) print(tail(output, 20))
    throw error
  }
  return { base, stop }
}

/** SIGTERM, and after five seconds SIGKILL. */
async function stopProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
  const ended = once(child, "exit")
  child.kill("SIGTERM")
  const timer = setTimeout(() => child.kill("SIGKILL"), 5000)
  await ended
  clearTimeout(timer)
}

/** Whether an engine answers, now or after installing one. Exit code 0 is right where there is none. */
async function haveEngine(yes: boolean): Promise<boolean> {
  const probe = await probeEngine()
  if (probe.state !== "answers") {
    const can = await canInstallEngine()
    if (!can.able) {
      detail(`${can.reason ?? "No Docker Engine answers"}. ${engineAdvice()}`)
      return false
    }
    if (!yes && !(await confirmInstall())) {
      detail(`No Docker Engine answers: ${engineAdvice()} Or: npm run quickstart -- --yes`)
      return false
    }
  }
  const engine = await ensureEngine({ log: detail, signal: interrupted.signal })
  if (engine.available) return true
  if (probe.state === "denied") {
    detail(engine.reason ?? "")
    return false
  }
  throw new SetupError(engine.reason ?? "No Docker Engine", engine.reason === undefined ? engineAdvice() : "")
}

/** Asks at a terminal. Nobody there to answer means no. */
async function confirmInstall(): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stdout.isTTY) return false
  const terminal = createInterface({ input: process.stdin, output: process.stdout })
  const onInterrupt = (): void => interrupted.abort()
  terminal.once("SIGINT", onInterrupt)
  try {
    const question = "    No Docker Engine answers. Install docker.io with apt-get and start it? [y/N] "
    const answer = await terminal.question(question, { signal: interrupted.signal })
    return /^y(es)?$/i.test(answer.trim())
  } finally {
    terminal.close()
  }
}

/** The local half: import, build, serve, ask. */
async function locally(): Promise<{ tag: string; answer: unknown }> {
  await step("Import the model: a random forest, trained by scikit-learn", () =>
    bentoctl(["models", "import", "examples/iris/iris.onnx", "--name", "iris_clf"]),
  )
  const built = await step("Build a Bento: the service's source, its API, and the exact model version", () =>
    bentoctl(["build", "examples/iris", "-o", "tag"]),
  )
  const tag = /__tag__:(\S+)/.exec(built)?.[1]
  if (tag === undefined) throw new SetupError("bentoctl build printed no tag", "Its output stands above.")
  const port = await freePort()
  const server = await step("Serve it on this machine", () => serve(tag, port))
  const answer = await step("Ask it about two flowers", async () =>
    ask(server.base, await apiRoute(server.base)),
  )
  await step("Stop it (SIGTERM)", () => server.stop())
  return { tag, answer }
}

/** The other half: image, container, ask again. */
async function inContainer(tag: string, expected: unknown): Promise<void> {
  const base = await step(`Find the base image, ${REAL_BASE}`, async () => {
    const found = await ensureBaseImage({ log: detail, signal: interrupted.signal })
    if (found.standIn) {
      detail(
        `${REAL_BASE} is not to be had here; a stand-in for it, made from Debian's packages, takes its place`,
      )
    }
    return found
  })
  const settings: Record<string, string> = base.image === REAL_BASE ? {} : { BENTOCTL_BASE_IMAGE: base.image }
  await step("Make the image", () => bentoctl(["containerize", tag], settings))
  const port = await freePort()
  const name = `bentoctl-quickstart-${process.pid}`
  const url = `http://127.0.0.1:${port}`
  closers.push(async () => void (await run("docker", ["rm", "-f", name], { timeoutMs: 20_000 })))
  await step("Run it", async () => {
    const startedMs = performance.now()
    await command("docker", ["run", "-d", "--rm", "--name", name, "-p", `127.0.0.1:${port}:3000`, tag], {
      whole: true,
    })
    const runMs = performance.now() - startedMs
    await untilReady(`${url}/readyz`, 30_000, () => undefined).catch(async (error: unknown) => {
      const logs = await run("docker", ["logs", "--tail", "20", name], { timeoutMs: 10_000 })
      if (!interrupted.signal.aborted) print(tail(logs.stdout + logs.stderr, 20))
      throw error
    })
    const readyMs = performance.now() - startedMs
    detail(
      `start time: ${formatDuration(readyMs)} from docker run to the first 200 of /readyz (docker run itself: ${formatDuration(runMs)})`,
    )
  })
  await step("Ask the container the same", async () => {
    const answer = await ask(url, await apiRoute(url))
    if (!isDeepStrictEqual(answer, expected)) {
      throw new SetupError(
        "The container answers otherwise than the local server",
        "This is a bug of bentoctl.",
      )
    }
    detail("the same answer as before")
  })
  await step("Look at the image's size", async () => {
    const size = async (image: string): Promise<number> => {
      const shown = await run("docker", ["image", "inspect", "--format", "{{.Size}}", image], {
        timeoutMs: 10_000,
      })
      interrupted.signal.throwIfAborted()
      return Number(shown.stdout.trim())
    }
    showCommand("docker", ["image", "inspect", "--format", "{{.Size}}", tag])
    const [whole, below] = [await size(tag), await size(base.image)]
    detail(
      `image size: ${formatBytes(whole)}, of which ${formatBytes(below)} are the base and ${formatBytes(whole - below)} ours`,
    )
  })
  await step("Stop it (docker stop: SIGTERM, then the server drains)", () =>
    command("docker", ["stop", name]),
  )
  print(`\nThe image stays in the engine. Run it again with:`)
  print(`  $ docker run --rm -p 3000:3000 ${tag}`)
}

export function parseArguments(args: readonly string[]): { yes: boolean } | { error: string } {
  const unknown = args.find((arg) => !["--yes", "-y"].includes(arg))
  return unknown === undefined
    ? { yes: args.length > 0 }
    : { error: `unknown argument ${unknown}; there is --yes` }
}

async function quickstart(yes: boolean): Promise<void> {
  const startedMs = performance.now()
  print("bentoctl: from a model file to a running container")
  print("\nTo type the commands below yourself, in this folder, first set:")
  print(`  $ export PATH="$PWD/node_modules/.bin:$PATH" BENTOML_HOME="$PWD/${relative(root, storeFolder)}"`)
  await rm(storeFolder, { recursive: true, force: true })
  const { tag, answer } = await locally()
  const engine = await step("Look for a Docker Engine", () => haveEngine(yes))
  if (engine) await inContainer(tag, answer)
  print(engine ? "\nAll done" : "\nDone, but for the container")
  print(`Total time: ${formatDuration(performance.now() - startedMs)}`)
}

/** Stops what runs, newest first; a closer that fails does not keep the others from running. */
async function closeAll(): Promise<void> {
  for (const close of closers.splice(0).reverse()) await close().catch(() => undefined)
}

async function runMain(): Promise<number> {
  const args = parseArguments(process.argv.slice(2))
  if ("error" in args) {
    process.stderr.write(`npm run quickstart: ${args.error}\n`)
    return 2
  }
  let exitCode = 0
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const) {
    process.on(signal, () => {
      exitCode = code
      interrupted.abort()
    })
  }
  try {
    await quickstart(args.yes || process.env["CI"] === "true")
  } catch (error) {
    // Ctrl-C reaches the server too: that it went away may be known before the signal itself.
    await sleep(50)
    if (interrupted.signal.aborted) {
      exitCode ||= 130
      process.stderr.write("\nInterrupted; stopping what was started\n")
    } else {
      exitCode = 1
      process.stderr.write(`\n${error instanceof SetupError ? explain(error) : String(error)}\n`)
    }
  } finally {
    await closeAll()
  }
  return exitCode
}

if (process.argv[1] === import.meta.filename) process.exitCode = await runMain()
