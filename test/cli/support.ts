/** Runs the command line: in this process on streams of its own, or as the real program. */
import { spawn, type ChildProcess } from "node:child_process"
import { cp, mkdtemp, rm, writeFile, mkdir } from "node:fs/promises"
import { tmpdir } from "node:os"
import path from "node:path"
import { PassThrough } from "node:stream"
import { after } from "node:test"
import { runApp } from "../../cli/app.ts"
import { Interruption, type Context } from "../../cli/context.ts"

export const root = path.resolve(import.meta.dirname, "../..")
export const fixtures = path.join(root, "test/fixtures")
export const runtimeDir = path.join(root, "dist/image")

export interface Outcome {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

// At the top, since what a hook registers ends with that hook.
const folders: string[] = []
const programs: ChildProcess[] = []
after(async () => {
  for (const program of programs) program.kill("SIGKILL")
  await Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true })))
})

/** A folder that goes when the test file has run. */
export async function scratch(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "bentoctl-cli-"))
  folders.push(folder)
  return folder
}

/** Writes files below a new folder; names may hold slashes. */
export async function folderWith(files: Readonly<Record<string, string>>): Promise<string> {
  const folder = await scratch()
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(folder, name)), { recursive: true })
    await writeFile(path.join(folder, name), text)
  }
  return folder
}

/** A copy of the store that Python's BentoML wrote. */
export async function pythonStore(): Promise<string> {
  const folder = await scratch()
  await cp(path.join(fixtures, "bentoml-home"), folder, { recursive: true })
  return folder
}

export interface World {
  readonly home?: string
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string>>
  /** What is typed; its end is the end of input. */
  readonly stdin?: string
  /** Which streams are terminals. */
  readonly terminal?: Partial<Context["terminal"]>
  readonly columns?: number
  readonly colour?: boolean
  readonly runtimeDir?: string
  readonly describeTimeoutMs?: number
  /** Called with a function that "presses Ctrl-C". */
  readonly interrupt?: (press: (signal?: NodeJS.Signals) => void) => void
}

interface Scene {
  readonly context: Context
  /** "Presses Ctrl-C". */
  readonly press: (signal: NodeJS.Signals) => void
  /** What was printed. */
  readonly stdout: () => string
  readonly stderr: () => string
}

/** What a command gets to know of a world. */
export function contextOf(world: World): Scene {
  const stdin = new PassThrough()
  stdin.end(world.stdin ?? "")
  const stdout = collect()
  const stderr = collect()
  const controller = new AbortController()
  let taker: ((signal: NodeJS.Signals) => void) | undefined
  const { terminal = {}, colour = false } = world
  const press = (signal: NodeJS.Signals): void => {
    if (taker === undefined) controller.abort(new Interruption(signal))
    else taker(signal)
  }
  const context: Context = {
    cwd: world.cwd ?? root,
    env: { PATH: process.env["PATH"], HOME: process.env["HOME"], ...world.env },
    home: world.home ?? "/nonexistent/bentoml",
    now: () => new Date(),
    random: (size) => crypto.getRandomValues(new Uint8Array(size)),
    signal: controller.signal,
    takeSignals: (listener) => {
      taker = listener
      return () => {
        taker = undefined
      }
    },
    stdin,
    stdout: stdout.stream,
    stderr: stderr.stream,
    colorDepth: 1,
    terminal: {
      stdin: terminal.stdin ?? false,
      stdout: terminal.stdout ?? false,
      stderr: terminal.stderr ?? false,
    },
    colour: { stdout: colour, stderr: colour },
    columns: () => world.columns ?? 80,
    runtimeDir: world.runtimeDir ?? runtimeDir,
    nodePath: process.execPath,
    describeTimeoutMs: world.describeTimeoutMs ?? 30_000,
    version: "1.2.3",
    bugs: null,
  }
  return { context, press, stdout: stdout.text, stderr: stderr.text }
}

/** Runs a command in this process and returns what it printed. */
export async function run(argv: readonly string[], world: World = {}): Promise<Outcome> {
  const { context, press, stdout, stderr } = contextOf(world)
  world.interrupt?.((signal = "SIGINT") => press(signal))
  const code = await runApp(argv, context)
  return { code, stdout: stdout(), stderr: stderr() }
}

function collect(): { stream: PassThrough; text: () => string } {
  const stream = new PassThrough()
  let text = ""
  stream.on("data", (chunk: Buffer) => {
    text += chunk.toString()
  })
  return { stream, text: () => text }
}

export interface Started {
  readonly child: ChildProcess
  readonly output: () => { readonly stdout: string; readonly stderr: string }
  readonly ended: Promise<Outcome & { readonly ms: number }>
}

/** Starts the real program. */
export function start(
  argv: readonly string[],
  options: {
    readonly env?: Readonly<Record<string, string>>
    readonly cwd?: string
    readonly command?: readonly string[]
  } = {},
): Started {
  const [file = process.execPath, ...before] = options.command ?? [process.execPath]
  const child = spawn(file, [...before, path.join(root, "cli/main.ts"), ...argv], {
    cwd: options.cwd ?? root,
    env: { ...process.env, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
  })
  const startedMs = performance.now()
  let stdout = ""
  let stderr = ""
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString()
  })
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString()
  })
  const ended = new Promise<Outcome & { ms: number }>((resolve) => {
    child.on("close", (code, signal) => {
      // A signal that ended it is shown as a shell would: as a number that no exit code of ours has.
      resolve({
        code: code ?? (signal === null ? -1 : -2),
        stdout,
        stderr,
        ms: performance.now() - startedMs,
      })
    })
  })
  programs.push(child)
  return { child, output: () => ({ stdout, stderr }), ended }
}

/** Waits until something is so; throws with `what` when it does not come. */
export async function until(
  what: string,
  test: () => boolean | Promise<boolean>,
  timeoutMs = 20_000,
): Promise<void> {
  const deadlineMs = performance.now() + timeoutMs
  while (!(await test())) {
    if (performance.now() > deadlineMs) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
