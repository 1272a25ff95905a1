/** Starting the bundled server as a child process: to check a model, and to serve. */
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import path from "node:path"
import type { CheckResult, ExamplesRequest, ExamplesResult } from "../store/bento.ts"
import { BentoError } from "../store/errors.ts"
import type { Context } from "./context.ts"

/** The server's entry in our package. */
export function serverEntry(runtimeDir: string): string {
  const entry = path.join(runtimeDir, "serve.js")
  if (existsSync(entry)) return entry
  throw new BentoError(
    "RUNTIME_MISSING",
    `the server that goes into images is not built: ${entry} does not exist`,
    {
      hint: "In a checkout: `npm run build`. If bentoctl was installed by npm, install it again.",
    },
  )
}

/** Loads a model in ONNX Runtime, in a process of its own: a graph that crashes it takes only that process along. */
export function modelChecker(context: Context): (file: string) => Promise<CheckResult> {
  return (file) =>
    askRuntime<CheckResult>(context, ["--check-model", file], (message) => ({ ok: false, message }))
}

/** Runs the examples of a model, likewise. */
export function examplesChecker(context: Context): (request: ExamplesRequest) => Promise<ExamplesResult> {
  return (request) =>
    askRuntime<ExamplesResult>(context, ["--check-examples", JSON.stringify(request)], (message) => ({
      ok: false,
      message,
      issues: [],
    }))
}

/** What the child writes on its descriptor 3; `crashed` when it ends without a word. */
function askRuntime<T>(
  context: Context,
  args: readonly string[],
  crashed: (message: string) => T,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const { signal } = context
    signal.throwIfAborted()
    const child = spawn(context.nodePath, [serverEntry(context.runtimeDir), ...args], {
      cwd: context.cwd,
      env: context.env,
      stdio: ["ignore", "pipe", "pipe", "pipe"],
      signal,
      killSignal: "SIGKILL",
    })
    let answer = ""
    let log = ""
    const [, stdout, stderr, result] = child.stdio
    for (const stream of [stdout, stderr]) {
      stream?.on("data", (chunk: Buffer) => {
        log = (log + chunk.toString()).slice(-4000)
      })
    }
    // The cast: file descriptor 3 is a pipe that the child writes to.
    ;(result as NodeJS.ReadableStream).on("data", (chunk: Buffer) => {
      answer += chunk.toString()
    })
    child.on("error", (error) => {
      reject(signal.aborted ? (signal.reason as Error) : error)
    })
    child.on("close", (code, killedBy) => {
      if (signal.aborted) reject(signal.reason as Error)
      else resolve(readAnswer<T>(answer) ?? crashed(howItEnded(code, killedBy, log)))
    })
  })
}

function readAnswer<T>(text: string): T | undefined {
  try {
    // The cast: the server bundle of this very version wrote it.
    return JSON.parse(text) as T
  } catch {
    return undefined
  }
}

function howItEnded(code: number | null, signal: string | null, log: string): string {
  const lastLine = log.trim().split("\n").at(-1) ?? ""
  const how = signal === null ? `ended with code ${code}` : `was ended by ${signal}`
  return `ONNX Runtime's process ${how}${lastLine === "" ? "" : `: ${lastLine}`}`
}
