/** Clients that leave, dawdle or come in masses; the others must not notice. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readdirSync } from "node:fs"
import { describe, test } from "node:test"
import { KILLS_ONCE } from "./deadly-numbers.ts"
import {
  IRIS,
  type ServerProcess,
  Wire,
  eventually,
  modelOf,
  request,
  sleep,
  specOf,
  start,
} from "./support.ts"

const iris = () => specOf([modelOf(IRIS, "iris")])
const FLOWER = "[[5.9,3,5.1,1.8]]"
/** On a machine that does other things as well, somebody who is not held up has an answer within this time. */
const UNAFFECTED_MS = 1000

/** How long each of a few requests takes, one after the other on new connections. */
async function latencies(server: ServerProcess, count: number): Promise<number[]> {
  const taken: number[] = []
  for (let index = 0; index < count; index++) {
    const startedMs = performance.now()
    const wire = new Wire(server.port)
    assert.equal((await wire.ask("/run", FLOWER))?.status, 200)
    wire.destroy()
    taken.push(performance.now() - startedMs)
  }
  return taken
}

const statusesOf = (received: string): string[] =>
  [...received.matchAll(/^HTTP\/1\.1 (\d+)/gm)].map(([, status]) => status ?? "")

test("clients that leave: half of 60 while they wait; the others are answered, nothing is left behind", async () => {
  const server = await start(specOf([modelOf("slow.onnx", "slow")]))
  const connection = new Wire(server.port)
  assert.equal((await connection.ask("/run", "[1]"))?.status, 200)
  const before = {
    sockets: await server.socketsAtRest(),
    rows: await server.metric("bentoml_runner_adaptive_batch_size_sum"),
  }
  // Keeps the worker busy while the others queue up.
  const busy = connection.ask("/run", "[5000]")
  await eventually(
    async () => (await server.metric("bentoml_api_server_request_in_progress", '"/run"')) === 1,
  )
  const clients = Array.from({ length: 60 }, (_, index) => ({ index, wire: new Wire(server.port) }))
  const answers = clients.map(({ wire, index }) => wire.ask("/run", `[${index}]`))
  await eventually(async () => (await server.metric("bentoml_runner_queue_jobs")) === 60)
  for (const { wire, index } of clients) if (index % 2 === 1) wire.destroy()
  await eventually(async () => (await server.metric("bentoml_runner_queue_jobs")) === 30)
  assert.equal((await busy)?.status, 200)
  assert.deepEqual(
    await Promise.all(answers.map(async (answer) => (await answer)?.body)),
    clients.map(({ index }) => (index % 2 === 1 ? undefined : `{"Y":[${index}]}`)),
  )
  const rows = (await server.metric("bentoml_runner_adaptive_batch_size_sum")) - before.rows
  assert.equal(rows, 1 + 30, "those that left have not been run")
  assert.equal(await server.metric("bentoml_api_server_request_total", '"499"'), 30)
  for (const { wire } of clients) wire.destroy()
  await eventually(() => server.sockets() <= before.sockets)
  assert.equal(await server.metric("bentoml_api_server_request_in_progress", '"/run"'), 0)
  assert.equal(await server.metric("bentoml_runner_queue_bytes"), 0)
})

test("a thousand idle connections: others are served as before, and their descriptors come back", async () => {
  const server = await start(iris())
  await latencies(server, 10)
  const before = await server.socketsAtRest()
  const idle = Array.from({ length: 1000 }, () => new Wire(server.port))
  await eventually(() => server.sockets() >= before + 1000)
  // Were they in the way, it would be for 15 s, until the first of them is cut off.
  assert.ok(Math.max(...(await latencies(server, 20))) < 10_000)
  for (const wire of idle) wire.destroy()
  await eventually(() => server.sockets() <= before)
})

describe("clients that take their time", () => {
  const config = "api_server: { http: { receive_timeout_s: 2 } }"
  const head = `POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n`

  /** Sends a byte each 200 ms for as long as somebody listens. */
  async function drip(wire: Wire, bytes: string): Promise<void> {
    for (const byte of bytes) {
      if (wire.ended !== undefined) return
      wire.send(byte)
      await sleep(200)
    }
  }

  for (const [what, first, slow] of [
    ["with the body", head, "[".padEnd(100)],
    ["with the head", "", head],
    ["with everything, sending nothing at all", "", ""],
  ] as const) {
    test(`${what} are cut off with 408, and nobody waits for them`, async () => {
      const server = await start(iris(), { config })
      const startedMs = performance.now()
      const wires = Array.from({ length: 20 }, () => new Wire(server.port))
      const dripping = wires.map((wire) => {
        if (first !== "") wire.send(first)
        return drip(wire, slow)
      })
      assert.ok(Math.max(...(await latencies(server, 10))) < UNAFFECTED_MS)
      const received = await Promise.all(wires.map((wire) => wire.rest()))
      const tookMs = performance.now() - startedMs
      assert.ok(tookMs > 1900 && tookMs < 20_000, `cut off after ${tookMs} ms`)
      for (const text of received) assert.deepEqual(statusesOf(text), ["408"])
      await Promise.all(dripping)
      assert.equal(await server.metric("bentoml_api_server_request_in_progress", '"/run"'), 0)
    })
  }
})

describe("clients that are slow to take their answers", () => {
  const CODE = `
import { api, service, text } from "bentoctl/runtime"
export const svc = service({
  name: "long",
  apis: [api({ name: "run", input: text(), output: text(), handler: (x) => x.repeat(10_000) })],
})`
  const config = "api_server: { http: { receive_timeout_s: 1 } }"

  test("those that take nothing hold up nobody else, and are given up", async () => {
    const server = await start(specOf([], CODE), { config })
    const before = await server.socketsAtRest()
    const deaf = Array.from({ length: 10 }, () => new Wire(server.port))
    for (const wire of deaf) {
      wire.pause()
      wire.send(request("/run", "x".repeat(1000)).repeat(3))
    }
    await eventually(() => server.sockets() === before + 10)
    const startedMs = performance.now()
    const other = new Wire(server.port)
    assert.equal((await other.ask("/run", "y"))?.body.length, 10_000)
    assert.ok(performance.now() - startedMs < UNAFFECTED_MS)
    other.destroy()
    await eventually(() => server.sockets() <= before)
    assert.equal(await server.metric("bentoml_api_server_request_in_progress", '"/run"'), 0)
  })

  test("one that takes its answer bit by bit gets all of it", async () => {
    const server = await start(specOf([], CODE), { config })
    const wire = new Wire(server.port)
    wire.send(request("/run", "x".repeat(5000)))
    const startedMs = performance.now()
    while (wire.received.length < 50_000_000 && wire.ended === undefined) {
      wire.resume()
      await sleep(1)
      wire.pause()
      await sleep(80)
    }
    const tookMs = performance.now() - startedMs
    assert.ok(wire.received.length > 50_000_000 && tookMs > 1000, `${wire.received.length} in ${tookMs} ms`)
  })
})

describe("more clients than the process may have descriptors", () => {
  const answered = async (wires: readonly Wire[]): Promise<number> => {
    const answers = await Promise.all(wires.map((wire) => wire.ask("/run", FLOWER)))
    return answers.filter((answer) => answer?.status === 200).length
  }

  test("as many as there is room for are served, the others closed, the log says so once, all is well after", async () => {
    const server = await start(iris(), { descriptors: 150, preload: "deadly-numbers.ts" })
    const first = new Wire(server.port)
    assert.equal(await answered([first]), 1)
    const crowd = Array.from({ length: 200 }, () => new Wire(server.port))
    await eventually(() => crowd.filter((wire) => wire.ended !== undefined).length === 200 - 49)
    const served = crowd.filter((wire) => wire.ended === undefined)
    assert.equal(await answered([first, ...served]), 50)
    // There is room for what the server itself needs, such as another worker.
    const deadly = await first.ask("/run", `[[${KILLS_ONCE},1,1,1]]`)
    assert.equal(deadly?.status, 200, server.output)
    for (const wire of crowd) wire.destroy()
    await eventually(async () => (await server.status("/readyz")) === 200)
    assert.equal(await answered(Array.from({ length: 40 }, () => new Wire(server.port))), 40)
    assert.equal(server.output.match(/50 connections are open: more are closed/g)?.length, 1, server.output)
  })

  test("also where others have taken the descriptors: the server lives, and takes new ones when it can", async () => {
    const server = await start(iris())
    const first = new Wire(server.port)
    assert.equal(await answered([first]), 1)
    const open = readdirSync(`/proc/${server.pid}/fd`).length
    execFileSync("prlimit", ["--pid", `${server.pid}`, `--nofile=${open + 5}`])
    const crowd = Array.from({ length: 50 }, () => new Wire(server.port))
    await eventually(() => crowd.filter((wire) => wire.ended !== undefined).length >= 25)
    assert.equal(await answered([first]), 1)
    for (const wire of crowd) wire.destroy()
    await eventually(async () => (await server.status("/readyz")) === 200)
    assert.equal(await answered([new Wire(server.port)]), 1)
  })
})
