/** What `npm test` prints: one line per file, each failure in full, the slowest tests, and the sum as the last line. */

import type { TestEvent } from "node:test/reporters"
import { relative } from "node:path"
import { inspect, stripVTControlCharacters } from "node:util"
import { formatDuration } from "./process.ts"

export interface Report {
  pass(name: string, durationMs: number): void
  fail(name: string, durationMs: number, output: string): void
  skip(name: string, reason: string): void
  event(event: TestEvent): void
  /** Prints the end; true when nothing failed and something passed. */
  finish(): boolean
}

interface Timed {
  readonly name: string
  readonly durationMs: number
}

interface FileState {
  /** The names of the suites and tests that are open, outermost first. */
  readonly open: string[]
  output: string
  passed: number
  failed: number
  skipped: number
}

type ResultEvent = Extract<TestEvent, { type: "test:pass" | "test:fail" }>

export function createReport(options: {
  print: (text: string) => void
  root: string
  now?: () => number
}): Report {
  const { print, root } = options
  const now = options.now ?? (() => performance.now())
  const startedMs = now()
  const timed: Timed[] = []
  const failures: (() => string)[] = []
  const files = new Map<string, FileState>()
  const sum = { passed: 0, failed: 0, skipped: 0 }

  const fileState = (path: string): FileState => {
    const known = files.get(path)
    if (known !== undefined) return known
    const fresh: FileState = { open: [], output: "", passed: 0, failed: 0, skipped: 0 }
    files.set(path, fresh)
    return fresh
  }
  const count = (state: FileState | undefined, what: "passed" | "failed" | "skipped"): void => {
    sum[what] += 1
    if (state !== undefined) state[what] += 1
  }

  const onResult = (event: ResultEvent): void => {
    const { data } = event
    const path = data.file ?? data.name
    const state = fileState(path)
    const where = relative(root, path)
    const names = [...state.open.slice(0, data.nesting), data.name].filter((name) => name !== path)
    const name = [where, ...names].join(" > ")
    state.open.length = Math.min(state.open.length, data.nesting)
    if (names.length === 0) return onWholeFile(event, state)
    // A suite is a frame, unless it fails by itself (in a hook, or as it is declared).
    const error = event.type === "test:fail" ? event.data.details.error : undefined
    const failedInside = failureType(error) === "subtestsFailed"
    if (failedInside || (data.details.type === "suite" && event.type === "test:pass")) return
    if ((data.skip ?? false) !== false || (data.todo ?? false) !== false) return count(state, "skipped")
    timed.push({ name, durationMs: data.details.duration_ms })
    if (event.type === "test:pass") return count(state, "passed")
    count(state, "failed")
    const line = data.line === undefined ? "" : `:${data.line}`
    failures.push(() => `${name}\n    at ${where}${line}\n${indent(describeError(error))}`)
  }

  /** A file reports itself as a test only when it holds none: it is empty, or ended before its tests were known. */
  const onWholeFile = (event: ResultEvent, state: FileState): void => {
    const where = relative(root, event.data.name)
    if (event.type === "test:pass") return print(`empty  ${where}`)
    count(state, "failed")
    print(`not ok ${where} (${formatDuration(event.data.details.duration_ms)})`)
    const error: unknown = event.data.details.error
    const exitCode =
      typeof error === "object" && error !== null && "exitCode" in error ? error.exitCode : undefined
    const end =
      exitCode === undefined ? describeError(error) : `the file ended with exit code ${inspect(exitCode)}`
    // Its output may still be on its way.
    failures.push(() => `${where}\n${indent(`${end}\n${lastLines(state.output, 40)}`)}`)
  }

  const onFile = (path: string, durationMs: number): void => {
    const state = fileState(path)
    const parts = [`${state.passed} passed`]
    if (state.failed > 0) parts.push(`${state.failed} failed`)
    if (state.skipped > 0) parts.push(`${state.skipped} skipped`)
    const mark = state.failed > 0 ? "not ok" : "ok    "
    print(`${mark} ${relative(root, path)}: ${parts.join(", ")} (${formatDuration(durationMs)})`)
    if (state.failed > 0 && state.output.trim() !== "") print(indent(lastLines(state.output, 40)))
  }

  return {
    pass(name, durationMs) {
      count(undefined, "passed")
      print(`ok     ${name} (${formatDuration(durationMs)})`)
    },
    fail(name, durationMs, output) {
      count(undefined, "failed")
      failures.push(() => `${name}\n${indent(output.trimEnd())}`)
      print(`not ok ${name} (${formatDuration(durationMs)})`)
    },
    skip(name, reason) {
      count(undefined, "skipped")
      print(`skip   ${name}: ${reason}`)
    },
    event(event) {
      if (event.type === "test:start") {
        const state = fileState(event.data.file ?? event.data.name)
        state.open.length = Math.min(state.open.length, event.data.nesting)
        state.open[event.data.nesting] = event.data.name
      } else if (event.type === "test:pass" || event.type === "test:fail") {
        onResult(event)
      } else if (event.type === "test:stdout" || event.type === "test:stderr") {
        if (event.data.file !== undefined) fileState(event.data.file).output += event.data.message
      } else if (event.type === "test:summary" && event.data.file !== undefined) {
        onFile(event.data.file, event.data.duration_ms)
      }
    },
    finish() {
      if (failures.length > 0) {
        print(`\nFailures:\n`)
        failures.forEach((failure, index) => print(`${index + 1}. ${failure()}\n`))
      }
      const slowest = timed.toSorted((a, b) => b.durationMs - a.durationMs).slice(0, 8)
      if (slowest.length > 0) print("\nSlowest tests:")
      for (const { name, durationMs } of slowest) {
        print(`  ${formatDuration(durationMs).padStart(12)}  ${name}`)
      }
      print(`\nTotal time: ${formatDuration(now() - startedMs)}`)
      if (sum.passed + sum.failed === 0) print("No test ran.")
      print(`${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`)
      return sum.failed === 0 && sum.passed > 0
    },
  }
}

function failureType(error: unknown): unknown {
  return typeof error === "object" && error !== null && "failureType" in error ? error.failureType : undefined
}

/** The error that the test itself threw (Node wraps it in one of its own), without the frames of Node's own files. */
function describeError(error: unknown): string {
  const thrown = error instanceof Error && error.cause !== undefined ? error.cause : error
  return firstLines(stripVTControlCharacters(errorText(thrown)), 60)
}

function errorText(error: unknown): string {
  if (!(error instanceof Error)) return typeof error === "string" ? error : inspect(error, { depth: 4 })
  const stack = error.stack ?? `${error.name}: ${error.message}`
  const shown = stack
    .split("\n")
    .filter((line) => !/^\s+at .*\(?node:/.test(line))
    .join("\n")
    .replaceAll("file://", "")
  return error.cause === undefined ? shown : `${shown}\ncaused by ${errorText(error.cause)}`
}

function indent(text: string): string {
  return text.replace(/^(?=.)/gm, "    ")
}

function firstLines(text: string, count: number): string {
  const lines = text.trimEnd().split("\n")
  return lines.length <= count ? lines.join("\n") : [...lines.slice(0, count), "..."].join("\n")
}

function lastLines(text: string, count: number): string {
  const lines = text.trimEnd().split("\n")
  return lines.length <= count ? lines.join("\n") : ["...", ...lines.slice(-count)].join("\n")
}
