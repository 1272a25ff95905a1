/** The server as a process: with real models in ONNX Runtime, real signals and a real port. */
import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import net from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"
import { isReady } from "../../runtime/probe.ts"
import type { CheckResult, DescribeResult, ServeSpec } from "../../store/bento.ts"
import { preparedName } from "../../store/prepared.ts"

const root = path.resolve(import.meta.dirname, "../..")
const folder = await mkdtemp(path.join(tmpdir(), "bentoctl-serve-"))
const children: ChildProcess[] = []
after(async () => {
  for (const child of children) child.kill("SIGKILL")
  await rm(folder, { recursive: true, force: true })
})

/** A model folder as a store has it, around an `.onnx` file. */
async function modelFolder(onnx: string, name: string): Promise<{ tag: string; dir: string }> {
  const dir = path.join(folder, "models", name, "v1")
  await mkdir(dir, { recursive: true })
  await cp(onnx, path.join(dir, "saved_model.onnx"))
  const golden = path.join(root, "test/fixtures/bentoml-home/models/iris_sklearn/mox5xxxfsccawax4/model.yaml")
  const manifest = (await readFile(golden, "utf8"))
    .replace(/^name: .*$/m, `name: ${name}`)
    .replace(/^version: .*$/m, "version: v1")
  await writeFile(path.join(dir, "model.yaml"), manifest)
  return { tag: `${name}:v1`, dir }
}

async function sources(files: Record<string, string>): Promise<string> {
  const srcDir = await mkdtemp(path.join(folder, "src-"))
  for (const [name, text] of Object.entries(files)) await writeFile(path.join(srcDir, name), text)
  return srcDir
}

const SLOW = `
import { api, json, service, text } from "bentoctl/runtime"
export const svc = service({
  name: "slow",
  apis: [
    api({
      name: "wait",
      input: json<{ ms: number }>(),
      output: json(),
      handler: async ({ ms }) => {
        await new Promise((resolve) => setTimeout(resolve, ms))
        return { waited: ms }
      },
    }),
    api({
      name: "crash",
      input: text(),
      output: text(),
      handler: (x) => {
        setTimeout(() => {
          throw new Error("nobody catches")
        })
        return x
      },
    }),
    api({
      name: "careless",
      input: text(),
      output: text(),
      handler: (x) => {
        void Promise.reject(new Error("nobody listens"))
        return process.env["ORT_DISABLE_TELEMETRY"] + x
      },
    }),
  ],
})
`
const slowSpec = async (): Promise<ServeSpec> => ({
  name: "slow",
  version: "v1",
  service: "service.ts:svc",
  srcDir: await sources({ "service.ts": SLOW }),
  models: [],
})

interface Running {
  readonly child: ChildProcess
  readonly port: number
  readonly url: string
  /** Both streams, as far as they have come. */
  readonly output: () => string
  readonly exit: Promise<number | string | null>
  readonly ready: () => Promise<void>
}

function program(
  file: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Omit<Running, "port" | "url" | "ready"> {
  const child = spawn(process.execPath, [path.join(root, "runtime", file), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  })
  children.push(child)
  let output = ""
  child.stdout?.on("data", (chunk: Buffer) => (output += chunk.toString()))
  child.stderr?.on("data", (chunk: Buffer) => (output += chunk.toString()))
  const exit = new Promise<number | string | null>((resolve) =>
    child.on("close", (code, signal) => resolve(code ?? signal)),
  )
  return { child, output: () => output, exit }
}

async function serve(
  spec: ServeSpec,
  env?: Record<string, string>,
  args: readonly string[] = [],
): Promise<Running> {
  const port = await freePort()
  const running = program(
    "serve.ts",
    ["--spec", JSON.stringify(spec), "--port", `${port}`, "--host", "127.0.0.1", ...args],
    env,
  )
  const url = `http://127.0.0.1:${port}`
  const ready = async (): Promise<void> => {
    for (let tries = 0; tries < 500; tries++) {
      const status = await fetch(`${url}/readyz`).then(
        (response) => response.status,
        () => 0,
      )
      if (status === 200) return
      if (running.child.exitCode !== null) break
      await sleep(20)
    }
    throw new Error(`not ready: ${running.output()}`)
  }
  return { ...running, port, url, ready }
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1")
  await new Promise((resolve) => server.once("listening", resolve))
  const address = server.address()
  server.close()
  return typeof address === "object" && address !== null ? address.port : 0
}

const post = (url: string, body: unknown): Promise<Response> =>
  fetch(url, { method: "POST", body: typeof body === "string" ? body : JSON.stringify(body) })

describe("iris", { concurrency: false }, async () => {
  const golden = JSON.parse(await readFile(path.join(root, "examples/iris/golden.json"), "utf8")) as {
    inputs: number[][]
    labels: number[]
    probabilities: number[][]
  }
  const model = await modelFolder(path.join(root, "examples/iris/iris.onnx"), "iris_clf")
  const close = (got: number[][], wanted: number[][]): boolean =>
    wanted.every((row, index) =>
      row.every((value, column) => Math.abs(value - (got[index]?.[column] ?? NaN)) <= 1e-6),
    )

  test("without code: 150 rows, one by one at once, are scikit-learn's answers; SIGTERM exits 0", async () => {
    const server = await serve({
      name: "iris",
      version: "v1",
      service: null,
      srcDir: folder,
      models: [model],
    })
    await server.ready()
    assert.match(
      server.output(),
      new RegExp(`^Serving "iris:v1" on http://127.0.0.1:${server.port} \\(Press CTRL\\+C to quit\\)$`, "m"),
    )
    const answers = await Promise.all(
      golden.inputs.map(
        async (row) =>
          (await post(`${server.url}/run`, { X: [row] })).json() as Promise<{
            output_label: number[]
            output_probability: number[][]
          }>,
      ),
    )
    assert.deepEqual(
      answers.flatMap((answer) => answer.output_label),
      golden.labels,
    )
    assert.ok(
      close(
        answers.flatMap((answer) => answer.output_probability),
        golden.probabilities,
      ),
    )
    const wrong = await post(`${server.url}/run`, [[1, 2, 3]])
    assert.equal(wrong.status, 400)
    assert.match(await wrong.text(), /"code":"BAD_INPUT".*expected.*4.*received.*3/)
    const metrics = await (await fetch(`${server.url}/metrics`)).text()
    assert.match(
      metrics,
      /bentoml_runner_adaptive_batch_size_sum\{runner_name="iris_clf",method_name="run",.*\} 150/,
    )
    server.child.kill("SIGTERM")
    assert.equal(await server.exit, 0)
  })

  test("with the code of the example", async () => {
    const server = await serve({
      name: "iris_classifier",
      version: null,
      service: "service.ts:svc",
      srcDir: path.join(root, "examples/iris"),
      models: [model],
    })
    await server.ready()
    const answer = (await (await post(`${server.url}/classify`, golden.inputs)).json()) as {
      labels: string[]
      probabilities: number[][]
    }
    const names = ["setosa", "versicolor", "virginica"]
    assert.deepEqual(
      answer.labels,
      golden.labels.map((label) => names[label]),
    )
    assert.ok(close(answer.probabilities, golden.probabilities))
  })
})

const bundle = path.join(root, "dist/image/serve.js")
const skip = existsSync(bundle) ? false : "dist/image is not built"

test("the bundle that goes into images answers on every route", { skip }, async () => {
  const port = await freePort()
  const spec = JSON.stringify(await slowSpec())
  const child = spawn(process.execPath, [bundle, "--spec", spec, "--port", `${port}`, "--host", "127.0.0.1"])
  children.push(child)
  const url = `http://127.0.0.1:${port}`
  const statusOf = (path: string): Promise<number> =>
    fetch(`${url}${path}`).then(
      (response) => response.status,
      () => 0,
    )
  for (let tries = 0; (await statusOf("/readyz")) !== 200 && tries < 500; tries++) await sleep(20)
  for (const path of ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"]) {
    assert.equal(await statusOf(path), 200, path)
  }
  assert.equal(await statusOf("/nope"), 404)
  assert.deepEqual(await (await post(`${url}/wait`, { ms: 1 })).json(), { waited: 1 })
})

describe("what a Bento has prepared", { skip }, () => {
  // In the bundle nothing else is TypeScript; without Node's stripper the service loads from what was prepared or not at all.
  const serveBento = (bento: string, NODE_OPTIONS: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const child = spawn(
        process.execPath,
        [bundle, "--bento", bento, "--port", "0", "--host", "127.0.0.1"],
        {
          stdio: ["ignore", "pipe", "pipe"],
          env: { ...process.env, NODE_OPTIONS },
        },
      )
      children.push(child)
      let output = ""
      for (const stream of [child.stdout, child.stderr]) {
        stream.on("data", (chunk: Buffer) => {
          output += chunk.toString()
          if (output.includes("Serving")) child.kill("SIGKILL")
        })
      }
      child.on("error", reject).on("close", () => resolve(output))
    })
  const withNote = (text: string): string => `${SLOW}\nconsole.log(${JSON.stringify(text)} as string)\n`

  test("is taken for the files that it was made of, and for no other", async () => {
    const bento = await mkdtemp(path.join(folder, "prepared-"))
    await mkdir(path.join(bento, "src"))
    await writeFile(path.join(bento, "src/service.ts"), withNote("one"))
    await writeFile(
      path.join(bento, "bento.yaml"),
      "service: service.ts:svc\nname: slow\nversion: v1\ncreation_time: '2026-11-21T09:46:13.571815+00:00'\nbentoctl:\n  version: 0.1.0\n",
    )
    const spec = { name: "slow", version: "v1", service: "service.ts:svc", srcDir: path.join(bento, "src") }
    const describer = path.join(path.dirname(bundle), "describer.js")
    const describing = spawn(process.execPath, [describer], { stdio: ["pipe", "ignore", "ignore", "pipe"] })
    describing.stdin?.end(JSON.stringify({ ...spec, models: [] }))
    let answer = ""
    describing.stdio[3]?.on("data", (chunk: Buffer) => (answer += chunk.toString()))
    await new Promise((resolve) => describing.on("close", resolve))
    const described = JSON.parse(answer) as DescribeResult
    assert.ok(described.ok)
    const prepared = Object.entries(described.prepared ?? {})
    assert.deepEqual(
      prepared.map(([name]) => name),
      [preparedName(withNote("one"), "js")],
    )
    assert.match(await serveBento(bento, "--no-strip-types"), /Unknown file extension ".ts"/)

    await mkdir(path.join(bento, "prepared"))
    for (const [name, text] of prepared) await writeFile(path.join(bento, "prepared", name), text)
    assert.match(await serveBento(bento, "--no-strip-types"), /^one\nServing "slow:v1"/)

    // As when a folder is mounted over the sources.
    await writeFile(path.join(bento, "src/service.ts"), withNote("two"))
    assert.match(await serveBento(bento, ""), /^two\nServing "slow:v1"/)
    assert.match(await serveBento(bento, "--no-strip-types"), /Unknown file extension ".ts"/)
  })
})

describe("stopping", () => {
  test("a request in flight is answered, readiness is gone, then the process exits 0", async () => {
    const server = await serve(await slowSpec())
    await server.ready()
    const inFlight = post(`${server.url}/wait`, { ms: 2000 })
    await sleep(200)
    const signalledMs = performance.now()
    server.child.kill("SIGTERM")
    await sleep(100)
    assert.equal((await fetch(`${server.url}/readyz`)).status, 503)
    assert.equal((await fetch(`${server.url}/livez`)).status, 200)
    const answer = await inFlight
    assert.deepEqual(
      [answer.status, answer.headers.get("connection"), await answer.json()],
      [200, "close", { waited: 2000 }],
    )
    assert.equal(await server.exit, 0)
    assert.ok(performance.now() - signalledMs < 20_000)
  })

  test("new requests are answered for a moment, then refused, and the process ends although they go on", async () => {
    const server = await serve(await slowSpec())
    await server.ready()
    let stop = false
    const seen = new Set<number>()
    /** Of requests that began when the server had said that it goes. */
    const late = new Set<number>()
    const load = Array.from({ length: 8 }, async () => {
      while (!stop) {
        const isLate = server.output().includes("finishing requests in flight")
        const status = await post(`${server.url}/wait`, { ms: 50 }).then(
          (response) => response.status,
          () => 0,
        )
        seen.add(status)
        if (isLate) late.add(status)
        if (status === 0) return
      }
    })
    await sleep(200)
    server.child.kill("SIGTERM")
    assert.equal(await Promise.race([server.exit, sleep(20_000, "still there", { ref: false })]), 0)
    stop = true
    await Promise.all(load)
    assert.deepEqual(
      [...seen].filter((status) => ![0, 200, 503].includes(status)),
      [],
    )
    assert.ok(late.has(200), `answered late: ${[...late].join(", ")}`)
  })

  test("a second signal ends it at once", async () => {
    const server = await serve(await slowSpec())
    await server.ready()
    const inFlight = post(`${server.url}/wait`, { ms: 20_000 }).catch(() => null)
    await sleep(200)
    server.child.kill("SIGINT")
    await sleep(100)
    server.child.kill("SIGINT")
    assert.equal(await server.exit, 1)
    assert.equal(await inFlight, null)
  })

  test("when the grace time is over it exits 1", async () => {
    const server = await serve(await slowSpec(), {
      BENTOML_CONFIG_OPTIONS: "api_server.graceful_shutdown_timeout_s=0.3",
    })
    await server.ready()
    post(`${server.url}/wait`, { ms: 20_000 }).catch(() => null)
    await sleep(200)
    server.child.kill("SIGTERM")
    assert.equal(await server.exit, 1)
    assert.match(server.output(), /not finished after 300 ms/)
  })
})

describe("what keeps a server from starting ends it with exit 1 and the reason", { concurrency: 2 }, () => {
  test("a port in use", async () => {
    const first = await serve(await slowSpec())
    await first.ready()
    const second = await serve(await slowSpec(), {}, ["--port", `${first.port}`])
    assert.equal(await second.exit, 1)
    assert.match(
      second.output(),
      new RegExp(
        `^Error: port ${first.port} is in use by .+ \\(pid ${first.child.pid}\\)\nHint: .* \\[PORT_IN_USE\\]\n$`,
      ),
    )
  })

  test("a model that cannot be loaded", async () => {
    const model = await modelFolder(path.join(root, "test/fixtures/models/truncated.onnx"), "broken")
    const server = await serve({ name: "s", version: null, service: null, srcDir: folder, models: [model] })
    assert.equal(await server.exit, 1)
    assert.match(
      server.output(),
      /^Error: .*broken:v1 cannot be loaded: .*\nHint: .* \[MODEL_LOAD_FAILED\]\n$/m,
    )
  })

  test("an error in the service file, with its place and without a stack of ours", async () => {
    const srcDir = await sources({ "service.ts": "\nexport const svc = undefinedName\n" })
    const server = await serve({ name: "s", version: null, service: "service.ts:svc", srcDir, models: [] })
    assert.equal(await server.exit, 1)
    assert.equal(
      server.output(),
      "Error: service.ts:2:20: ReferenceError: undefinedName is not defined\nHint: Mend the file at the line named. [SERVICE_INVALID]\n",
    )
  })

  test("no Bento, an unknown flag, a setting that is none", async () => {
    const none = program("serve.ts", [], { BENTO_PATH: "" })
    assert.deepEqual([await none.exit, /nothing says which Bento/.test(none.output())], [1, true])
    const flag = program("serve.ts", ["--prot", "3000"])
    assert.equal(await flag.exit, 2)
    assert.match(flag.output(), /Unknown option '--prot'.*\nThe server's options: --port, .*--print-config/)
    const port = program("serve.ts", ["--port", "many"])
    assert.deepEqual([await port.exit, /\[CONFIG_INVALID\]/.test(port.output())], [1, true])
  })
})

test("a rejection that nobody handles is logged and the server goes on; telemetry is off", async () => {
  const server = await serve(await slowSpec())
  await server.ready()
  assert.equal(await (await post(`${server.url}/careless`, "!")).text(), "1!")
  assert.equal(await (await post(`${server.url}/careless`, "?")).text(), "1?")
  assert.match(
    server.output(),
    /\[error\] a promise was rejected and nobody handled it\n\s+Error: nobody listens\n[\s\S]*service\.ts/,
  )
})

test("an exception that nobody catches ends it with exit 1, after the requests in flight", async () => {
  const server = await serve(await slowSpec())
  await server.ready()
  const inFlight = post(`${server.url}/wait`, { ms: 300 })
  await sleep(100)
  assert.equal(await (await post(`${server.url}/crash`, "x")).text(), "x")
  assert.equal((await inFlight).status, 200)
  assert.equal(await server.exit, 1)
  assert.match(server.output(), /an exception was not caught[\s\S]*Error: nobody catches\n[\s\S]*service\.ts/)
})

test("it listens before its models are loaded, and says that it starts", async () => {
  const srcDir = await sources({
    "service.ts": `await new Promise((resolve) => setTimeout(resolve, 1000))\n${SLOW}`,
  })
  const server = await serve({ name: "s", version: null, service: "service.ts:svc", srcDir, models: [] })
  let live = 0
  for (let tries = 0; live !== 200 && tries < 300; tries++) {
    live = await fetch(`${server.url}/livez`).then(
      (response) => response.status,
      () => 0,
    )
    await sleep(5)
  }
  const early = await fetch(`${server.url}/readyz`)
  assert.deepEqual(
    [live, early.status, ((await early.json()) as { error: { message: string } }).error.message],
    [200, 503, "the server is starting"],
  )
  await server.ready()
})

describe("--check-model", () => {
  const check = async (file: string): Promise<[number | null, CheckResult]> => {
    const child = spawn(process.execPath, [path.join(root, "runtime/serve.ts"), "--check-model", file], {
      stdio: ["ignore", "inherit", "inherit", "pipe"],
    })
    let answer = ""
    child.stdio[3]?.on("data", (chunk: Buffer) => (answer += chunk.toString()))
    const code = await new Promise<number | null>((resolve) => child.on("close", resolve))
    return [code, JSON.parse(answer) as CheckResult]
  }

  test("says what a model takes and gives, or why it cannot be loaded", async () => {
    const [code, good] = await check(path.join(root, "test/fixtures/models/two_inputs.onnx"))
    assert.equal(code, 0)
    assert.ok(good.ok && good.inputs.length === 2)
    const [failed, bad] = await check(path.join(root, "test/fixtures/models/unknown_op.onnx"))
    assert.equal(failed, 1)
    assert.ok(!bad.ok && bad.message.length > 0)
  })
})

describe("the entry point of the image", () => {
  test("executes a command that is none of ours, in its own place", async () => {
    const echo = program("entrypoint.ts", ["sh", "-c", 'echo "$0 $1"; exit 5', "a", "b"])
    assert.deepEqual([await echo.exit, echo.output()], [5, "a b\n"])
    const missing = program("entrypoint.ts", ["no-such-command"])
    assert.deepEqual([await missing.exit, missing.output()], [127, "no-such-command: command not found\n"])
  })

  describe("starts a thread for a model before it knows which", () => {
    /** Tells of each thread that the process starts, and of its end. */
    const hook = `import { isMainThread } from "node:worker_threads"
      if (isMainThread) process.on("worker", (thread) => {
        process.stderr.write("[thread begins]")
        thread.once("exit", () => process.stderr.write("[thread ends]"))
      })`
    const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(hook)}`
    const threadsOf = (output: string): string[] => output.match(/\[thread \w+\]/g) ?? []
    const untilText = async ({ output }: Pick<Running, "output">, text: string): Promise<void> => {
      for (let tries = 0; !output().includes(text) && tries < 500; tries++) await sleep(20)
      assert.ok(output().includes(text), output())
    }

    test("and gives it the first model, so that no other is started", async () => {
      const model = await modelFolder(path.join(root, "examples/iris/iris.onnx"), "early")
      const spec: ServeSpec = { name: "early", version: null, service: null, srcDir: folder, models: [model] }
      const args = ["--spec", JSON.stringify(spec), "--host", "127.0.0.1", "--port", `${await freePort()}`]
      const server = program("entrypoint.ts", args, { NODE_OPTIONS })
      await untilText(server, "Serving")
      assert.deepEqual(threadsOf(server.output()), ["[thread begins]"])
    })

    test("and lets it go where there is no model", async () => {
      const args = ["--spec", JSON.stringify(await slowSpec()), "--host", "127.0.0.1"]
      const server = program("entrypoint.ts", [...args, "--port", `${await freePort()}`], { NODE_OPTIONS })
      await untilText(server, "Serving")
      await untilText(server, "[thread ends]")
      assert.deepEqual(threadsOf(server.output()), ["[thread begins]", "[thread ends]"])
    })

    test("and not where only settings are printed", async () => {
      const args = ["--print-config", "--spec", JSON.stringify(await slowSpec())]
      const server = program("entrypoint.ts", args, { NODE_OPTIONS })
      assert.equal(await server.exit, 0, server.output())
      assert.deepEqual(threadsOf(server.output()), [])
    })
  })

  test("serves a built Bento from BENTO_PATH, on PORT, and the health check agrees", async () => {
    const bento = path.join(folder, "bento")
    await mkdir(path.join(bento, "src"), { recursive: true })
    await writeFile(path.join(bento, "src/service.ts"), SLOW)
    await writeFile(
      path.join(bento, "bento.yaml"),
      "service: service.ts:svc\nname: slow\nversion: v1\nbentoml_version: 1.4.38\ncreation_time: '2026-11-21T09:46:13.571815+00:00'\nlabels: {}\nmodels: []\nrunners: []\napis: []\nbentoctl:\n  version: 0.1.0\n",
    )
    const port = await freePort()
    const env = { BENTO_PATH: bento, PORT: `${port}`, BENTOML_PORT: "1", BENTOML_HOST: "127.0.0.1" }
    const server = program("entrypoint.ts", [], env)
    // The health check of an image asks so for process 1, which is another one here.
    const healthy = (): Promise<boolean> => isReady(server.child.pid ?? 0, { port, timeoutMs: 10_000 })
    let answer: Response | null = null
    for (let tries = 0; answer?.status !== 200 && tries < 300; tries++) {
      answer = await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => null)
      await sleep(20)
    }
    assert.equal(answer?.status, 200, server.output())
    assert.match(server.output(), /Serving "slow:v1"/)
    assert.equal(await healthy(), true)
    server.child.kill("SIGTERM")
    assert.equal(await server.exit, 0)
    assert.equal(await healthy(), false)
  })
})
