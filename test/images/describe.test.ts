import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { PassThrough } from "node:stream"
import { text } from "node:stream/consumers"
import { after, before, describe, test } from "node:test"
import { describeService, startDescriber } from "../../images/describe.ts"
import type { DescribeOptions } from "../../images/describe.ts"
import { BentoError } from "../../store/errors.ts"
import type { ErrorCode } from "../../store/errors.ts"
import { fakeRuntime, temporaryFolder, writeFiles } from "./support.ts"

const { folder, remove } = await temporaryFolder()
after(remove)
let runtimeDir: string
before(async () => {
  runtimeDir = await fakeRuntime(folder)
})
let count = 0

async function describing(code: string, more: Partial<DescribeOptions> = {}) {
  const srcDir = path.join(folder, `src${count++}`)
  await writeFiles(srcDir, { "service.ts": code })
  const spec = { name: "x", version: null, service: "service.ts:svc", srcDir, models: [] }
  return describeService({ spec, runtimeDir, nodePath: process.execPath, env: process.env, ...more })
}

const invalid =
  (pattern: RegExp, code: ErrorCode = "SERVICE_INVALID") =>
  (error: unknown) =>
    error instanceof BentoError && error.code === code && pattern.test(`${error.message}\n${error.hint}`)

/** Whether a process lives; one that nobody has buried yet does not. */
function lives(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}

describe("a service is described", () => {
  test("in another process, which gets our environment and may print what it likes", async () => {
    const stderr = new PassThrough()
    const { service } = await describing(
      `console.log("to stdout")
       console.error("to stderr")
       export const svc = { name: "pid-" + process.pid + "-" + process.env.GREETING + process.env.ORT_DISABLE_TELEMETRY }`,
      { stderr, env: { ...process.env, GREETING: "hello" } },
    )
    stderr.end()
    assert.match(service.name, /^pid-\d+-hello1$/)
    assert.notEqual(service.name, `pid-${process.pid}-hello1`)
    assert.match(await text(stderr), /to stdout[^]*to stderr|to stderr[^]*to stdout/)
  })

  test("however long the description is", async () => {
    const { service } = await describing(`export const svc = { name: "x".repeat(3_000_000) }`)
    assert.equal(service.name.length, 3_000_000)
  })

  test("as broken with the user's file and line, and no stack of ours", async () => {
    await assert.rejects(describing(`throw new Error("no luck")`), (error) => {
      assert.ok(invalid(/service\.ts:svc cannot be used:\n {2}service\.ts:3: no luck/)(error))
      assert.doesNotMatch((error as Error).message, /at .*describe/)
      return true
    })
  })

  test("as broken when it ends the process or is killed", async () => {
    await assert.rejects(describing("process.exit(0)"), invalid(/ended the process \(exit code 0\)/))
    await assert.rejects(
      describing(
        "process.kill(process.pid, 'SIGSEGV'); await new Promise(() => setInterval(() => {}, 1000))",
      ),
      invalid(/ended the process \(signal SIGSEGV\)/),
    )
  })

  test("within its time, after which it and all that it started are ended", async () => {
    const pidFile = path.join(folder, "pids")
    const startedMs = performance.now()
    await assert.rejects(
      describing(
        `import { spawn } from "node:child_process"
         import { writeFileSync } from "node:fs"
         const child = spawn("sleep", ["60"])
         writeFileSync(${JSON.stringify(pidFile)}, process.pid + " " + child.pid)
         for (;;) {}`,
        { timeoutMs: 3000 },
      ),
      invalid(/did not end within 3 s/),
    )
    assert.ok(performance.now() - startedMs < 30_000)
    const pids = (await readFile(pidFile, "utf8")).split(" ").map(Number)
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.deepEqual(pids.map(lives), [false, false])
  })

  test("without waiting for what it left running", async () => {
    const startedMs = performance.now()
    await describing(`import { spawn } from "node:child_process"
      spawn("sleep", ["60"], { stdio: "inherit" })
      export const svc = { name: "a" }`)
    assert.ok(performance.now() - startedMs < 30_000)
  })

  test("until it is aborted, at once", async () => {
    const abort = new AbortController()
    setTimeout(() => abort.abort(new Error("stop")), 300)
    const startedMs = performance.now()
    await assert.rejects(describing("for (;;) {}", { signal: abort.signal }), /^Error: stop$/)
    assert.ok(performance.now() - startedMs < 30_000)
  })

  test("by a process that was started before; without a word from us it ends", async () => {
    const given = { runtimeDir, nodePath: process.execPath, env: process.env }
    const describer = startDescriber(given)
    const code = `export const svc = { name: "pid-" + process.pid }`
    assert.equal((await describing(code, { describer })).service.name, `pid-${describer.child.pid}`)
    const unused = startDescriber(given)
    unused.stop()
    unused.child.stdout?.resume()
    unused.child.stderr?.resume()
    assert.equal((await unused.ended).killedBy, "SIGKILL")
    const left = startDescriber(given)
    left.child.stdin?.destroy()
    left.child.stdout?.resume()
    left.child.stderr?.resume()
    assert.notEqual((await left.ended).code, 0)
  })

  test("only where the runtime is built", async () => {
    await assert.rejects(describing("", { runtimeDir: folder }), invalid(/is not built/, "RUNTIME_MISSING"))
  })
})
