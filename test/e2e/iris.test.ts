/** The sentence that must always work: import, `build --containerize`, `docker run`; and the answers are scikit-learn's. */
import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { bentoctl, docker, root, temporaryFolder, until, until200 } from "./support.ts"
import { assertWithin } from "../within.ts"

const { folder, remove } = await temporaryFolder()
const env = { BENTOML_HOME: path.join(folder, "bentoml") }
const containers: string[] = []
const images: string[] = []

after(async () => {
  if (containers.length > 0) await docker("rm", "-f", ...containers)
  if (images.length > 0) await docker("rmi", "-f", ...images)
  await remove()
})

const ok = async (...args: string[]): Promise<string> => {
  const { code, stdout, stderr } = await bentoctl(args, env)
  assert.equal(code, 0, `bentoctl ${args.join(" ")} exits ${code}:\n${stdout}${stderr}`)
  return stdout
}

describe("iris in a container", () => {
  let tag: string

  before(async () => {
    await ok("models", "import", path.join(root, "examples/iris/iris.onnx"), "--name", "iris_clf")
    const out = await ok("build", path.join(root, "examples/iris"), "--containerize", "-o", "tag")
    tag = out.trim().replace("__tag__:", "")
    images.push(tag, "iris_classifier:latest")
  })

  test("build -o tag prints nothing but the tag", () => {
    assert.match(tag, /^iris_classifier:[a-z2-7]{16}$/)
  })

  test("the image carries NAME:VERSION and NAME:latest", async () => {
    const ids = await Promise.all(
      [tag, "iris_classifier:latest"].map((name) => docker("image", "inspect", "-f", "{{.Id}}", name)),
    )
    assert.equal(ids[0], ids[1])
  })

  test("all 150 rows get scikit-learn's answers, without network, capabilities or a writable root", async () => {
    const golden = JSON.parse(await readFile(path.join(root, "examples/iris/golden.json"), "utf8")) as {
      inputs: number[][]
      labels: number[]
      probabilities: number[][]
    }
    const names = ["setosa", "versicolor", "virginica"]
    const id = await docker(
      "run",
      "-d",
      // The service comes from what was prepared; Node's own way to read TypeScript costs a tenth of the time to start.
      "-e",
      "NODE_OPTIONS=--no-strip-types",
      "--read-only",
      "--tmpfs",
      "/tmp",
      "--cap-drop",
      "ALL",
      "--network",
      "none",
      tag,
    )
    containers.push(id)
    const ask = `
      const until = Date.now() + 20000
      const ready = () => fetch("http://127.0.0.1:3000/readyz").then((r) => r.status === 200, () => false)
      while (!(await ready()) && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 20))
      const post = async (rows) => (await fetch("http://127.0.0.1:3000/classify", { method: "POST", body: JSON.stringify(rows) })).text()
      const inputs = ${JSON.stringify(golden.inputs)}
      const all = JSON.parse(await post(inputs))
      const single = await Promise.all(inputs.map((row) => post([row])))
      console.log(JSON.stringify({ all, single: single.map((text) => JSON.parse(text)) }))`
    const answer = JSON.parse(await docker("exec", id, "node", "--input-type=module", "-e", ask)) as {
      all: { labels: string[]; probabilities: number[][] }
      single: { labels: string[]; probabilities: number[][] }[]
    }
    assert.deepEqual(
      answer.all.labels,
      golden.labels.map((label) => names[label]),
    )
    golden.probabilities.forEach((row, index) => {
      assert.equal(answer.single[index]?.labels[0], names[golden.labels[index] ?? -1])
      row.forEach((probability, column) => {
        const got = [
          answer.all.probabilities[index]?.[column],
          answer.single[index]?.probabilities[0]?.[column],
        ]
        for (const value of got)
          assert.ok(
            Math.abs((value ?? Number.NaN) - probability) <= 1e-6,
            `row ${index}: ${value} is not ${probability}`,
          )
      })
    })
  })

  test("the image's user is numeric and is not root, and its health check passes", async () => {
    const id = await docker("run", "-d", "-p", "127.0.0.1::3000", tag)
    containers.push(id)
    const port = (await docker("port", id, "3000")).split(":").at(-1)
    await until200(`http://127.0.0.1:${port}/readyz`)
    assert.equal(await docker("exec", id, "id", "-u"), "1034")
    const [command, ...args] = JSON.parse(
      await docker("inspect", "-f", "{{json .Config.Healthcheck.Test}}", id),
    ).slice(1) as string[]
    await docker("exec", id, command ?? "", ...args)
  })

  test("an argument with a leading dash goes to serve, anything else is executed", async () => {
    assert.equal(await docker("run", "--rm", tag, "echo", "executed"), "executed")
    const id = await docker("run", "-d", "-p", "127.0.0.1::4321", tag, "--port", "4321")
    containers.push(id)
    const port = (await docker("port", id, "4321")).split(":").at(-1)
    await until200(`http://127.0.0.1:${port}/readyz`)
  })

  test("PORT moves the server", async () => {
    const id = await docker("run", "-d", "-e", "PORT=8080", "-p", "127.0.0.1::8080", tag)
    containers.push(id)
    const port = (await docker("port", id, "8080")).split(":").at(-1)
    await until200(`http://127.0.0.1:${port}/livez`)
  })
})

describe("SIGTERM", () => {
  test("a request in flight is answered, and the container exits 0 within two seconds", async () => {
    const tag = (
      await ok("build", path.join(root, "test/fixtures/bentos/slow"), "--containerize", "-o", "tag")
    )
      .trim()
      .replace("__tag__:", "")
    images.push(tag, "slow:latest")
    await assertWithin(2000, async () => {
      const id = await docker("run", "-d", "-p", "127.0.0.1::3000", tag)
      containers.push(id)
      const url = `http://127.0.0.1:${(await docker("port", id, "3000")).split(":").at(-1)}`
      await until200(`${url}/readyz`)
      const inFlight = fetch(`${url}/wait`, { method: "POST", body: `{"ms":1000}` })
      const isThere = /^bentoml_api_server_request_in_progress{[^}]*wait[^}]*} 1$/m
      await until("the request", async () => isThere.test(await (await fetch(`${url}/metrics`)).text()))
      const signalledMs = performance.now()
      await docker("kill", "--signal", "TERM", id)
      const response = await inFlight
      assert.deepEqual([response.status, await response.json()], [200, { waited: 1000 }])
      const exitCode = await docker("wait", id)
      assert.equal(exitCode, "0")
      return performance.now() - signalledMs
    })
  })
})
