/** A server that is left alone tells nobody anything: what its container sent, by the kernel's count. */
import assert from "node:assert/strict"
import { mkdir, writeFile } from "node:fs/promises"
import path from "node:path"
import { after, before, test } from "node:test"
import { bentoctl, docker, root, run, temporaryFolder, until200 } from "./support.ts"

const SERVING_MS = 60_000

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const image = `bentoctl-e2e-quiet-${process.pid}:1`
let id = ""

before(async () => {
  await mkdir(path.join(folder, "project"))
  await writeFile(path.join(folder, "project/bentofile.yaml"), "name: quiet\nmodels: [iris_clf]\n")
  for (const args of [
    ["models", "import", path.join(root, "examples/iris/iris.onnx"), "--name", "iris_clf"],
    ["build", path.join(folder, "project"), "--containerize", "-t", image],
  ]) {
    const { code, stderr } = await bentoctl(args, env)
    assert.equal(code, 0, stderr)
  }
})
after(async () => {
  if (id !== "") await docker("rm", "-f", id)
  await run("docker", ["rmi", "-f", image])
  await remove()
})

test("a minute of serving opens no connection and sends no datagram: nothing is reported to anybody", async () => {
  // On an ordinary network, where a connection to anywhere could be tried. The health check would connect from inside.
  id = await docker("run", "-d", "--no-healthcheck", "-p", "127.0.0.1::3000", image)
  const startedMs = performance.now()
  const url = `http://127.0.0.1:${(await docker("port", id, "3000")).split(":").at(-1)}`
  await until200(`${url}/readyz`)
  while (performance.now() - startedMs < SERVING_MS) {
    const answer = await fetch(`${url}/run`, { method: "POST", body: "[[5.9, 3, 5.1, 1.8]]" })
    assert.equal(answer.status, 200, await answer.text())
    await new Promise((resolve) => setTimeout(resolve, 1000))
  }
  assert.deepEqual(await sentBy(id), { connections: 0, datagrams: 0 })
  // And a program that does try is counted.
  const attempt = `require("net").connect(9, "192.0.2.1").on("error", () => {})
    require("dgram").createSocket("udp4").send("x", 9, "192.0.2.1")
    setTimeout(() => process.exit(), 300)`
  await docker("exec", id, "node", "-e", attempt)
  assert.deepEqual(await sentBy(id), { connections: 1, datagrams: 1 })
})

/** Attempts to connect, and datagrams (as for a name that is looked up), since the container's network was made. */
async function sentBy(id: string): Promise<{ connections: number; datagrams: number }> {
  const text = await docker("exec", id, "cat", "/proc/net/snmp", "/proc/net/snmp6")
  const counter = (protocol: string, name: string): number => {
    const [names = [], values = []] = text
      .split("\n")
      .filter((line) => line.startsWith(`${protocol}: `))
      .map((line) => line.split(" "))
    const value = values[names.indexOf(name)]
    assert.ok(value !== undefined, `${protocol} ${name}`)
    return Number(value)
  }
  const datagrams6 = Number(/^Udp6OutDatagrams\s+(\d+)$/m.exec(text)?.[1] ?? 0)
  return {
    connections: counter("Tcp", "ActiveOpens"),
    datagrams: counter("Udp", "OutDatagrams") + datagrams6,
  }
}
