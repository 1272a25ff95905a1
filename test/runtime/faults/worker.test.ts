/** Worker threads that die, hang or cannot come back, in a real server. */
import assert from "node:assert/strict"
import { renameSync, rmSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import { HANGS, KILLS, KILLS_ONCE } from "./deadly-numbers.ts"
import { type Answer, type ServerProcess, eventually, modelOf, sleep, specOf, start } from "./support.ts"

const row = (value: number): unknown => ({ X: [[value, value, value, value]] })
const sumOf = ({ body }: Answer): unknown => (body as { sum?: number[] }).sum?.[0]
const codeOf = ({ body }: Answer): string => (body as { error: { code: string } }).error.code
const rowIds = () => specOf([modelOf("row_id.onnx", "ids")])

/** Asks the probes until told to stop; what they said. */
function probe(server: ServerProcess) {
  const seen = { livez: new Set<number>(), readyz: new Set<number>() }
  let going = true
  const done = (async () => {
    while (going) {
      seen.livez.add(await server.status("/livez"))
      seen.readyz.add(await server.status("/readyz"))
      await sleep(5)
    }
  })()
  return {
    stop: async () => {
      going = false
      await done
      return { livez: [...seen.livez], readyz: [...seen.readyz].toSorted((a, b) => a - b) }
    },
  }
}

test("a worker that dies with a batch in it: replaced, every job answered, /livez 200 all along", async () => {
  const server = await start(rowIds(), { preload: "deadly-numbers.ts" })
  const probes = probe(server)
  const values = [1, 2, KILLS_ONCE, 3, 4]
  const answers = await Promise.all(values.map((value) => server.post("/run", row(value))))
  assert.deepEqual(
    answers.map((answer) => [answer.status, sumOf(answer)]),
    values.map((value) => [200, 4 * value]),
  )
  await server.until(200)
  assert.deepEqual(await probes.stop(), { livez: [200], readyz: [200, 503] })
  assert.equal(await server.metric("bentoml_runner_worker_restarts_total"), 1)
  assert.match(server.output, /ids: a worker is gone \(exit\), another starts in 100 ms/)
})

test("a row that kills every worker gets 503 with Retry-After after its second; its neighbours are answered", async () => {
  const server = await start(rowIds(), { preload: "deadly-numbers.ts" })
  const values = [1, KILLS, 2, 3, 4, 5, 6, 7, 8, 9]
  const answers = await Promise.all(values.map((value) => server.post("/run", row(value))))
  assert.deepEqual(
    answers.map(({ status }) => status),
    values.map((value) => (value === KILLS ? 503 : 200)),
  )
  assert.ok(Number(answers[1]?.headers["retry-after"]) >= 1)
  await server.until(200)
  assert.equal(sumOf(await server.post("/run", row(5))), 20)
  assert.equal(await server.metric("bentoml_runner_worker_restarts_total"), 2)
})

describe("a worker that stops answering", () => {
  const config = "runners: { traffic: { timeout: 0.5 } }"

  test("in inference: the watchdog replaces it, others are answered, its late return does no harm", async () => {
    const server = await start(specOf([modelOf("slow.onnx", "slow")]), { config })
    const threads = server.threads()
    const probes = probe(server)
    const stuck = server.post("/run", [4000])
    await sleep(100)
    const others = [1, 2, 3].map((value) => server.post("/run", [value]))
    assert.deepEqual(
      (await Promise.all(others)).map(({ status, body }) => [status, (body as { Y: number[] }).Y]),
      [1, 2, 3].map((value) => [200, [value]]),
    )
    const refused = await stuck
    assert.deepEqual([refused.status, codeOf(refused)], [503, "UNAVAILABLE"])
    await server.until(200)
    assert.deepEqual(await probes.stop(), { livez: [200], readyz: [200, 503] })
    // Both threads come back from their inference, and end.
    await eventually(() => server.threads() <= threads)
    assert.ok(server.alive, server.output)
    assert.equal((await server.post("/run", [7])).status, 200)
  })

  test("for ever: after two attempts no third thread is lost, and a request waits no longer than its deadline", async () => {
    const server = await start(rowIds(), {
      config: "runners: { traffic: { timeout: 0.3 } }",
      preload: "deadly-numbers.ts",
    })
    const first = await server.post("/run", row(HANGS))
    assert.equal(first.status, 503)
    const second = await server.post("/run", row(1), { "x-request-timeout-ms": "1000" })
    assert.deepEqual([second.status, codeOf(second)], [504, "DEADLINE_EXCEEDED"])
    assert.deepEqual([await server.status("/livez"), await server.status("/readyz")], [200, 503])
  })
})

test("a model file removed after load: answers go on; a worker that then dies comes back when the file does", async () => {
  const model = modelOf("row_id.onnx", "ids")
  const server = await start(specOf([model]), { preload: "deadly-numbers.ts" })
  const file = path.join(model.dir, "saved_model.onnx")
  renameSync(file, `${file}.away`)
  assert.equal(sumOf(await server.post("/run", row(1))), 4)
  const waits = server.post("/run", row(KILLS_ONCE))
  await server.until(503)
  await sleep(500)
  assert.deepEqual([await server.status("/livez"), await server.status("/readyz")], [200, 503])
  renameSync(`${file}.away`, file)
  await server.until(200)
  assert.equal(sumOf(await waits), 4 * KILLS_ONCE)
  rmSync(model.dir, { recursive: true })
  assert.equal(sumOf(await server.post("/run", row(2))), 8)
})
