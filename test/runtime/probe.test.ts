/** Finding a server among the listeners of a family of processes, with real ones. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { networkInterfaces } from "node:os"
import { type TestContext, describe, test } from "node:test"
import { isReady } from "../../runtime/probe.ts"

/** As an init: it only starts another, which ends with its input. */
const INIT = `require("node:child_process").spawn(process.execPath, process.argv.slice(1), { stdio: "inherit" })`
/** Answers with a status at each address; with 0 never. */
const LISTENERS = `
  const { createServer } = require("node:http")
  const wanted = JSON.parse(process.argv[1])
  const listening = wanted.map(([host, status]) => new Promise((resolve) => {
    createServer((_, response) => {
      if (status > 0) response.writeHead(status).end()
    }).listen(0, host, resolve)
  }))
  Promise.all(listening).then(() => console.log("up"))
  process.stdin.resume().on("end", () => process.exit())`

type Wanted = readonly (readonly [host: string, status: number])[]

/** The pid of an init below which a process listens so. */
async function init(t: TestContext, wanted: Wanted): Promise<number> {
  const child = spawn(process.execPath, ["-e", INIT, "--", "-e", LISTENERS, JSON.stringify(wanted)], {
    stdio: ["pipe", "pipe", "inherit"],
  })
  t.after(() => child.stdin.end())
  await once(child.stdout, "data")
  return child.pid ?? 0
}

/** A port at which this process answers 200. */
async function own(t: TestContext): Promise<number> {
  const server = createServer((_, response) => void response.end())
  t.after(() => server.close())
  await once(server.listen(0, "127.0.0.1"), "listening")
  return (server.address() as AddressInfo).port
}

const hasV6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === "::1"))
const NEVER_MS = 600_000

describe("a server is ready", { skip: process.platform !== "linux" }, () => {
  const cases: [string, Wanted, boolean][] = [
    ["below an init, at one address only", [["127.0.0.2", 200]], true],
    [
      "beside listeners that are not the server",
      [
        ["127.0.0.1", 404],
        ["127.0.0.1", 0],
        ["0.0.0.0", 200],
      ],
      true,
    ],
    ["at an address of IPv6", [["::1", 200]], hasV6],
    ["at all addresses", [["::", 200]], hasV6],
    [
      "and is not while it says so, whoever else listens",
      [
        ["127.0.0.1", 503],
        ["127.0.0.2", 404],
      ],
      false,
    ],
  ]
  for (const [name, wanted, expected] of cases) {
    const needsV6 = wanted.some(([host]) => host.includes(":"))
    test(name, { skip: needsV6 && !hasV6 }, async (t) => {
      const pid = await init(t, wanted)
      assert.equal(await isReady(pid, { port: await own(t), timeoutMs: NEVER_MS }), expected)
    })
  }

  test("and is not where nobody answers in time", async (t) => {
    const pid = await init(t, [["127.0.0.1", 0]])
    assert.equal(await isReady(pid, { port: 1, timeoutMs: 50 }), false)
  })

  test("at its port, where nobody is seen to listen", async (t) => {
    const pid = await init(t, [])
    assert.equal(await isReady(pid, { port: await own(t), timeoutMs: NEVER_MS }), true)
    assert.equal(await isReady(pid, { port: 1, timeoutMs: NEVER_MS }), false)
  })
})
