/**
 * What APIs a service has. The user's module is loaded in a child process, by the very bundle that will serve it, so
 * that user code never runs in the command line's process: it may print, throw, exit, or never end.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { getCompileCacheDir } from "node:module"
import path from "node:path"
import type { Readable } from "node:stream"
import { BentoError, IssueError } from "../store/errors.ts"
import type { DescribeResult, JsonObject, ServeSpec, ServiceInfo } from "../store/bento.ts"
import { groupStopper } from "./process-group.ts"

export interface DescribeOptions {
  readonly spec: ServeSpec
  readonly runtimeDir: string
  readonly nodePath: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly timeoutMs?: number | undefined
  /** Started before, and not used yet; without one, a new one. */
  readonly describer?: Describer | undefined
  readonly signal?: AbortSignal | undefined
  /** Gets what the user's module prints, from both of its streams. */
  readonly stderr?: NodeJS.WritableStream | undefined
  /** Called when the child has been started: for a tenth of a second this process has nothing to do. */
  readonly meanwhile?: (() => void) | undefined
  /** What to do where a package is not found. */
  readonly missingHint?: string | undefined
}

export interface Description {
  readonly service: ServiceInfo
  readonly openapi: JsonObject
  /** Files that loading the service read, relative to its folder; empty when the runtime does not tell. */
  readonly files: readonly string[]
  /** Files for the Bento's PREPARED_DIR: modules without their types. */
  readonly prepared: Readonly<Record<string, string>>
}

/** Of the runtime bundle: what runs it. No image needs it. */
export const DESCRIBER = "describer.js"

/** No service has a description this long; a module that writes to file descriptor 3 might. */
const MAX_RESULT_BYTES = 64 * 1024 * 1024

/** Loads the service and describes it. Throws SERVICE_INVALID with the user's own file and line. */
export async function describeService(options: DescribeOptions): Promise<Description> {
  const { spec, timeoutMs = 30_000 } = options
  const ended = await runChild(options, timeoutMs)
  const what = spec.service ?? "the models"
  if (ended.timedOut) {
    throw new BentoError("SERVICE_INVALID", `loading ${what} did not end within ${timeoutMs / 1000} s`, {
      hint: "A service file only declares: move what waits or loops into a handler.",
    })
  }
  const result = parseResult(ended.result)
  if (result === null) {
    const how = ended.killedBy === null ? `exit code ${ended.code}` : `signal ${ended.killedBy}`
    throw new BentoError("SERVICE_INVALID", `loading ${what} ended the process (${how})`, {
      hint: "What it printed stands above; a service file must not call process.exit().",
    })
  }
  if (!result.ok) {
    const { message, file, line, column } = result
    const issue = {
      message,
      ...(file === undefined ? {} : { file }),
      ...(line === undefined ? {} : { line }),
      ...(column === undefined ? {} : { column }),
    }
    const hint = message.includes("Cannot find package") ? options.missingHint : undefined
    const more = hint === undefined ? {} : { hint }
    throw new IssueError("SERVICE_INVALID", `${what} cannot be used:`, [issue], more)
  }
  const { service, openapi, files = [], prepared = {} } = result
  return {
    service,
    openapi,
    files,
    prepared: Object.fromEntries(Object.entries(prepared).filter(isPrepared)),
  }
}

/** The user's module can write to that descriptor too, and these become names of files. */
function isPrepared([name, text]: readonly [string, unknown]): boolean {
  return /^[0-9a-f]{64}\.js$/.test(name) && typeof text === "string"
}

interface Ended {
  readonly code: number | null
  readonly killedBy: string | null
  readonly timedOut: boolean
  readonly result: string
}

async function runChild(options: DescribeOptions, timeoutMs: number): Promise<Ended> {
  const { spec, signal, stderr } = options
  signal?.throwIfAborted()
  const { child, ended, stop } = options.describer ?? startDescriber(options)
  child.stdin?.end(JSON.stringify(spec))
  if (options.meanwhile !== undefined) setImmediate(options.meanwhile)
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk: Buffer) => stderr?.write(chunk))
  }
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    stop()
  }, timeoutMs)
  signal?.addEventListener("abort", stop)
  try {
    return { ...(await ended), timedOut }
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener("abort", stop)
    signal?.throwIfAborted()
  }
}

/** The child process, which starts while nobody knows yet what it is to describe: that takes a tenth of a second. */
export interface Describer {
  readonly child: ChildProcess
  readonly ended: Promise<Omit<Ended, "timedOut">>
  /** Ends it, and all that it started; nothing happens where it has ended. */
  readonly stop: () => void
}

/** Throws RUNTIME_MISSING. Who starts one stops it, or gives it to `describeService`. */
export function startDescriber(options: Pick<DescribeOptions, "runtimeDir" | "nodePath" | "env">): Describer {
  const { runtimeDir, nodePath, env } = options
  const entry = path.join(runtimeDir, DESCRIBER)
  if (!existsSync(entry)) {
    throw new BentoError("RUNTIME_MISSING", `the runtime bundle is not built: ${entry} does not exist`)
  }
  // Node calls taking types away by a function experimental, though not when it does so itself.
  const flags = ["--disable-warning=ExperimentalWarning"]
  const child = spawn(nodePath, [...flags, entry], {
    env: { ...env, ...compileCache(), ORT_DISABLE_TELEMETRY: "1" },
    stdio: ["pipe", "pipe", "pipe", "pipe"],
    // A group of its own: what the user's module starts is ended with it.
    detached: true,
  })
  const stop = groupStopper(child)
  // Where it has ended before it was told anything, that is said by how it ended.
  child.stdin.on("error", () => {})
  let result: Buffer[] = []
  let size = 0
  // File descriptor 3 is a pipe that only the child writes to.
  const answer = child.stdio[3] as Readable
  answer.on("data", (chunk: Buffer) => {
    size += chunk.length
    if (size > MAX_RESULT_BYTES) result = []
    else result.push(chunk)
  })
  const ended = new Promise<Omit<Ended, "timedOut">>((resolve, reject) => {
    child.on("error", reject)
    child.on("close", (code, killedBy) => {
      resolve({ code, killedBy, result: Buffer.concat(result).toString() })
    })
  })
  ended.catch(() => {}) // told where it is awaited
  return { child, ended, stop }
}

/** Our own cache of compiled code, if there is one, serves the child too: it halves the time to start it. */
function compileCache(): Readonly<Record<string, string>> {
  const dir = getCompileCacheDir()
  // What comes back is the folder of this version of Node.
  return dir === undefined ? {} : { NODE_COMPILE_CACHE: path.dirname(dir) }
}

function parseResult(text: string): DescribeResult | null {
  try {
    // The bundle of this very version wrote it; a module that writes there too makes it no JSON.
    return JSON.parse(text) as DescribeResult
  } catch {
    return null
  }
}
