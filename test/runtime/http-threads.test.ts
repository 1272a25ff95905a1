/** `api_server.workers`: several HTTP threads before one copy of each model, as a process. */
import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import http from "node:http"
import net from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, describe, test } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"

const root = path.resolve(import.meta.dirname, "../..")
const folder = await mkdtemp(path.join(tmpdir(), "bentoctl-threads-"))
const children: ChildProcess[] = []
after(async () => {
  for (const child of children) child.kill("SIGKILL")
  await rm(folder, { recursive: true, force: true })
})

const SERVICE = `
import { threadId } from "node:worker_threads"
import { api, json, ndarray, runner, service } from "bentoctl/runtime"

const iris = runner("iris")
const block = (ms: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
const post = (name: string, handler: (value: any) => unknown) =>
  api({ name, input: json<any>(), output: json(), handler })
block(Number(process.env["LOADING_MS"] ?? 0))

export const svc = service({
  name: "threads",
  runners: [iris],
  apis: [
    api({
      name: "classify",
      input: ndarray({ dtype: "float32", shape: [-1, 4] }),
      output: json(),
      handler: async (rows) => {
        const first = await iris.run(rows)
        // What was given to a runner is still there.
        const second = await iris.run(rows)
        return { thread: threadId, labels: [first, second].map((out) => [...(out["output_label"]?.data ?? [])].map(Number)) }
      },
    }),
    post("thread", () => threadId),
    post("block", (ms) => (block(ms), threadId)),
    post("wait", async (ms) => {
      await new Promise((resolve) => setTimeout(resolve, ms))
      return threadId
    }),
    post("crash", () => {
      setTimeout(() => {
        throw new Error("nobody catches")
      })
      return threadId
    }),
    post("exit", () => process.exit(3)),
  ],
})
`

interface Reply {
  readonly status: number
  readonly body: unknown
}

class Server {
  readonly child: ChildProcess
  readonly port: number
  readonly exit: Promise<number | string | null>
  output = ""

  constructor(child: ChildProcess, port: number) {
    this.child = child
    this.port = port
    child.stdout?.on("data", (chunk: Buffer) => (this.output += chunk.toString()))
    child.stderr?.on("data", (chunk: Buffer) => (this.output += chunk.toString()))
    this.exit = new Promise((resolve) => child.on("close", (code, signal) => resolve(code ?? signal)))
  }

  async ready(): Promise<this> {
    for (let tries = 0; tries < 1000; tries++) {
      if ((await this.get("/readyz")).status === 200) return this
      if (this.child.exitCode !== null) break
      await sleep(20)
    }
    throw new Error(`not ready: ${this.output}`)
  }

  get(route: string): Promise<Reply> {
    return this.request("GET", route, undefined, undefined)
  }

  /** Without an agent: over a connection of its own. */
  post(route: string, value: unknown, agent?: http.Agent, headers = {}): Promise<Reply> {
    return this.request("POST", route, JSON.stringify(value), agent, headers)
  }

  /** Status 0: the connection broke. */
  request(
    method: string,
    route: string,
    body: string | undefined,
    agent: http.Agent | undefined,
    headers = {},
  ): Promise<Reply> {
    return new Promise((resolve) => {
      const fail = (): void => resolve({ status: 0, body: null })
      http
        .request(
          { host: "127.0.0.1", port: this.port, path: route, method, agent: agent ?? false, headers },
          (response) => {
            let text = ""
            response.on("data", (chunk: Buffer) => (text += chunk.toString()))
            response.on("error", fail)
            response.on("end", () => {
              let value: unknown = text
              try {
                value = JSON.parse(text)
              } catch {
                // A probe's or a scrape's text.
              }
              resolve({ status: response.statusCode ?? 0, body: value })
            })
          },
        )
        .on("error", fail)
        .end(body)
    })
  }

  /** A kept connection to each of two threads, as soon as there are two. */
  async connections(): Promise<{
    readonly agents: readonly [http.Agent, http.Agent]
    readonly threads: unknown[]
  }> {
    const found = new Map<unknown, http.Agent>()
    for (let tries = 0; found.size < 2 && tries < 200; tries++) {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
      const { body } = await this.post("/thread", null, agent)
      if (tries > 20) await sleep(20)
      if (found.has(body)) agent.destroy()
      else found.set(body, agent)
    }
    const [one, two] = found.values()
    assert.ok(one !== undefined && two !== undefined, "every connection came to the same thread")
    return { agents: [one, two], threads: [...found.keys()] }
  }

  /** The sum of a metric over all series whose labels hold a text. */
  async metric(name: string, label = ""): Promise<number> {
    const text = String((await this.get("/metrics")).body)
    const values = [...text.matchAll(new RegExp(`^${name}(\\{[^\\n]*\\})? (\\S+)$`, "gm"))]
    return values
      .filter(([, labels = ""]) => labels.includes(label))
      .reduce((sum, [, , value]) => sum + Number(value), 0)
  }
}

let model: Promise<{ tag: string; dir: string }> | undefined

async function irisFolder(): Promise<{ tag: string; dir: string }> {
  const dir = path.join(folder, "iris")
  await mkdir(dir, { recursive: true })
  await cp(path.join(root, "examples/iris/iris.onnx"), path.join(dir, "saved_model.onnx"))
  const golden = path.join(root, "test/fixtures/bentoml-home/models/iris_sklearn/mox5xxxfsccawax4/model.yaml")
  const manifest = (await readFile(golden, "utf8"))
    .replace(/^name: .*$/m, "name: iris")
    .replace(/^version: .*$/m, "version: v1")
  await writeFile(path.join(dir, "model.yaml"), manifest)
  return { tag: "iris:v1", dir }
}

async function start({
  code = SERVICE,
  options = [],
  env = {},
  port,
}: {
  code?: string
  options?: readonly string[]
  env?: Record<string, string>
  port?: number
} = {}): Promise<Server> {
  const srcDir = await mkdtemp(path.join(folder, "src-"))
  await writeFile(path.join(srcDir, "service.ts"), code)
  const spec = {
    name: "threads",
    version: "v1",
    service: "service.ts:svc",
    srcDir,
    models: [await (model ??= irisFolder())],
    labels: {},
  }
  const chosen = port ?? (await freePort())
  const child = spawn(
    process.execPath,
    [
      path.join(root, "runtime/serve.ts"),
      "--spec",
      JSON.stringify(spec),
      `--port=${chosen}`,
      "--host=127.0.0.1",
      "--api-workers=2",
    ],
    {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, BENTOML_CONFIG_OPTIONS: options.join(" "), ...env },
    },
  )
  children.push(child)
  return new Server(child, chosen)
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1")
  await new Promise((resolve) => server.once("listening", resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  return typeof address === "object" && address !== null ? address.port : 0
}

const ROW = [5.9, 3, 5.1, 1.8]

describe("two HTTP threads", async () => {
  const server = await (await start()).ready()

  test("both answer, rightly, and the handler's tensors stay its own", async () => {
    const replies = await Promise.all(Array.from({ length: 64 }, () => server.post("/classify", [ROW, ROW])))
    for (const { status, body } of replies) {
      assert.equal(status, 200)
      assert.deepEqual((body as { labels: unknown }).labels, [
        [2, 2],
        [2, 2],
      ])
    }
    const threads = new Set(replies.map(({ body }) => (body as { thread: number }).thread))
    assert.equal(threads.size, 2)
  })

  test("there is one copy of the model", async () => {
    assert.equal(await server.metric("bentoml_runner_workers_up"), 1)
  })

  test("any of them answers a scrape for both", async () => {
    const { agents } = await server.connections()
    const counted = (): Promise<number> =>
      server.metric("bentoml_api_server_request_total", 'endpoint="/wait"')
    const before = await counted()
    for (const agent of agents) for (let i = 0; i < 3; i++) await server.post("/wait", 0, agent)
    for (let i = 0; i < 8; i++) assert.equal(await counted(), before + 6)
    for (const agent of agents) agent.destroy()
  })

  test("errors of a runner come with their status, code and detail", async () => {
    const { agents } = await server.connections()
    for (const agent of agents) {
      const { status, body } = await server.post("/classify", [], agent)
      assert.equal(status, 400)
      assert.match(JSON.stringify(body), /BAD_INPUT/)
      agent.destroy()
    }
  })

  test("a handler that keeps its thread busy does not hold up the other, nor models, nor a scrape", async () => {
    const { agents } = await server.connections()
    let blocked = true
    const blocking = server.post("/block", 2500, agents[0]).then(() => (blocked = false))
    await sleep(100)
    for (let i = 0; i < 5; i++) {
      assert.equal((await server.post("/classify", [ROW], agents[1])).status, 200)
    }
    const scrape = await server.request("GET", "/metrics", undefined, agents[1])
    assert.match(String(scrape.body), /request_total\{endpoint="\/classify"/)
    assert.equal((await server.request("GET", "/readyz", undefined, agents[1])).status, 200)
    assert.equal(blocked, true)
    await blocking
    for (const agent of agents) agent.destroy()
  })

  test("a client's deadline is kept across threads", async () => {
    const { status } = await server.post("/wait", 5000, undefined, { "x-request-timeout-ms": "100" })
    assert.equal(status, 504)
    const answered = await server.post("/classify", [ROW], undefined, { "x-request-timeout-ms": "5000" })
    assert.equal(answered.status, 200)
  })

  test("a thread that ends unasked is replaced; what it counted stays, others do not notice", async () => {
    const { agents, threads } = await server.connections()
    const before = await server.metric("bentoml_api_server_request_total", 'endpoint="/crash"')
    const waiting = server.post("/wait", 1000, agents[1])
    await server.post("/crash", null, agents[0])
    assert.equal((await waiting).status, 200)
    const after = await server.connections()
    assert.ok(after.threads.includes(threads[1]) && !after.threads.includes(threads[0]), server.output)
    assert.equal(await server.metric("bentoml_api_server_request_total", 'endpoint="/crash"'), before + 1)
    assert.equal(await server.metric("bentoml_api_server_thread_restarts_total"), 1)
    assert.match(server.output, /nobody catches/)
    // What it worked on is lost with it.
    assert.equal((await server.post("/exit", null, after.agents[0])).status, 0)
    const last = await server.connections()
    assert.equal(await server.metric("bentoml_api_server_thread_restarts_total"), 2)
    for (const agent of [...agents, ...after.agents, ...last.agents]) agent.destroy()
  })

  test("another server does not get its port, even one that would share it", async () => {
    const second = await start({ port: server.port })
    assert.equal(await second.exit, 1)
    assert.match(second.output, /PORT_IN_USE/)
    assert.equal((await server.get("/readyz")).status, 200)
  })

  test("SIGTERM under load: every request that is accepted is answered, then exit 0", async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 32 })
    const statuses: Record<number, number> = {}
    let running = true
    const clients = Array.from({ length: 32 }, async () => {
      while (running) {
        const { status } = await server.post("/classify", [ROW], agent)
        if (!running && status === 0) break
        statuses[status] = (statuses[status] ?? 0) + 1
      }
    })
    const slow = [server.post("/wait", 800), server.post("/wait", 800), server.post("/wait", 800)]
    await sleep(300)
    server.child.kill("SIGTERM")
    await sleep(400)
    running = false
    await Promise.all(clients)
    for (const { status } of await Promise.all(slow)) assert.equal(status, 200)
    assert.equal(await server.exit, 0, server.output)
    // Refused, where this process was slow to stop asking; never lost.
    const others = Object.keys(statuses).filter((status) => !["200", "503"].includes(status))
    assert.deepEqual(others, [], JSON.stringify(statuses))
    assert.ok((statuses[200] ?? 0) > 0)
  })
})

test("rows of two threads meet in one batch", async () => {
  // A single worker is kept busy by waiting for company: both jobs are there before the first batch begins.
  const server = await (await start({ options: ["runners.batching.batch_wait_ms=300"] })).ready()
  const { agents } = await server.connections()
  let together = 0
  // Whether the two arrive while one waits is up to the scheduler; on a busy machine it takes many tries.
  const giveUpMs = performance.now() + 20_000
  while (together === 0 && performance.now() < giveUpMs) {
    await Promise.all(agents.map((agent) => server.post("/classify", [ROW], agent)))
    const upTo = (le: number): Promise<number> =>
      server.metric("bentoml_runner_batch_jobs_bucket", `le="${le}"`)
    together = (await upTo(2)) - (await upTo(1))
  }
  assert.ok(together > 0, "two jobs, one of each thread, never shared a batch")
  for (const agent of agents) agent.destroy()
  server.child.kill("SIGTERM")
  assert.equal(await server.exit, 0)
})

test("max_concurrency is for both together", async () => {
  const server = await (await start({ options: ["api_server.traffic.max_concurrency=2"] })).ready()
  const { agents } = await server.connections()
  const two = agents.map((agent) => server.post("/wait", 2000, agent))
  while ((await server.metric("bentoml_api_server_request_in_progress", 'endpoint="/wait"')) < 2)
    await sleep(10)
  const third = await Promise.all(Array.from({ length: 6 }, () => server.post("/wait", 0)))
  assert.deepEqual([...new Set(third.map(({ status }) => status))], [429])
  assert.deepEqual(
    (await Promise.all(two)).map(({ status }) => status),
    [200, 200],
  )
  assert.equal((await server.post("/wait", 0)).status, 200)
  for (const agent of agents) agent.destroy()
  server.child.kill("SIGTERM")
  assert.equal(await server.exit, 0)
})

test("while the service loads, /livez is 200 and /readyz 503; the banner is printed once", async () => {
  const server = await start({ env: { LOADING_MS: "300" } })
  const seen: number[] = []
  for (let tries = 0; tries < 1000; tries++) {
    const [live, ready] = await Promise.all([server.get("/livez"), server.get("/readyz")])
    if (live.status !== 0) seen.push(ready.status)
    if (ready.status === 200) break
    await sleep(5)
  }
  assert.ok(seen.includes(503) && seen.at(-1) === 200, JSON.stringify(seen))
  assert.equal(seen.indexOf(200), seen.length - 1)
  // Ready means all of them.
  const replies = await Promise.all(Array.from({ length: 32 }, () => server.post("/thread", null)))
  assert.ok(replies.every(({ status }) => status === 200))
  await sleep(50)
  assert.equal(server.output.match(/Serving "threads:v1"/g)?.length, 1)
  server.child.kill("SIGTERM")
  server.child.kill("SIGTERM")
  await server.exit
})

test("a scrape that the main thread cannot answer is answered 500 by the thread that was asked", async () => {
  const hook = `import { registerHooks } from "node:module"
    registerHooks({
      resolve(name, context, next) {
        if (name === "prom-client") throw new Error("no prom-client")
        return next(name, context)
      },
    })`
  const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(hook)}`
  const server = await (await start({ env: { NODE_OPTIONS } })).ready()
  for (const asked of [1, 2]) assert.equal((await server.get("/metrics")).status, 500, `${asked}`)
  server.child.kill("SIGTERM")
  assert.equal(await server.exit, 0)
  assert.match(server.output, /\/metrics: INTERNAL/)
  assert.doesNotMatch(server.output, /nobody handled it/)
})

test("port 0 is one free port for all", async () => {
  const server = await start({ port: 0 })
  let port: number | undefined
  for (let tries = 0; tries < 500 && port === undefined; tries++) {
    const [, shown] = /http:\/\/127\.0\.0\.1:(\d+)/.exec(server.output) ?? []
    if (shown !== undefined) port = Number(shown)
    await sleep(20)
  }
  assert.ok(port !== undefined && port > 0, server.output)
  const response = await fetch(`http://127.0.0.1:${port}/readyz`)
  assert.equal(response.status, 200)
  server.child.kill("SIGTERM")
  assert.equal(await server.exit, 0)
})

test("a thread that the system does not give is asked for again, and the server goes on", async () => {
  const preload = path.join(folder, "denied.mjs")
  await writeFile(
    preload,
    `import { syncBuiltinESMExports } from "node:module"
    import threads from "node:worker_threads"
    let asked = 0
    threads.Worker = class extends threads.Worker {
      constructor(file, options) {
        if (String(file).includes("http-worker") && ++asked === 3) throw new Error("Worker initialization failure: EAGAIN")
        super(file, options)
      }
    }
    syncBuiltinESMExports()`,
  )
  const server = await (await start({ env: { NODE_OPTIONS: `--import=${preload}` } })).ready()
  const { agents, threads } = await server.connections()
  await server.post("/exit", null, agents[0])
  const after = await server.connections()
  assert.ok(after.threads.includes(threads[1]) && !after.threads.includes(threads[0]), server.output)
  assert.match(server.output, /the new HTTP thread did not start: .*EAGAIN, another starts in 200 ms/)
  for (const agent of [...agents, ...after.agents]) agent.destroy()
  server.child.kill()
  assert.equal(await server.exit, 0)
})

test("a service that cannot be loaded ends the server with its place, once", async () => {
  const server = await start({ code: "\n\nthrow new TypeError('not today')\n" })
  assert.equal(await server.exit, 1)
  assert.match(server.output, /^Error: service\.ts:3:7: TypeError: not today/m)
  assert.equal(server.output.match(/not today/g)?.length, 1)
})
