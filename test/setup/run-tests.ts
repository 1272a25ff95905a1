/**
 * `npm test [-- FILTER...] [--test-name-pattern=...]`: everything that says whether the product works.
 *
 * Without a filter: `npm run check` (lint, types, format), a Docker Engine and a base image, the unit tests side by
 * side, then test/e2e one file at a time, as they share the engine. A filter is a test file, a folder, or a part of a
 * path. BENTOCTL_TEST_ENGINE=skip leaves out what needs an engine, and says so.
 */

import { spawn } from "node:child_process"
import { globSync, statSync } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import { availableParallelism, tmpdir } from "node:os"
import { join, relative, resolve, sep } from "node:path"
import { run as runTests } from "node:test"
import { ensureBaseImage, presentBaseImage, REAL_BASE } from "./base-image.ts"
import { ensureEngine, probeEngine } from "./engine.ts"
import { explain } from "./process.ts"
import { createReport } from "./report.ts"
import type { Report } from "./report.ts"

const root = resolve(import.meta.dirname, "../..")
const print = (text: string): void => void process.stdout.write(`${text}\n`)
const log = (line: string): void => print(`  ${line}`)

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

/** Gets engine and base image, and tells the tests by the environment. False when what needs them cannot run. */
async function prepareEngine(report: Report): Promise<boolean> {
  const startedMs = performance.now()
  const name = "a Docker Engine with a base image"
  if (process.env["BENTOCTL_TEST_ENGINE"] === "skip") {
    report.skip(name, "BENTOCTL_TEST_ENGINE=skip: test/e2e is left out")
    return false
  }
  const failed = (reason: string): false => {
    report.fail(
      name,
      performance.now() - startedMs,
      `${reason}\n  -> BENTOCTL_TEST_ENGINE=skip npm test leaves out the tests that need one.`,
    )
    return false
  }
  const engine = await ensureEngine({ log })
  if (!engine.available) return failed(engine.reason ?? "No Docker Engine answers")
  try {
    const base = await ensureBaseImage({ log })
    if (base.image !== REAL_BASE) process.env["BENTOCTL_BASE_IMAGE"] = base.image
  } catch (error) {
    return failed(explain(error))
  }
  report.pass(name, performance.now() - startedMs)
  return true
}

/** What the tests see of the machine: no settings of the user's own, and never their ~/bentoml. */
function isolateEnvironment(home: string): void {
  for (const name of Object.keys(process.env)) {
    if (/^(BENTOML_|PORT$|FORCE_COLOR$|NODE_OPTIONS$|NODE_TEST_CONTEXT$)/.test(name)) delete process.env[name]
  }
  process.env["BENTOML_HOME"] = home
  process.env["ORT_DISABLE_TELEMETRY"] = "1"
}

async function runFiles(
  files: string[],
  concurrency: number,
  args: Arguments,
  report: Report,
): Promise<void> {
  if (files.length === 0) return
  const stream = runTests({
    files: files.map((file) => join(root, file)),
    cwd: root,
    concurrency,
    timeout: 600_000,
    ...(args.namePattern === undefined ? {} : { testNamePatterns: [args.namePattern] }),
  })
  for await (const event of stream) report.event(event)
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
  const everything = args.filters.length === 0
  const report = createReport({ print, root })
  const home = await mkdtemp(join(tmpdir(), "bentoctl-test-home-"))
  isolateEnvironment(home)
  try {
    if (everything) await check(report)
    let engine = true
    if (everything || e2e.length > 0) engine = await prepareEngine(report)
    else if ((await probeEngine()).state === "answers") await offerBaseImage()
    await runFiles(unit, Math.max(2, availableParallelism()), args, report)
    if (engine) await runFiles(e2e, 1, args, report)
    else for (const file of e2e) report.skip(file, "no Docker Engine")
  } finally {
    await rm(home, { recursive: true, force: true })
  }
  return report.finish() ? 0 : 1
}

/** Single unit tests that ask for an engine find the base image too; making one is left to the whole run. */
async function offerBaseImage(): Promise<void> {
  const base = await presentBaseImage()
  if (base !== undefined && base.standIn) process.env["BENTOCTL_BASE_IMAGE"] = base.image
}

if (process.argv[1] === import.meta.filename) process.exitCode = await main()
