/**
 * `npm test [-- FILTER...] [--test-name-pattern=...]`: everything that says whether the product works.
 *
 * Two lines of work go side by side, so that one works while the other waits for a disk, a network or a clock:
 *
 * 1. what needs no engine: `npm run check` (lint, types, format), then the unit tests;
 * 2. what shares the Docker Engine: the engine and a base image, then test/e2e one file at a time, because these
 *    tests look at the engine as a whole (what a build leaves there, what `image prune` finds, the build cache), build
 *    at its BuildKit, or make images of the same name.
 *
 * The few files in `BESIDE` do none of this; the line that is done first goes on with them.
 *
 * A filter is a test file, a folder, or a part of a path; with one there is no `npm run check`.
 * BENTOCTL_TEST_ENGINE=skip leaves out what needs an engine, and says so.
 */

import { spawn } from "node:child_process"
import { globSync, statSync } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import { availableParallelism, tmpdir } from "node:os"
import { join, relative, resolve, sep } from "node:path"
import { run as runTests } from "node:test"
import { ensureBaseImage, REAL_BASE } from "./base-image.ts"
import { ensureEngine } from "./engine.ts"
import { watchLeftovers } from "./leftovers.ts"
import { explain } from "./process.ts"
import { createReport } from "./report.ts"
import type { Report } from "./report.ts"

const root = resolve(import.meta.dirname, "../..")
const print = (text: string): void => void process.stdout.write(`${text}\n`)
const log = (line: string): void => print(`  ${line}`)

/** It watches a container of its own for a minute by the clock, and starts at once: it needs no processor. */
const WAITING = "test/e2e/quiet.test.ts"

/** They load images of their own names, which no step has to run for, and look at nothing else in the engine. */
const BESIDE = ["ci", "containerize", "push", "selftest"].map((name) => `test/e2e/${name}.test.ts`)

/** The test files that the filters name, unit tests first; a filter that names none is an error of the caller. */
export function selectFiles(
  all: readonly string[],
  filters: readonly string[],
): { unit: string[]; e2e: string[]; unmatched: string[] } {
  const unmatched: string[] = []
  const chosen = new Set<string>(filters.length === 0 ? all : [])
  for (const filter of filters) {
    const clean = filter.replace(/^\.\//, "").replace(/\/$/, "")
    const exact = all.filter((file) => file === clean || file.startsWith(`${clean}/`))
    const found = exact.length > 0 ? exact : all.filter((file) => file.includes(clean))
    if (found.length === 0) unmatched.push(filter)
    for (const file of found) chosen.add(file)
  }
  const files = [...chosen].sort()
  const isE2e = (file: string): boolean => file.startsWith("test/e2e/")
  return { unit: files.filter((file) => !isE2e(file)), e2e: files.filter(isE2e), unmatched }
}

function testFiles(): string[] {
  const skipped = /^test\/(fixtures|planted|golden)\//
  return globSync("test/**/*.test.ts", { cwd: root })
    .map((file) => file.split(sep).join("/"))
    .filter((file) => !skipped.test(file))
    .sort()
}

/** `npm run check`, its output shown only when it fails. */
async function check(report: Report): Promise<void> {
  const startedMs = performance.now()
  let output = ""
  const code = await new Promise<number>((done) => {
    const child = spawn("npm", ["run", "-s", "check"], { cwd: root, stdio: ["ignore", "pipe", "pipe"] })
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (output += text))
    }
    child.once("error", () => done(127))
    child.once("close", (exitCode) => done(exitCode ?? 1))
  })
  const durationMs = performance.now() - startedMs
  const name = "npm run check (lint, types, format)"
  if (code === 0) report.pass(name, durationMs)
  else report.fail(name, durationMs, output)
}

interface Engine {
  /** Tells the tests of the base image. */
  readonly env: NodeJS.ProcessEnv
  readonly removeLeftovers: () => Promise<void>
}

/** Gets engine and base image. Null when what needs them cannot run. */
async function prepareEngine(report: Report): Promise<Engine | null> {
  const startedMs = performance.now()
  const name = "a Docker Engine with a base image"
  if (process.env["BENTOCTL_TEST_ENGINE"] === "skip") {
    report.skip(name, "BENTOCTL_TEST_ENGINE=skip: test/e2e is left out")
    return null
  }
  const failed = (reason: string): null => {
    report.fail(
      name,
      performance.now() - startedMs,
      `${reason}\n  -> BENTOCTL_TEST_ENGINE=skip npm test leaves out the tests that need one.`,
    )
    return null
  }
  const engine = await ensureEngine({ log })
  if (!engine.available) return failed(engine.reason ?? "No Docker Engine answers")
  try {
    const { image } = await ensureBaseImage({ log })
    report.pass(name, performance.now() - startedMs)
    const env = { ...process.env, ...(image !== REAL_BASE && { BENTOCTL_BASE_IMAGE: image }) }
    return { env, removeLeftovers: await watchLeftovers() }
  } catch (error) {
    return failed(explain(error))
  }
}

/** What the tests see of the machine: no settings of the user's own, and never their ~/bentoml. */
function isolateEnvironment(home: string): void {
  for (const name of Object.keys(process.env)) {
    if (/^(BENTOML_|PORT$|FORCE_COLOR$|NODE_OPTIONS$|NODE_TEST_CONTEXT$)/.test(name)) delete process.env[name]
  }
  process.env["BENTOML_HOME"] = home
  process.env["ORT_DISABLE_TELEMETRY"] = "1"
  // Hundreds of processes are started from the same sources: the first one compiles them for all.
  process.env["NODE_COMPILE_CACHE"] = join(home, "compiled")
}

interface Run extends Arguments {
  readonly report: Report
  /** Nothing was filtered out. */
  readonly everything: boolean
  readonly unit: readonly string[]
  readonly e2e: readonly string[]
}

async function runFiles(
  files: readonly string[],
  { namePattern, report }: Run,
  { concurrency, env = process.env }: { concurrency: number; env?: NodeJS.ProcessEnv },
): Promise<void> {
  if (files.length === 0) return
  const stream = runTests({
    files: files.map((file) => join(root, file)),
    cwd: root,
    concurrency,
    env,
    timeout: 600_000,
    ...(namePattern === undefined ? {} : { testNamePatterns: [namePattern] }),
  })
  for await (const event of stream) report.event(event)
}

/** The first line of work. One processor is left to the second, where there is one. */
async function runWithoutEngine(run: Run): Promise<void> {
  if (run.everything) await check(run.report)
  const left = run.e2e.length > 0 ? 1 : 0
  await runFiles(run.unit, run, { concurrency: Math.max(2, availableParallelism()) - left })
}

/** Both lines of work; the one that is done first goes on with what may run beside the other. */
async function runBothLines(run: Run): Promise<void> {
  const { e2e } = run
  const preparing = e2e.length === 0 ? null : prepareEngine(run.report)
  /** Takes one file after the other until none is left; two may take from the same list. */
  const runEach = async (files: string[]): Promise<void> => {
    const engine = await preparing
    for (let file = files.shift(); file !== undefined; file = files.shift()) {
      if (engine === null) run.report.skip(file, "no Docker Engine")
      else await runFiles([file], run, { concurrency: 1, env: engine.env })
    }
  }
  const beside = e2e.filter((file) => BESIDE.includes(file))
  await Promise.all([
    runWithoutEngine(run).then(() => runEach(beside)),
    runEach(e2e.filter((file) => file !== WAITING && !BESIDE.includes(file))).then(() => runEach(beside)),
    runEach(e2e.filter((file) => file === WAITING)),
  ])
  await (await preparing)?.removeLeftovers()
}

interface Arguments {
  readonly filters: readonly string[]
  readonly namePattern: string | undefined
}

export function parseArguments(args: readonly string[], cwd: string): Arguments | { error: string } {
  const filters: string[] = []
  let namePattern: string | undefined
  for (const arg of args) {
    if (arg.startsWith("--test-name-pattern=")) namePattern = arg.slice("--test-name-pattern=".length)
    else if (arg.startsWith("-"))
      return { error: `unknown option ${arg}; there is --test-name-pattern=PATTERN` }
    else {
      const inside = relative(root, resolve(cwd, arg))
      const exists = statSync(resolve(cwd, arg), { throwIfNoEntry: false }) !== undefined
      filters.push(exists && !inside.startsWith("..") ? inside.split(sep).join("/") : arg)
    }
  }
  return { filters, namePattern }
}

async function main(): Promise<number> {
  const args = parseArguments(process.argv.slice(2), process.cwd())
  if ("error" in args) {
    process.stderr.write(`npm test: ${args.error}\n`)
    return 2
  }
  const { unit, e2e, unmatched } = selectFiles(testFiles(), args.filters)
  if (unmatched.length > 0) {
    process.stderr.write(`npm test: no test file matches ${unmatched.join(", ")}\n`)
    return 2
  }
  const report = createReport({ print, root })
  const run: Run = { ...args, report, everything: args.filters.length === 0, unit, e2e }
  const home = await mkdtemp(join(tmpdir(), "bentoctl-test-home-"))
  isolateEnvironment(home)
  try {
    await runBothLines(run)
  } finally {
    await rm(home, { recursive: true, force: true })
  }
  return report.finish() ? 0 : 1
}

if (process.argv[1] === import.meta.filename) process.exitCode = await main()
