/** Child processes for the set-up: run one to its end with a time limit, and say in one message why it failed. */

import { spawn } from "node:child_process"
import type { SpawnOptions } from "node:child_process"

export type Log = (line: string) => void

/** A step of the set-up that failed, with the way out (empty when the message holds it). Printed without a stack. */
export class SetupError extends Error {
  readonly hint: string

  constructor(message: string, hint: string, options: { cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = "SetupError"
    this.hint = hint
  }
}

/** The message of a thrown thing, with its hint on the next line. */
export function explain(error: unknown): string {
  if (error instanceof SetupError && error.hint !== "") return `${error.message}\n  -> ${error.hint}`
  return error instanceof Error ? error.message : String(error)
}

export interface RunOptions {
  readonly timeoutMs?: number
  readonly env?: NodeJS.ProcessEnv
  readonly cwd?: string
  readonly signal?: AbortSignal
  /** In a process group of its own: Ctrl-C at the terminal does not reach it. */
  readonly detached?: boolean
  /** Called with each line of both streams as it comes. */
  readonly onLine?: Log
}

export interface RunResult {
  /** The exit code; 127 when there is no such program, 124 when the time limit ended it, 128 + n after a signal. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
  readonly timedOut: boolean
  readonly missing: boolean
}

/** Runs a program to its end. Never throws: what went wrong is in the result. */
export function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  return new Promise((resolve) => {
    const spawnOptions: SpawnOptions = {
      stdio: ["ignore", "pipe", "pipe"],
      detached: options.detached ?? false,
    }
    if (options.env !== undefined) spawnOptions.env = options.env
    if (options.cwd !== undefined) spawnOptions.cwd = options.cwd
    const child = spawn(program, [...args], spawnOptions)
    let stdout = ""
    let stderr = ""
    let timedOut = false
    const stop = (): void => void child.kill("SIGTERM")
    const limit = options.timeoutMs
    const timer =
      limit === undefined
        ? undefined
        : setTimeout(() => {
            timedOut = true
            child.kill("SIGTERM")
            setTimeout(() => child.kill("SIGKILL"), 3000).unref()
          }, limit)
    if (options.signal?.aborted === true) stop()
    options.signal?.addEventListener("abort", stop, { once: true })
    const end = (result: RunResult): void => {
      clearTimeout(timer)
      options.signal?.removeEventListener("abort", stop)
      resolve(result)
    }
    const lines = options.onLine === undefined ? undefined : lineSplitter(options.onLine)
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      stdout += text
      lines?.(text)
    })
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      stderr += text
      lines?.(text)
    })
    child.once("error", (error: NodeJS.ErrnoException) => {
      const missing = error.code === "ENOENT"
      end({ code: missing ? 127 : 126, stdout, stderr: error.message, timedOut: false, missing })
    })
    child.once("close", (code, signal) => {
      const shown = timedOut ? 124 : (code ?? (signal === "SIGINT" ? 130 : 143))
      end({ code: shown, stdout, stderr, timedOut, missing: false })
    })
  })
}

function lineSplitter(onLine: Log): (text: string) => void {
  let rest = ""
  return (text) => {
    const parts = (rest + text).split(/\r?\n/)
    rest = parts.pop() ?? ""
    for (const line of parts) onLine(line)
  }
}

/** The last lines of a text that are not empty, indented, to be shown under a message. */
export function tail(text: string, count = 12): string {
  const lines = text
    .split(/\r?\n/)
    .map((line) => line.trimEnd())
    .filter((line) => line !== "")
  return lines
    .slice(-count)
    .map((line) => `    ${line}`)
    .join("\n")
}

/** `45 ms`, `1.4 s`, `12 s`, `2 min 05 s`. */
export function formatDuration(ms: number): string {
  if (ms < 999.5) return `${Math.round(ms)} ms`
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  if (seconds < 120) return `${seconds} s`
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`
}

/** `812 B`, `44.0 KiB`, `229.4 MiB`. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`
  const units = ["KiB", "MiB", "GiB", "TiB"]
  let value = bytes / 1024
  let unit = 0
  while (value >= 1023.95 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${value.toFixed(1)} ${units[unit]}`
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
