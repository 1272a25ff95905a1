/**
 * The only file of the command line that touches the process: environment, working directory, clock, chance, streams
 * and signals enter here and are handed on as a `Context`.
 */
import { existsSync, readFileSync } from "node:fs"
import { homedir } from "node:os"
import path from "node:path"
import type { Describer } from "../images/describe.ts"
import { Interruption, storeHome, wantsColour } from "./context.ts"
import type { Context } from "./context.ts"

/** Time that a command has for tidying up after Ctrl-C. */
const STOP_WITHIN_MS = 900

await main()

async function main(): Promise<void> {
  endOnClosedPipe()
  const argv = process.argv.slice(2)
  const context = makeContext()
  const describer = await describerFor(argv, context)
  const [{ runApp }, { reportError }] = await Promise.all([import("./app.ts"), import("./failure.ts")])
  // A promise or an event of ours that nobody looks after is a defect, and reported as one.
  process.on("uncaughtException", (error) =>
    process.exit(reportError(error, context, { json: false, debug: true })),
  )
  const exitCode = await runApp(argv, { ...context, describer })
  describer?.stop()
  await Promise.all([flushed(process.stdout), flushed(process.stderr)])
  // Sockets that a client library keeps alive would hold the process; there is nothing left to wait for.
  process.exit(exitCode)
}

/**
 * What a build waits for longest is the process that describes its service, and that process waits longest for itself:
 * it starts on another CPU while the command line is still being loaded.
 */
async function describerFor(argv: readonly string[], context: Context): Promise<Describer | undefined> {
  if (argv[0] !== "build" || argv.includes("--help") || argv.includes("-h")) return undefined
  const { startDescriber } = await import("../images/describe.ts")
  try {
    return startDescriber(context)
  } catch {
    // The command tries again, and tells.
    return undefined
  }
}

function makeContext(): Context {
  const { stdin, stdout, stderr, env } = process
  const cwd = process.cwd()
  const root = packageRoot()
  const terminal = {
    stdin: stdin.isTTY === true,
    stdout: stdout.isTTY === true,
    stderr: stderr.isTTY === true,
  }
  const colour = { stdout: wantsColour(env, terminal.stdout), stderr: wantsColour(env, terminal.stderr) }
  const widest = terminal.stdout ? stdout : stderr
  return {
    cwd,
    env: { ...env, ORT_DISABLE_TELEMETRY: "1" },
    home: storeHome(env, cwd, homedir()),
    now: () => new Date(),
    random: (size) => process.getBuiltinModule("node:crypto").randomBytes(size), // seldom needed, slow to load
    ...listenToSignals(),
    stdin,
    stdout,
    stderr,
    colorDepth: 1,
    terminal,
    colour,
    columns: () => widest.columns || 80,
    runtimeDir: path.join(root.dir, "dist", "image"),
    nodePath: process.execPath,
    describeTimeoutMs: 30_000,
    version: root.manifest.version,
    bugs: root.manifest.bugs?.url ?? null,
  }
}

/** Our package, whether this is a file of `cli/` in a checkout or of `dist/cli/` in what npm installed. */
function packageRoot(): { dir: string; manifest: { version: string; bugs?: { url: string } } } {
  let dir = import.meta.dirname
  while (!existsSync(path.join(dir, "package.json")) && dir !== path.dirname(dir)) dir = path.dirname(dir)
  // The cast: it is our own package.json, and `npm pack` refuses one without a version.
  const manifest = JSON.parse(readFileSync(path.join(dir, "package.json"), "utf8")) as { version: string }
  return { dir, manifest }
}

/** The first signal asks the command to stop; a second one, or a command that does not stop in time, ends the process. */
function listenToSignals(): Pick<Context, "signal" | "takeSignals"> {
  const controller = new AbortController()
  let taker: ((signal: NodeJS.Signals) => void) | undefined
  for (const name of Interruption.signals) {
    process.on(name, (signal: NodeJS.Signals) => {
      if (taker !== undefined) return taker(signal)
      const interruption = new Interruption(signal)
      if (controller.signal.aborted) giveUp(interruption)
      controller.abort(interruption)
      setTimeout(() => giveUp(interruption), STOP_WITHIN_MS).unref()
    })
  }
  return {
    signal: controller.signal,
    takeSignals: (listener) => {
      taker = listener
      return () => {
        taker = undefined
      }
    },
  }
}

/** Ends the process whatever it is doing; what it was writing is a draft that the next command clears away. */
function giveUp(interruption: Interruption): never {
  const showCursor = process.stderr.isTTY ? "\u001B[?25h" : ""
  process.stderr.write(`${showCursor}${interruption.message}\n`)
  process.exit(interruption.exitCode)
}

/** `bentoctl list | head -1` closes our stdout early: end without a stack, as other Unix tools do. */
function endOnClosedPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EPIPE") process.exit(141)
      if (stream === process.stdout)
        process.stderr.write(`Error: stdout cannot be written to: ${error.message}\n`)
      process.exit(1)
    })
  }
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write("", () => resolve())
  })
}
