/** Time is what passes, not what a clock on the wall says. */
import assert from "node:assert/strict"
import { test } from "node:test"
import { createHono } from "../../../runtime/hono.ts"
import { api, json, ndarray, runner, service } from "../../../runtime/index.ts"
import { appFor } from "../../fakes.ts"
import { settled } from "../manual-clock.ts"
import { RunnerWorld } from "../runner-world.ts"
import { KILLS } from "./deadly-numbers.ts"
import { type Answer, modelOf, specOf, start } from "./support.ts"

const codeOf = ({ body }: Answer): string => (body as { error: { code: string } }).error.code

test("a server whose wall clock jumps by hours: answers, deadlines and the watchdog are as ever", async () => {
  const CODE = `
import { api, json, ndarray, runner, service, toNested } from "bentoctl/runtime"
const ids = runner("ids:v1")
export const svc = service({
  name: "s",
  runners: [ids],
  apis: [
    api({ name: "ids", input: ndarray({ dtype: "float32", shape: [-1, 4] }), output: json(), handler: async (x) => toNested((await ids.run(x)).sum) }),
    api({ name: "never", input: json(), output: json(), handler: () => new Promise(() => {}) }),
    api({ name: "now", input: json(), output: json(), handler: () => Date.now() }),
  ],
})`
  const config = `
api_server: { traffic: { timeout: 60 }, http: { receive_timeout_s: 30 } }
runners: { traffic: { timeout: 30 } }`
  const server = await start(specOf([modelOf("row_id.onnx", "ids")], CODE), {
    config,
    preload: "mad-clock.ts",
  })
  const clocks = await Promise.all(
    [1, 2, 3].map(async () => (await server.post("/now", "null")).body as number),
  )
  assert.ok(Math.max(...clocks) - Math.min(...clocks) > 60_000, "the clock does jump")
  const startedMs = performance.now()
  const never = server.post("/never", "null", { "x-request-timeout-ms": "1000" })
  for (let round = 0; round < 200; round++) {
    const headers = { "x-request-timeout-ms": "30000" }
    const answer = await server.post("/ids", [[round, 0, 0, 0]], headers)
    assert.deepEqual([answer.status, answer.body], [200, [round]])
  }
  assert.equal(codeOf(await never), "DEADLINE_EXCEEDED")
  const tookMs = performance.now() - startedMs
  assert.ok(tookMs > 950 && tookMs < 50_000, `${tookMs} ms`) // a jump is of hours, a slow machine of seconds
  assert.equal(await server.metric("bentoml_runner_worker_restarts_total"), 0)
  server.child.kill("SIGTERM")
  assert.equal(await server.exitSoon(), 0, server.output)
})

test("runners, batches, deadlines and the app never look at the wall clock", async () => {
  const WallClock = Date
  const looked: string[] = []
  class Watched extends WallClock {
    constructor() {
      super()
      looked.push(new Error("new Date").stack ?? "")
    }

    static override now(): number {
      looked.push(new Error("Date.now").stack ?? "")
      return 0
    }
  }
  const world = new RunnerWorld({
    config: { timeoutMs: 1000, maxLatencyMs: 5000, batchWaitMs: 5 },
    model: (inputs) => (Array.from(inputs[0]?.data ?? [], Number).includes(KILLS) ? "exit" : inputs),
  })
  const model = runner("m")
  const svc = service({
    name: "s",
    runners: [model],
    apis: [
      api({
        name: "run",
        input: ndarray({ dtype: "float32", shape: [-1, 2] }),
        output: json(),
        handler: async (x) => Object.keys(await model.run(x)),
      }),
    ],
  })
  globalThis.Date = Watched as unknown as DateConstructor // for a while
  try {
    await world.start()
    const { app } = appFor(svc, { runner: world.runner, clock: world.clock })
    const ask = (body: string, timeout = "4000"): Promise<Response> =>
      Promise.resolve(
        createHono(app).request("/run", {
          method: "POST",
          body,
          headers: { "content-type": "application/json", "x-request-timeout-ms": timeout },
        }),
      )
    const asked = Promise.all([ask("[[1,2]]"), ask(`[[${KILLS},2]]`), ask("[[3,4]]", "1"), ask("[[5,6]]")])
    let pending = true
    void asked.finally(() => (pending = false))
    for (let step = 0; pending && step < 1000; step++) await world.clock.advance(20)
    assert.deepEqual(
      (await asked).map(({ status }) => status),
      [200, 503, 504, 200],
    )
    const closed = world.runner.close()
    await settled()
    await world.clock.advance(5000)
    await closed
  } finally {
    globalThis.Date = WallClock
  }
  assert.deepEqual(looked, [])
})
