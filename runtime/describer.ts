/**
 * The process that describes a service to the command line, which never runs a user's code itself: reads a ServeSpec
 * from its standard input, imports the service, writes a DescribeResult to descriptor 3.
 *
 * Whoever starts it may not know yet of what: all that it needs is loaded before the spec is waited for, and nothing that only a
 * server needs.
 */
import { readFileSync, writeSync } from "node:fs"
import type { DescribeResult, ServeSpec } from "../store/bento.ts"
import { describe } from "./describe.ts"
import { exit } from "./exit.ts"
import type { SpecModel } from "./load.ts"
import { locate } from "./locate.ts"
import { createLog, errorFields } from "./log.ts"
import { resolveOwnRuntime } from "./own-runtime.ts"
import { loadTypeStripper, watchImports } from "./prepared.ts"
import type { SignatureSpec } from "./runner.ts"

/** Node's own code for a module that waits for ever; Node would print a warning that points into this file. */
const UNSETTLED = 13

// What the user's module prints is for people; the answer has its own descriptor.
process.stdout.write = process.stderr.write.bind(process.stderr)
// That nobody reads it any more is no reason to stop.
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {})
const log = createLog({
  write: (line) => process.stderr.write(line),
  now: () => new Date(),
  format: process.env["BENTOCTL_LOG_FORMAT"] === "json" ? "json" : "text",
})
process.on("unhandledRejection", (error) => {
  log.error("a promise was rejected and nobody handled it", errorFields(error))
})
process.once("beforeExit", () => process.exit(UNSETTLED))

resolveOwnRuntime()
loadTypeStripper()
const text = readFileSync(0, "utf8")
// Whoever was to write it ended first.
if (text === "") exit(1)
await main(JSON.parse(text) as ServeSpec) // made by our own command line

async function main(spec: ServeSpec): Promise<void> {
  process.chdir(spec.srcDir)
  const imports = watchImports(spec.srcDir)
  const [file] = spec.service?.split(":") ?? []
  const onExit = (code: number): void => {
    const message =
      code === UNSETTLED
        ? "the module never finishes loading: an await at its top level is never settled"
        : `the module ended the process (exit ${code})`
    const result: DescribeResult = { ok: false, message, ...(file === undefined ? {} : { file }) }
    writeSync(3, JSON.stringify(result))
    process.exitCode = 1
  }
  process.on("exit", onExit)
  process.on("uncaughtException", (error) => {
    process.removeListener("exit", onExit)
    report({ ok: false, ...locate(error, spec) })
  })
  const result = await describe(spec, loadSignatures)
  process.removeListener("exit", onExit)
  const { files, prepared } = imports
  report(result.ok ? { ...result, files: files(), prepared: prepared() } : result)
}

/** The exit status says the same as its `ok`. */
function report(result: DescribeResult): never {
  writeSync(3, JSON.stringify(result))
  exit(result.ok ? 0 : 1)
}

async function loadSignatures(model: SpecModel): Promise<Readonly<Record<string, SignatureSpec>>> {
  const [{ plainRunner }, { DEFAULT_RUNNER_CONFIG }] = await Promise.all([
    import("./plain-runner.ts"),
    import("./runner.ts"),
  ])
  const runner = plainRunner(model.name, model, DEFAULT_RUNNER_CONFIG, log)
  try {
    await runner.start()
    return runner.signatures
  } finally {
    await runner.close()
  }
}
