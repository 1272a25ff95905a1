/** Signals at the worst of times. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { rmSync } from "node:fs"
import path from "node:path"
import { describe, test } from "node:test"
import {
  IRIS,
  type ServerProcess,
  Wire,
  eventually,
  launch,
  modelOf,
  sleep,
  specOf,
  start,
} from "./support.ts"

const SLOW = `
import { api, json, service } from "bentoctl/runtime"
export const svc = service({
  name: "slow",
  apis: [
    api({
      name: "run",
      input: json<number>(),
      output: json(),
      handler: (ms) => new Promise((resolve) => setTimeout(resolve, ms, ms)),
    }),
  ],
})
`

/**
 * 64 clients that ask again as soon as they have their answer, until they are refused or nobody listens any more. Stubborn
 * ones go on when they are refused.
 */
async function closedLoop(port: number, body: string, stubborn = false) {
  const seen = { answered: 0, refused: 0, lost: [] as string[] }
  const client = async (): Promise<void> => {
    for (let fresh = true, wire = new Wire(port); ;) {
      const answer = await wire.ask("/run", body)
      if (answer === null) {
        if (wire.ended !== "refused") seen.lost.push(`${fresh ? "fresh" : "kept"} ${wire.ended}`)
        return
      }
      if (answer.status === 200) seen.answered++
      else if (answer.status === 503) seen.refused++
      else seen.lost.push(`${answer.status} ${answer.body}`)
      if (answer.status === 503 && !stubborn) return
      fresh = answer.closes
      if (fresh) {
        wire.destroy()
        wire = new Wire(port)
      }
    }
  }
  await Promise.all(Array.from({ length: 64 }, client))
  return seen
}

describe("SIGTERM under the load of 64 clients", () => {
  const FLOWER = "[[5.9,3,5.1,1.8]]"
  const iris = specOf([modelOf(IRIS, "iris")])
  for (const [what, spec, body, config] of [
    ["requests that take a while", specOf([], SLOW), "30", ""],
    ["a real model", iris, FLOWER, ""],
    ["a real model behind two HTTP threads", iris, FLOWER, "api_server: { workers: 2 }"],
  ] as const) {
    test(`${what}: each request that was sent is answered, exit 0`, async () => {
      const server = await start(spec, { config })
      const load = closedLoop(server.port, body)
      await sleep(500)
      server.child.kill("SIGTERM")
      assert.equal(await server.exitSoon(), 0, server.output)
      const seen = await load
      assert.deepEqual(seen.lost, [])
      assert.ok(seen.answered > 0 && seen.refused <= 64)
    })
  }

  test("clients that will not hear that they are refused: no connection that was accepted is lost, exit 0", async () => {
    const server = await start(iris)
    const load = closedLoop(server.port, FLOWER, true)
    await sleep(500)
    server.child.kill("SIGTERM")
    assert.equal(await server.exitSoon(), 0, server.output)
    const { lost, refused } = await load
    // What only the kernel had accepted when the listener was closed is reset; what we had is answered.
    assert.deepEqual(
      lost.filter((how) => how !== "fresh reset"),
      [],
    )
    assert.ok(refused > 0)
  })
})

describe("a process whose worker is in the middle of an inference", () => {
  const LONG = [30_000]
  const busy = async (config = ""): Promise<ServerProcess> => {
    const server = await start(specOf([modelOf("slow.onnx", "slow")]), { config })
    server.post("/run", LONG).catch(() => null)
    await sleep(200)
    return server
  }

  test("exits at once on the second SIGTERM", async () => {
    const server = await busy()
    server.child.kill("SIGTERM")
    await sleep(200)
    server.child.kill("SIGTERM")
    assert.equal(await server.exitSoon(), 1, server.output)
  })

  test("exits 1 when the grace time is over", async () => {
    const server = await busy("api_server: { graceful_shutdown_timeout_s: 0.5 }")
    server.child.kill("SIGTERM")
    assert.equal(await server.exitSoon(), 1)
    assert.match(server.output, /not finished after 500 ms/)
  })

  test("that the watchdog has given up, and all else answered: exits 0", async () => {
    const server = await busy("runners: { traffic: { timeout: 0.3 } }")
    await eventually(async () => (await server.metric("bentoml_runner_worker_restarts_total")) === 2)
    server.child.kill("SIGTERM")
    assert.equal(await server.exitSoon(), 0, server.output)
  })
})

describe("SIGTERM while the server starts", () => {
  test("and a model is being read from a file system that hangs: exits 0 at once", async () => {
    const model = modelOf("row_id.onnx", "ids")
    const file = path.join(model.dir, "saved_model.onnx")
    rmSync(file)
    execFileSync("mkfifo", [file])
    const server = await launch(specOf([model]))
    await server.until(503)
    await sleep(500)
    server.child.kill("SIGTERM")
    assert.equal(await server.exitSoon(), 0, server.output)
    assert.doesNotMatch(server.output, /MODEL_LOAD_FAILED/)
  })

  test("and the user's module is not there yet: exits 0 at once", async () => {
    const server = await launch(
      specOf([modelOf(IRIS, "iris")], `await new Promise((resolve) => setTimeout(resolve, 60_000))\n${SLOW}`),
    )
    await server.until(503)
    server.child.kill("SIGTERM")
    assert.equal(await server.exitSoon(), 0, server.output)
  })

  test("at any moment of a start: exits 0, or by the signal before it is heard", async () => {
    const spec = specOf([modelOf(IRIS, "iris")])
    const ends = await Promise.all(
      Array.from({ length: 8 }, async (_, index) => {
        const server = await launch(spec)
        await sleep(index * 80)
        server.child.kill("SIGTERM")
        return [await server.exitSoon(), server.output]
      }),
    )
    const strange = ends.filter(([end, output]) => !(end === 0 || (end === "SIGTERM" && output === "")))
    assert.deepEqual(strange, [])
  })
})
