/** User code that misbehaves, among requests that must not notice. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { type Answer, type ServerProcess, eventually, modelOf, sleep, specOf, start } from "./support.ts"

const CODE = `
import { ApiError, api, json, ndarray, runner, service, text, toNested } from "bentoctl/runtime"
const ids = runner("ids:v1")
const slow = runner("slow:v1")
const bad = {
  prints: () => { console.log("out"); console.error("err") },
  "throws": () => { throw new Error("secret") },
  "rejects": async () => { await null; throw new Error("secret") },
  "throws null": () => { throw null },
  "throws undefined": () => { throw undefined },
  "throws a function": () => { throw () => {} },
  "throws what cannot be shown": () => { throw { toString() { throw new Error("secret") }, get stack() { throw new Error("secret") } } },
  "throws an error whose stack throws": () => { const e = new Error("x"); Object.defineProperty(e, "stack", { get() { throw new Error("secret") } }); throw e },
  "throws an error that is its own cause": () => { const e = new Error("secret"); e.cause = e; throw e },
  "throws an error with a cause that JSON cannot write": () => { throw new Error("secret", { cause: { big: 1n } }) },
  "throws an ApiError whose detail JSON cannot write": () => { throw new ApiError(400, "secret", { detail: 1n }) },
  "says a status that none is": (ctx) => { ctx.response.status = 42 },
  "says a status that ends nothing": (ctx) => { ctx.response.status = 100 },
  "says a header of two lines": (ctx) => { ctx.response.setHeader("x", "y\\r\\nset-cookie: z") },
  "overflows the stack": () => { const again = () => again() + 1; return again() },
  "returns a circle": () => { const x = {}; x.x = x; return x },
  "returns what throws when it is written": () => ({ toJSON() { throw new Error("secret") } }),
  "returns a thenable that throws": () => ({ then() { throw new Error("secret") } }),
  "calls the model with a wrong shape": () => ids.run({ dtype: "float32", shape: [1, 3], data: new Float32Array(3) }),
  "calls the model with data that does not fit the shape": () => ids.run({ dtype: "float32", shape: [2, 4], data: new Float32Array(3) }),
  "calls the model with nothing": () => ids.run(undefined),
}
export const svc = service({
  name: "bad",
  runners: [ids, slow],
  apis: [
    api({ name: "ids", input: ndarray({ dtype: "float32", shape: [-1, 4] }), output: json(), handler: async (x) => toNested((await ids.run(x)).sum) }),
    api({ name: "slow", input: json<number[]>(), output: json(), handler: async (x) => {
      const { Y } = await slow.run({ dtype: "int64", shape: [x.length], data: BigInt64Array.from(x, BigInt) })
      return toNested(Y)
    } }),
    api({ name: "bad", input: text(), output: json(), handler: (name, ctx) => bad[name](ctx) }),
    api({ name: "wrong", input: text(), output: ndarray({ dtype: "float32", shape: [-1, 2] }), handler: () => [[1, 2], [3]] }),
    api({ name: "never", input: text(), output: json(), handler: () => new Promise(() => {}) }),
    api({ name: "twice", input: text(), output: json(), handler: (_, { signal }) => new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => { reject(new Error("late")); setTimeout(() => resolve("later"), 50) })
    }) }),
    api({ name: "block", input: json<number>(), output: json(), handler: (ms) => {
      const end = performance.now() + ms
      while (performance.now() < end);
      return "done"
    } }),
  ],
})`
const NAMES = [...CODE.matchAll(/^ {2}"(.*?)":/gm)].map(([, name]) => name ?? "")

const spec = () => specOf([modelOf("row_id.onnx", "ids"), modelOf("slow.onnx", "slow")], CODE)
const codeOf = ({ body }: Answer): string => (body as { error: { code: string } }).error.code
const rowOf = (value: number): unknown => [[value, value, value, value]]

test("a handler that throws, or returns what is no answer: an error of its own request, which tells nothing", async () => {
  const server = await start(spec())
  for (const name of NAMES) {
    const [answer, other] = await Promise.all([server.post("/bad", name), server.post("/ids", rowOf(1))])
    const isBadInput =
      name.startsWith("calls the model with a wrong") || name.startsWith("calls the model with data")
    assert.deepEqual(
      [name, answer.status, codeOf(answer)],
      [name, ...(isBadInput ? [400, "BAD_INPUT"] : [500, "INTERNAL"])],
    )
    assert.doesNotMatch(answer.text, /secret/)
    assert.deepEqual([other.status, other.body], [200, [4]])
  }
  const wrong = await server.post("/wrong", "")
  assert.equal(wrong.status, 500)
  assert.equal(await server.metric("bentoml_api_server_request_in_progress", '"/bad"'), 0)
  assert.deepEqual([await server.status("/livez"), await server.status("/readyz")], [200, 200])
})

test("a handler that never answers: 504 when its time is over, its place is free again, others are served", async () => {
  const server = await start(spec(), {
    config: "api_server: { traffic: { timeout: 0.5, max_concurrency: 4 } }",
  })
  for (const route of ["/never", "/twice"]) {
    const startedMs = performance.now()
    const stuck = [1, 2, 3].map(() => server.post(route, ""))
    await eventually(
      async () => (await server.metric("bentoml_api_server_request_in_progress", `"${route}"`)) === 3,
    )
    assert.equal((await server.post("/ids", rowOf(2))).status, 200)
    for (const answer of await Promise.all(stuck)) {
      assert.deepEqual([answer.status, codeOf(answer)], [504, "DEADLINE_EXCEEDED"])
    }
    const tookMs = performance.now() - startedMs
    // Without the setting it would be a minute.
    assert.ok(tookMs > 450 && tookMs < 30_000, `${tookMs} ms`)
    assert.equal(await server.metric("bentoml_api_server_request_in_progress", `"${route}"`), 0)
  }
  const all = await Promise.all([1, 2, 3, 4].map((value) => server.post("/ids", rowOf(value))))
  assert.deepEqual(
    all.map(({ body }) => body),
    [[4], [8], [12], [16]],
  )
  await sleep(100)
  assert.ok(server.alive)
})

describe("a handler that blocks the event loop for two seconds", () => {
  const block = async (server: ServerProcess): Promise<Answer> => {
    const blocking = server.post("/block", 2000)
    await sleep(100)
    return blocking
  }

  test("requests that came meanwhile are answered, readiness and deadlines are right afterwards", async () => {
    const server = await start(spec())
    // Until the cost model trusts itself.
    for (let round = 0; round < 20; round++) await server.post("/ids", rowOf(round))
    const [hasTime, hasNone] = [
      server.post("/slow", [200], { "x-request-timeout-ms": "8000" }),
      server.post("/slow", [200], { "x-request-timeout-ms": "1000" }),
    ]
    await eventually(
      async () => (await server.metric("bentoml_api_server_request_in_progress", '"/slow"')) === 2,
    )
    const blocking = block(server)
    await sleep(300)
    const meanwhile = Array.from({ length: 20 }, (_, value) =>
      server.post("/ids", rowOf(value), { "x-request-timeout-ms": "1000" }),
    )
    const ready = server.status("/readyz")
    assert.equal((await blocking).status, 200)
    assert.equal(await ready, 200)
    assert.deepEqual(
      (await Promise.all(meanwhile)).map(({ body }) => body),
      Array.from({ length: 20 }, (_, value) => [4 * value]),
    )
    assert.equal((await hasTime).status, 200)
    assert.ok([200, 504].includes((await hasNone).status))
    // A batch that seemed to take two seconds is not taken for what batches take.
    const after = await Promise.all(
      Array.from({ length: 50 }, (_, value) =>
        server.post("/ids", rowOf(value), { "x-request-timeout-ms": "1000" }),
      ),
    )
    assert.deepEqual(
      after.map(({ status }) => status),
      after.map(() => 200),
    )
  })

  test("a worker that answered meanwhile is not taken for one that does not answer", async () => {
    const server = await start(spec(), { config: "runners: { traffic: { timeout: 1 } }" })
    const answer = server.post("/slow", [400])
    await eventually(
      async () => (await server.metric("bentoml_api_server_request_in_progress", '"/slow"')) === 1,
    )
    await block(server)
    assert.deepEqual((await answer).body, [400])
    assert.equal(await server.metric("bentoml_runner_worker_restarts_total"), 0, server.output)
  })
})

test("a log that nobody reads any more: the server goes on, and still ends well", async () => {
  const server = await start(spec())
  server.child.stdout?.destroy()
  server.child.stderr?.destroy()
  for (let round = 0; round < 3; round++) {
    assert.equal((await server.post("/bad", "throws")).status, 500)
    assert.equal((await server.post("/bad", "prints")).status, 200)
  }
  await sleep(1500)
  assert.deepEqual([server.alive, await server.status("/readyz")], [true, 200])
  const exit = new Promise((resolve) => server.child.once("exit", resolve))
  server.child.kill("SIGTERM")
  assert.equal(await exit, 0)
})
