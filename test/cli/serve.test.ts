/** `bentoctl serve`, as the real program: targets, ports, signals, reloading. */
import assert from "node:assert/strict"
import { appendFile, rm, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import path from "node:path"
import { before, describe, test } from "node:test"
import { folderWith, pythonStore, root, run, scratch, start, until, type Started } from "./support.ts"

const SERVICE = `
import { api, json, service } from "bentoctl/runtime"
import { answer } from "./answer.ts"
export const svc = service({
  name: "asked",
  apis: [api({ name: "ask", input: json<unknown>(), output: json<unknown>(), handler: () => answer })],
})
export const slow = service({
  name: "slow",
  apis: [api({ name: "ask", input: json<unknown>(), output: json<unknown>(), handler: async () => {
    await new Promise((resolve) => setTimeout(resolve, 700))
    return "late"
  } })],
})
`

const iris = path.join(root, "examples/iris/iris.onnx")
let home: string
before(async () => {
  home = await scratch()
  assert.equal((await run(["models", "import", iris, "--name", "iris"], { home })).code, 0)
})

function project(answer = 1): Promise<string> {
  return folderWith({
    "bentofile.yaml": "service: service.ts:svc\nexclude: [ignored.txt]\n",
    "service.ts": SERVICE,
    "answer.ts": `export const answer = ${answer}\n`,
    "node_modules/x/index.js": "",
  })
}

interface Server extends Started {
  readonly port: number
  readonly ask: (route?: string, body?: string) => Promise<unknown>
}

async function serve(
  args: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<Server> {
  const port = await freePort()
  const program = start(["serve", ...args, "--host", "127.0.0.1", "-p", String(port)], {
    cwd: options.cwd ?? root,
    env: { BENTOML_HOME: home, ...options.env },
  })
  const ask = async (route = "/ask", body = "null"): Promise<unknown> => {
    const response = await fetch(`http://127.0.0.1:${port}${route}`, { method: "POST", body })
    return response.json()
  }
  return { ...program, port, ask }
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

test("--print-config prints the configuration with its sources, and serves nothing", async () => {
  const printed = await run(["serve", "--print-config", "-p", "4001"], { home, cwd: await project() })
  assert.equal(printed.code, 0, printed.stderr)
  assert.match(printed.stdout, /^ {4}port: 4001 +# flag --port$/m)
  assert.doesNotMatch(printed.stdout, /Serving/)
  assert.equal((await run(["serve", "--print-config", "--reload"], { home })).code, 2)
})

const ready = (server: Server, times = 1): Promise<void> =>
  until(
    `the server to be ready (${times})`,
    () => (server.output().stdout.match(/Serving "/g)?.length ?? 0) >= times,
  )

async function stopped(server: Server): Promise<number> {
  server.child.kill("SIGINT")
  return (await server.ended).code
}

describe("what is served", () => {
  test("a project with a description that is longer than any argument of a program", async () => {
    const folder = await project()
    await writeFile(path.join(folder, "page.md"), "a long page\n".repeat(20_000))
    await appendFile(path.join(folder, "bentofile.yaml"), "description: {file: page.md}\n")
    const server = await serve([folder])
    await ready(server)
    assert.equal(await server.ask(), 1)
    assert.equal(await stopped(server), 0)
  })

  test("a project folder, by its bentofile", async () => {
    const server = await serve([await project()])
    await ready(server)
    assert.equal(await server.ask(), 1)
    assert.equal(await stopped(server), 0)
  })

  test("the working directory, when nothing is named", async () => {
    const server = await serve([], { cwd: await project(2) })
    await ready(server)
    assert.equal(await server.ask(), 2)
    assert.equal(await stopped(server), 0)
  })

  test("a service of the working directory, over what its bentofile names", async () => {
    const server = await serve(["service.ts:slow"], { cwd: await project() })
    await ready(server)
    assert.equal(await server.ask(), "late")
    assert.equal(await stopped(server), 0)
  })

  test("a Bento, by tag and by folder, with the models of the store", async () => {
    const folder = await folderWith({ "bentofile.yaml": "models: [iris]\nname: plain\n" })
    assert.equal((await run(["build", folder, "--version", "1"], { home })).code, 0)
    for (const target of ["plain", "plain:1", path.join(home, "bentos/plain/1")]) {
      const server = await serve([target])
      await ready(server)
      const answer = (await server.ask("/run", '{"X": [[5.9, 3, 5.1, 1.8]]}')) as { output_label: number[] }
      assert.deepEqual(answer.output_label, [2])
      assert.equal(await stopped(server), 0)
    }
  })
})

test("a Bento of Python's BentoML is refused, with what can be served of it", async () => {
  const python = await pythonStore()
  for (const bento of ["echo", "legacy_iris"]) {
    const program = start(["serve", bento, "--host", "127.0.0.1", "-p", String(await freePort())], {
      env: { BENTOML_HOME: python },
    })
    const { code, stderr } = await program.ended
    assert.equal(code, 1)
    assert.match(stderr, /^Error: .*built by Python's BentoML, and its service needs Python$/m)
    assert.match(
      stderr,
      /^Hint: Its models can be served: list them in a bentofile\.yaml.*\[MANIFEST_INVALID\]$/m,
    )
  }
})

describe("signals", () => {
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    test(`${signal}: a request in flight is answered, then exit 0`, async () => {
      const server = await serve(["service.ts:slow"], { cwd: await project() })
      await ready(server)
      const answer = server.ask()
      await new Promise((resolve) => setTimeout(resolve, 200))
      server.child.kill(signal)
      assert.equal(await answer, "late")
      const { code, stderr } = await server.ended
      assert.equal(code, 0)
      assert.ok(stderr.includes(`${signal}: finishing requests in flight`), stderr)
    })
  }

  test("a second Ctrl-C ends it at once", async () => {
    const server = await serve(["service.ts:slow"], { cwd: await project() })
    await ready(server)
    const answer = server.ask().catch(() => "cut off")
    await new Promise((resolve) => setTimeout(resolve, 100))
    server.child.kill("SIGINT")
    await new Promise((resolve) => setTimeout(resolve, 100))
    server.child.kill("SIGINT")
    assert.equal(await answer, "cut off")
    assert.notEqual((await server.ended).code, 0)
  })

  test("the server does not outlive a killed bentoctl", async () => {
    const server = await serve([await project()])
    await ready(server)
    server.child.kill("SIGKILL")
    await until("the server to go", () =>
      server.ask().then(
        () => false,
        () => true,
      ),
    )
  })
})

describe("--reload", () => {
  test("restarts when a source changes, and not for what is left out", async () => {
    const folder = await project(1)
    const server = await serve([folder, "--reload"])
    await ready(server)
    assert.equal(await server.ask(), 1)
    await writeFile(path.join(folder, "ignored.txt"), "x")
    await writeFile(path.join(folder, "node_modules/x/index.js"), "x")
    await new Promise((resolve) => setTimeout(resolve, 400))
    assert.doesNotMatch(server.output().stderr, /changed/)
    await writeFile(path.join(folder, "answer.ts"), "export const answer = 22\n")
    await ready(server, 2)
    assert.equal(await server.ask(), 22)
    assert.match(server.output().stderr, /Something changed/)
    assert.doesNotMatch(server.output().stderr, /ended with code/)
    assert.equal(await stopped(server), 0)
  })

  test("a broken edit is shown while the last good version goes on serving", async () => {
    const folder = await project(1)
    const server = await serve([folder, "--reload"])
    await ready(server)
    await appendFile(path.join(folder, "service.ts"), "export const = 1\n")
    await until("the error", () => server.output().stderr.includes("goes on serving"))
    assert.match(server.output().stderr, /service\.ts:\d+.*SyntaxError[\s\S]+\[SERVICE_INVALID\]/)
    assert.equal(await server.ask(), 1)
    await writeFile(path.join(folder, "service.ts"), SERVICE)
    await writeFile(path.join(folder, "answer.ts"), "export const answer = 333\n")
    await ready(server, 2)
    assert.equal(await server.ask(), 333)
    assert.equal(await stopped(server), 0)
  })

  test("a service that is broken at the start is served once it is mended", async () => {
    const folder = await project(1)
    await rm(path.join(folder, "answer.ts"))
    const server = await serve([folder, "--reload"])
    await until("the error", () => server.output().stderr.includes("Nothing is being served"))
    await writeFile(path.join(folder, "answer.ts"), "export const answer = 4\n")
    await ready(server)
    assert.equal(await server.ask(), 4)
    assert.equal(await stopped(server), 0)
  })

  test("a new version of its model, and no other, restarts it", async () => {
    const folder = await folderWith({ "bentofile.yaml": "models: [iris:latest]\nname: plain\n" })
    const server = await serve([folder, "--reload"])
    await ready(server)
    await run(["models", "import", path.join(root, "examples/digits/digits.onnx"), "--name", "digits"], {
      home,
    })
    await new Promise((resolve) => setTimeout(resolve, 400))
    assert.doesNotMatch(server.output().stderr, /changed/)
    await run(["models", "import", iris, "--name", "iris"], { home })
    await ready(server, 2)
    assert.equal(await stopped(server), 0)
  })

  test("a port in use ends it", async () => {
    const taken = createServer()
    await new Promise<void>((resolve) => taken.listen(0, "127.0.0.1", resolve))
    const { port } = taken.address() as { port: number }
    const program = start(["serve", await project(), "--reload", "--host", "127.0.0.1", "-p", String(port)], {
      env: { BENTOML_HOME: home },
    })
    const { code, stderr } = await program.ended
    taken.close()
    assert.equal(code, 1)
    assert.match(stderr, /PORT_IN_USE/)
  })

  test("of a Bento is a usage error", async () => {
    const folder = await folderWith({ "bentofile.yaml": "models: [iris]\nname: fixed\n" })
    assert.equal((await run(["build", folder], { home })).code, 0)
    const { code, stderr } = await run(["serve", "fixed", "--reload"], { home })
    assert.equal(code, 2)
    assert.match(stderr, /--reload needs sources to watch/)
  })
})
