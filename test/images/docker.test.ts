/** The adapter against an engine of our own, which answers what real ones do in the cases that are hard to provoke. */
import assert from "node:assert/strict"
import { createServer } from "node:http"
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import { createServer as createTcpServer } from "node:net"
import path from "node:path"
import { buffer } from "node:stream/consumers"
import { Readable } from "node:stream"
import { after, describe, test } from "node:test"
import type { BuildEvent } from "../../images/builder.ts"
import type { BuildContext } from "../../images/context.ts"
import { LoadRefused, PushRefused } from "../../images/builder.ts"
import { createDockerBuilder } from "../../images/docker.ts"
import { BentoError, BuildError } from "../../store/errors.ts"
import type { ErrorCode } from "../../store/errors.ts"
import { message } from "./protobuf.ts"
import type { Field } from "./protobuf.ts"
import { temporaryFolder } from "./support.ts"

const { folder, remove } = await temporaryFolder()
const servers: Server[] = []
after(async () => {
  for (const server of servers) {
    server.closeAllConnections()
    server.close()
  }
  await remove()
})

type Answer = (request: IncomingMessage, response: ServerResponse) => unknown

/** An engine with these answers, by method and path; DOCKER_HOST of it comes back. */
async function engine(answers: Readonly<Record<string, Answer>>): Promise<{ DOCKER_HOST: string }> {
  const socket = path.join(folder, `${servers.length}.sock`)
  const server = createServer((request, response) => {
    const route = `${request.method} ${request.url?.split("?")[0]}`
    const answer = answers[route]
    if (answer !== undefined) return void answer(request, response)
    response.writeHead(404, { "content-type": "application/json" }).end('{"message":"page not found"}')
  })
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(socket, resolve))
  return { DOCKER_HOST: `unix://${socket}` }
}

const json =
  (value: unknown, status = 200): Answer =>
  (_request, response) =>
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value))
const lines =
  (...values: unknown[]): Answer =>
  (request, response) => {
    request.resume()
    request.on("end", () => response.end(values.map((value) => `${JSON.stringify(value)}\r\n`).join("")))
  }
const trace = (...fields: Field[]): object => ({
  id: "moby.buildkit.trace",
  aux: message(...fields).toString("base64"),
})

function contextOf(tar: () => Readable): BuildContext {
  return {
    dockerfile: "" as BuildContext["dockerfile"],
    entries: [],
    sizeBytes: 0,
    digest: async () => "",
    tar,
  }
}
/** Sends a little, then nothing more. */
function stalling(): Readable {
  const tar = new Readable({ read: () => {} })
  tar.push(Buffer.alloc(10))
  return tar
}
const small = contextOf(() => Readable.from([Buffer.alloc(1024)]))
const options = { tags: ["a:1", "a:latest"], platform: "linux/amd64" } as const

async function collect(
  events: AsyncGenerator<BuildEvent, string | void>,
): Promise<{ events: BuildEvent[]; result: unknown }> {
  const seen: BuildEvent[] = []
  for (;;) {
    const next = await events.next()
    if (next.done === true) return { events: seen, result: next.value }
    seen.push(next.value)
  }
}

const hasCode = (code: ErrorCode, text: RegExp) => (error: unknown) =>
  error instanceof BentoError && error.code === code && text.test(`${error.message}\n${error.hint}`)

test("what the engine refuses is told in its words, and is no defect of ours", async () => {
  const refuse = json({ message: "invalid reference format: repository name must be lowercase" }, 400)
  const builder = createDockerBuilder(
    await engine({
      "GET /images/Foo/json": refuse,
      "GET /images/a%20b/json": refuse,
      "GET /images/json": json({ message: "invalid reference format, said a proxy" }, 403),
      "DELETE /images/x": refuse,
      "POST /images/x/tag": refuse,
    }),
  )
  for (const call of [
    () => builder.inspect("Foo"),
    () => builder.inspect("a b"),
    () => builder.list("label"),
    () => builder.remove("x"),
    () => builder.tag("x", "y:1"),
  ]) {
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof BentoError, String(error))
      assert.match(error.message, /^the Docker Engine refuses: invalid reference format/)
      return error.code === "ENGINE_REFUSED"
    })
  }
})

describe("the engine", () => {
  test("says what it is", async () => {
    const env = await engine({
      "GET /version": json({ Version: "20.10.24", ApiVersion: "1.41", Os: "linux", Arch: "amd64" }),
      "GET /info": json({ DriverStatus: [["Backing Filesystem", "extfs"]] }),
    })
    assert.deepEqual(await createDockerBuilder(env).ping(), {
      version: "20.10.24",
      apiVersion: "1.41",
      os: "linux",
      arch: "amd64",
      isLocal: true,
      store: "layers",
      noPartialLoads: null,
    })
  })

  for (const [what, version, info, store, reason] of [
    [
      "is Podman",
      { ApiVersion: "1.41", Components: [{ Name: "Podman Engine" }] },
      json({ DriverStatus: null }),
      "layers",
      /Podman/,
    ],
    ["does not tell how it keeps images", { ApiVersion: "1.41" }, json({}, 403), "layers", /does not tell/],
    [
      "keeps its images in containerd",
      { ApiVersion: "1.52" },
      json({ DriverStatus: [["driver-type", "io.containerd.snapshotter.v1"]] }),
      "blobs",
      /^$/,
    ],
  ] as const) {
    test(`that ${what} is asked what it takes, not guessed`, async () => {
      const env = await engine({ "GET /version": json(version), "GET /info": info })
      const found = await createDockerBuilder(env).ping()
      assert.equal(found.store, store)
      assert.match(found.noPartialLoads ?? "", reason)
    })
  }

  test("that is not there is ENGINE_UNREACHABLE, with its place and the way out", async () => {
    for (const host of [`unix://${folder}/none.sock`, `${folder}/none.sock`, "tcp://127.0.0.1:1"]) {
      await assert.rejects(
        createDockerBuilder({ DOCKER_HOST: host }).ping(),
        hasCode("ENGINE_UNREACHABLE", new RegExp(`${host.replaceAll(".", "\\.")}.*\\n.*DOCKER_HOST`)),
      )
    }
  })

  for (const [apiVersion, works] of [
    ["1.24", false],
    ["1.40", false],
    ["1.41", true],
    ["1.100", true],
    ["2.0", true],
  ] as const) {
    test(`that speaks API ${apiVersion} is ${works ? "taken" : "ENGINE_TOO_OLD"}`, async () => {
      const version = { Version: "18.09.1", ApiVersion: apiVersion, Os: "linux", Arch: "amd64" }
      const asked = createDockerBuilder(
        await engine({ "GET /version": json(version), "GET /info": json({}) }),
      ).ping()
      if (works) assert.equal((await asked).apiVersion, apiVersion)
      else await assert.rejects(asked, hasCode("ENGINE_TOO_OLD", /is 18\.09\.1.*20\.10/))
    })
  }

  for (const [what, answer] of [
    ["another server", (_: IncomingMessage, response: ServerResponse) => response.writeHead(404).end("no")],
    ["another server that knows the path", json({ version: "1" })],
    ["nothing", json(null)],
  ] as const) {
    test(`that is ${what} is ENGINE_UNREACHABLE, and no defect`, async () => {
      const env = await engine({ "GET /version": answer, "GET /info": answer })
      await assert.rejects(
        createDockerBuilder(env).ping(),
        hasCode("ENGINE_UNREACHABLE", /what answers there is no Docker Engine/),
      )
    })
  }

  test("that wants TLS and gets none says so", async () => {
    const refuse = json({ message: "Client sent an HTTP request to an HTTPS server." }, 400)
    await assert.rejects(
      createDockerBuilder(await engine({ "GET /version": refuse, "GET /info": refuse })).ping(),
      hasCode("ENGINE_TLS_FAILED", /DOCKER_TLS_VERIFY/),
    )
  })

  test("that takes the connection and says nothing is ENGINE_UNREACHABLE after a while", async () => {
    const env = await engine({ "GET /version": () => {} })
    await assert.rejects(
      createDockerBuilder(env, { pingTimeoutMs: 100 }).ping(),
      hasCode("ENGINE_UNREACHABLE", /no answer within 0\.1 s/),
    )
    const abort = new AbortController()
    setTimeout(() => abort.abort(new Error("stop")), 50)
    await assert.rejects(createDockerBuilder(env).ping(abort.signal), /^Error: stop$/)
  })

  test("that hangs up is an error and not a wait", async () => {
    const server = createTcpServer((socket) => socket.destroy())
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const { port } = server.address() as { port: number }
    await assert.rejects(
      createDockerBuilder({ DOCKER_HOST: `tcp://127.0.0.1:${port}` }).ping(),
      hasCode("ENGINE_UNREACHABLE", /closed the connection/),
    )
    server.close()
  })
})

describe("a base image", () => {
  const ensure = async (answers: Readonly<Record<string, Answer>>) =>
    (
      await collect(
        createDockerBuilder(await engine(answers)).ensureImage("node:24", {
          platform: "linux/amd64",
        }) as AsyncGenerator<BuildEvent>,
      )
    ).events

  test("that is in the engine is not pulled", async () => {
    assert.deepEqual(
      await ensure({ "GET /images/node:24/json": json({ Os: "linux", Architecture: "amd64" }) }),
      [],
    )
  })

  test("that is not there is pulled, with progress", async () => {
    const events = await ensure({
      "POST /images/create": lines(
        { id: "abc", progressDetail: { current: 5, total: 10 } },
        { status: "Done" },
      ),
    })
    assert.deepEqual(
      events.map(({ type }) => type),
      ["step", "progress", "step"],
    )
  })

  for (const [what, answers] of [
    ["in the stream", { "POST /images/create": lines({ status: "Pulling" }, { error: "no route to host" }) }],
    ["by status", { "POST /images/create": json({ message: "no route to host" }, 500) }],
    [
      "for another platform only",
      {
        "GET /images/node:24/json": json({ Os: "linux", Architecture: "arm64" }),
        "POST /images/create": json({ message: "no route to host" }, 404),
      },
    ],
  ] as const) {
    test(`that cannot be had (${what}) is BASE_IMAGE_UNAVAILABLE, with the ways out`, async () => {
      await assert.rejects(
        ensure(answers),
        hasCode(
          "BASE_IMAGE_UNAVAILABLE",
          /node:24.*no route to host[^]*docker\.base_image.*BENTOCTL_BASE_IMAGE/,
        ),
      )
    })
  }

  test("that does not fit on the disk is ENGINE_DISK_FULL", async () => {
    await assert.rejects(
      ensure({ "POST /images/create": lines({ error: "write /var/lib/x: no space left on device" }) }),
      hasCode("ENGINE_DISK_FULL", /no space left.*pull node:24/),
    )
  })
})

describe("a build", () => {
  const build = async (answer: Answer, context = small, more: { signal?: AbortSignal } = {}) =>
    collect(
      createDockerBuilder(await engine({ "POST /build": answer })).build(context, { ...options, ...more }),
    )
  const step = message([1, "v"], [3, "[1/2] RUN make"], [5, message([1, 1])])
  const failedStep = message(
    [1, "v"],
    [3, "[1/2] RUN make"],
    [5, message([1, 1])],
    [6, message([1, 2])],
    [7, "exit code: 2"],
  )

  test("asks for BuildKit, both tags and the platform, sends the context, and gives the image's id", async () => {
    let query = new URLSearchParams()
    let sent = 0
    const { result, events } = await build(async (request, response) => {
      query = new URL(`http://x${request.url}`).searchParams
      sent = (await buffer(request)).length
      const said = [trace([1, step]), { id: "moby.image.id", aux: { ID: "sha256:abc" } }]
      response.end(said.map((value) => JSON.stringify(value)).join("\n"))
    })
    assert.equal(result, "sha256:abc")
    assert.deepEqual(query.getAll("t"), ["a:1", "a:latest"])
    assert.deepEqual(
      [query.get("version"), query.get("platform"), query.get("session")],
      ["2", "linux/amd64", null],
    )
    assert.equal(sent, 1024)
    assert.deepEqual(events, [{ type: "step", step: "v", name: "[1/2] RUN make", state: "started" }])
  })

  test("that says {error} in the midst of its events fails, with the step and its log", async () => {
    const answer = lines(
      trace([1, step], [3, message([1, "v"], [4, "cc -o x\nboom\n"])]),
      trace([1, failedStep]),
      { errorDetail: { message: "x" }, error: "failed to solve: exit code: 2" },
      { id: "moby.image.id", aux: { ID: "sha256:abc" } },
    )
    await assert.rejects(build(answer), (error) => {
      assert.ok(error instanceof BuildError)
      assert.equal(error.message, "the image build failed at [1/2] RUN make: exit code 2")
      assert.equal(error.step, "[1/2] RUN make")
      assert.deepEqual(error.logTail, ["cc -o x", "boom"])
      return true
    })
  })

  test("whose step is for another processor says what that takes", async () => {
    const answer = lines(
      trace([1, step], [3, message([1, "v"], [4, "exec /bin/sh: exec format error\n"])]),
      trace([1, failedStep]),
      { error: "failed to solve: exit code: 1" },
    )
    await assert.rejects(
      build(answer),
      hasCode("BUILD_FAILED", /another processor than the engine's[^]*qemu/),
    )
  })

  test("by an engine without BuildKit is read from the text that it prints", async () => {
    const { result, events } = await build(
      lines({ stream: "STEP 1/1: FROM x\n" }, { stream: "COMMIT a:1\n" }, { aux: { ID: "sha256:abc" } }),
    )
    assert.equal(result, "sha256:abc")
    assert.deepEqual(
      events.map((event) => event.type === "step" && event.state),
      ["started", "done"],
    )
    const refused = build(
      lines(
        { stream: "STEP 1/1: RUN make\n" },
        { stream: "boom\n" },
        { error: 'building at STEP "RUN make": while running runtime: exit status 2\n' },
      ),
    )
    await assert.rejects(refused, (error) => {
      assert.ok(error instanceof BuildError)
      assert.equal(error.message, "the image build failed at [1/1] RUN make: exit code 2")
      assert.deepEqual(error.logTail, ["boom"])
      return true
    })
  })

  test("that ends without an image and without an error fails", async () => {
    await assert.rejects(
      build(lines(trace([1, step]))),
      hasCode("BUILD_FAILED", /ended the build without an image/),
    )
  })

  test("whose connection breaks fails", async () => {
    const cut: Answer = (request, response) => {
      request.resume()
      response.write(`${JSON.stringify(trace([1, step]))}\n`)
      setTimeout(() => request.socket.destroy(), 20)
    }
    await assert.rejects(build(cut), hasCode("BUILD_FAILED", /the image build failed/))
  })

  for (const [what, answer] of [
    ["in the stream", lines({ error: "failed to copy: write /x: no space left on device" })],
    [
      "as a status",
      json({ message: "Error processing tar file(exit status 1): write /x: no space left on device" }, 500),
    ],
  ] as const) {
    test(`that fills the engine's disk (${what}) is ENGINE_DISK_FULL`, async () => {
      await assert.rejects(build(answer), hasCode("ENGINE_DISK_FULL", /docker system prune/))
    })
  }

  test("whose context cannot be read ends with that reason", async () => {
    const broken = contextOf(() =>
      Readable.from(
        (async function* () {
          yield Buffer.alloc(1 << 16)
          await new Promise((resolve) => setTimeout(resolve, 10))
          throw new BuildError("x.onnx changed while the image was built")
        })(),
      ),
    )
    await assert.rejects(
      build((request) => request.resume(), broken),
      hasCode("BUILD_FAILED", /x\.onnx changed while/),
    )
  })

  test("that is aborted ends at once with the reason, closes the request and stops reading", async () => {
    for (const when of ["while sending", "while building"] as const) {
      const abort = new AbortController()
      let closed = false
      let tar: Readable | undefined
      const endless = contextOf(() => {
        tar = when === "while building" ? Readable.from([Buffer.alloc(10)]) : stalling()
        return tar
      })
      const startedMs = performance.now()
      await assert.rejects(
        build(
          (request, response) => {
            request.resume()
            request.socket.on("close", () => (closed = true))
            response.write(`${JSON.stringify(trace([1, step]))}\n`)
            setTimeout(() => abort.abort(new Error("stop")), 30)
          },
          endless,
          { signal: abort.signal },
        ),
        /^Error: stop$/,
      )
      assert.ok(performance.now() - startedMs < 20_000)
      assert.equal(tar?.destroyed, true, when)
      await new Promise((resolve) => setTimeout(resolve, 30))
      assert.ok(closed, when)
    }
  })

  test("is not begun when it was aborted before", async () => {
    await assert.rejects(
      build(() => assert.fail("asked"), small, { signal: AbortSignal.abort(new Error("stop")) }),
      /^Error: stop$/,
    )
  })
})

describe("loading an image", () => {
  const load = async (
    answer: Answer,
    archive = Readable.from([Buffer.alloc(1024)]),
    signal?: AbortSignal,
  ) => {
    const told = []
    const builder = createDockerBuilder(await engine({ "POST /images/load": answer }))
    for await (const progress of builder.load(archive, { signal })) told.push(progress)
    return told
  }

  test("sends the archive and tells how far the engine is", async () => {
    let sent = 0
    const told = await load(async (request, response) => {
      sent = (await buffer(request)).length
      response.end(
        `{"id":"abc","progressDetail":{"current":5,"total":10}}\n{"stream":"Loaded image ID: x"}\n`,
      )
    })
    assert.deepEqual([sent, told], [1024, [{ name: "abc", current: 5, total: 10 }]])
  })

  for (const [what, answer] of [
    ["in the stream", lines({ error: "open /tmp/layers/1.tar: no such file or directory" })],
    ["by status", json({ message: "invalid manifest: no such file or directory" }, 500)],
  ] as const) {
    test(`that the engine refuses ${what} is LoadRefused, whose reason can be told`, async () => {
      await assert.rejects(
        load(answer),
        (error) =>
          error instanceof LoadRefused && /^(open|invalid manifest).*no such file/.test(error.message),
      )
    })
  }

  test("that containerd cannot unpack is refused, and the image removed unless it has a name", async () => {
    const id = `sha256:${"a".repeat(64)}`
    for (const [tags, removed] of [
      [[], [id]],
      [["iris:1"], []],
    ] as const) {
      const asked: string[] = []
      const env = await engine({
        "POST /images/load": lines(
          { stream: `Loaded image ID: ${id}\n` },
          { stream: `Error unpacking image ${id}: content digest sha256:0: not found\n` },
        ),
        [`GET /images/${id}/json`]: json({ Id: id, RepoTags: tags }),
        [`DELETE /images/${id}`]: (request, response) => {
          asked.push(id)
          json([])(request, response)
        },
      })
      const told = createDockerBuilder(env).load(Readable.from([Buffer.alloc(1024)]), {})
      await assert.rejects(
        told.next(),
        (error) => error instanceof LoadRefused && /^content digest .* not found$/.test(error.message),
      )
      assert.deepEqual(asked, removed)
    }
  })

  test("that fills the engine's disk is ENGINE_DISK_FULL", async () => {
    for (const answer of [
      lines({ stream: "Error unpacking image x: write /x: no space left on device\n" }),
      lines({ error: "Error processing tar file(exit status 1): write /x: no space left on device" }),
      json({ message: "write /x: no space left on device" }, 500),
    ]) {
      await assert.rejects(load(answer), hasCode("ENGINE_DISK_FULL", /docker system prune/))
    }
  })

  test("whose connection breaks fails", async () => {
    const cut: Answer = (request, response) => {
      request.resume()
      response.write('{"stream":"x"}\n')
      setTimeout(() => request.socket.destroy(), 20)
    }
    await assert.rejects(load(cut), hasCode("BUILD_FAILED", /handed to the engine/))
  })

  test("whose file cannot be read ends with that reason", async () => {
    const broken = Readable.from(
      (async function* () {
        yield Buffer.alloc(1 << 16)
        throw new BuildError("x.onnx changed while the image was built")
      })(),
    )
    await assert.rejects(
      load((request) => request.resume(), broken),
      hasCode("BUILD_FAILED", /x\.onnx changed/),
    )
  })

  test("that is aborted ends at once with the reason, closes the request and stops reading", async () => {
    const abort = new AbortController()
    const archive = stalling()
    let closed = false
    const startedMs = performance.now()
    await assert.rejects(
      load(
        (request) => {
          request.resume()
          request.socket.on("close", () => (closed = true))
          setTimeout(() => abort.abort(new Error("stop")), 30)
        },
        archive,
        abort.signal,
      ),
      /^Error: stop$/,
    )
    assert.ok(performance.now() - startedMs < 20_000)
    await new Promise((resolve) => setTimeout(resolve, 30))
    assert.ok(archive.destroyed && closed)
  })
})

describe("pushing an image", () => {
  const push = async (
    answer: Answer,
    auth: { username: string; password: string } | null = null,
    signal?: AbortSignal,
  ) => {
    const told = []
    const builder = createDockerBuilder(await engine({ "POST /images/r.example/a/b/push": answer }))
    const said = builder.push("r.example/a/b:1", { auth, signal })
    for (;;) {
      const next = await said.next()
      if (next.done === true) return { told, digest: next.value.digest }
      told.push(next.value)
    }
  }

  for (const [what, auth, expected] of [
    [
      "credentials",
      { username: "me", password: "p\u00fc\u00ff?>" },
      { username: "me", password: "p\u00fc\u00ff?>" },
    ],
    ["word that there are no credentials", null, {}],
  ] as const) {
    test(`sends the name, the tag and ${what}, and tells what the engine says of each layer`, async () => {
      let header = ""
      let query = ""
      const result = await push((request, response) => {
        header = String(request.headers["x-registry-auth"])
        query = request.url?.split("?")[1] ?? ""
        lines(
          { status: "The push refers to repository [r.example/a/b]" },
          { status: "Pushing", id: "abc", progressDetail: { current: 5, total: 10 } },
          { status: "Pushed", id: "abc", progressDetail: {} },
          { status: "1: digest: sha256:d size: 3" },
          { progressDetail: {}, aux: { Tag: "1", Digest: "sha256:d", Size: 3 } },
        )(request, response)
      }, auth)
      assert.equal(query, "tag=1")
      assert.match(header, /^[\w=-]+$/)
      assert.deepEqual(JSON.parse(Buffer.from(header, "base64url").toString()), expected)
      assert.deepEqual(result, {
        told: [
          { layer: "abc", status: "Pushing", current: 5, total: 10 },
          { layer: "abc", status: "Pushed", current: 0, total: 0 },
        ],
        digest: "sha256:d",
      })
    })
  }

  test("takes the digest from the words of an engine that has no other", async () => {
    const digest = `sha256:${"a".repeat(64)}`
    const answer = lines({ status: `1: digest: ${digest} size: 427` })
    assert.deepEqual(await push(answer), { told: [], digest })
  })

  for (const [what, answer, message] of [
    ["that fails in the stream", lines({ errorDetail: { message: "EOF" }, error: "EOF" }), /^EOF$/],
    ["of what is not there", json({ message: "An image does not exist" }, 404), /^An image does not exist$/],
    ["that ends without a digest", lines({ status: "Pushed", id: "abc" }), /without a digest/],
  ] as const) {
    test(`${what} is PushRefused, with its reason`, async () => {
      await assert.rejects(
        push(answer),
        (error) => error instanceof PushRefused && message.test(error.message),
      )
    })
  }

  test("that is aborted ends at once with the reason, and closes the request", async () => {
    const abort = new AbortController()
    let closed = false
    const aborted = push(
      (request, response) => {
        request.resume()
        request.socket.on("close", () => (closed = true))
        response.write('{"status":"Pushing","id":"abc"}\n')
        setTimeout(() => abort.abort(new Error("stop")), 30)
      },
      null,
      abort.signal,
    )
    await assert.rejects(aborted, /^Error: stop$/)
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.equal(closed, true)
  })
})

describe("what the engine has", () => {
  test("is told in our words", async () => {
    const builder = createDockerBuilder(
      await engine({
        "GET /images/a:1/json": json({
          Id: "sha256:1",
          Os: "linux",
          Architecture: "arm64",
          Variant: "v8",
          RootFS: { Layers: ["sha256:2"] },
          Config: { Env: ["A=1"] },
          Size: 7,
        }),
        "GET /images/sha256:1/history": json([
          { Created: 2, CreatedBy: "ENV", Comment: "", Size: 0 },
          { Created: 1, CreatedBy: "ADD", Comment: "c", Size: 5 },
        ]),
        "GET /images/json": json([
          {
            Id: "old",
            Created: 1,
            RepoTags: ["<none>:<none>"],
            RepoDigests: ["<none>@<none>", "reg/a@sha256:1"],
            Labels: null,
            Size: 1,
          },
          { Id: "new", Created: 2, RepoTags: ["b:1"], Labels: { x: "1" }, Size: 2 },
        ]),
      }),
    )
    assert.deepEqual(await builder.inspect("a:1"), {
      id: "sha256:1",
      os: "linux",
      architecture: "arm64",
      variant: "v8",
      layers: ["sha256:2"],
      config: { Env: ["A=1"] },
      sizeBytes: 7,
      repoDigests: [],
    })
    assert.equal(await builder.inspect("b:1"), null)
    assert.deepEqual(
      (await builder.history("sha256:1")).map(({ createdBy, createdS }) => [createdBy, createdS]),
      [
        ["ADD", 1],
        ["ENV", 2],
      ],
    )
    assert.deepEqual(await builder.list("x"), [
      { id: "new", tags: ["b:1"], labels: { x: "1" }, sizeBytes: 2 },
      { id: "old", tags: [], labels: {}, sizeBytes: 1 },
    ])
  })

  test("can be named and removed; what is gone is gone, and what is used stays", async () => {
    let asked = ""
    const builder = createDockerBuilder(
      await engine({
        "POST /images/sha256:1/tag": (request, response) => {
          asked = request.url ?? ""
          response.writeHead(201).end()
        },
        "DELETE /images/used:1": json({ message: "conflict" }, 409),
        "DELETE /images/idle:1": json([{ Untagged: "idle:1" }]),
      }),
    )
    assert.equal(await builder.tag("sha256:1", "registry.local:5000/team/x:2"), true)
    assert.deepEqual(Object.fromEntries(new URL(`http://x${asked}`).searchParams), {
      repo: "registry.local:5000/team/x",
      tag: "2",
    })
    assert.equal(await builder.tag("sha256:2", "a:1"), false)
    assert.deepEqual(
      [await builder.remove("used:1"), await builder.remove("idle:1"), await builder.remove("gone:1")],
      [false, true, true],
    )
  })

  test("of an image's files is read in a container that never runs, and goes whatever happens", async () => {
    const asked: string[] = []
    const note =
      (answer: Answer): Answer =>
      (request, response) => {
        asked.push(`${request.method} ${request.url?.split("?")[0]}`)
        return answer(request, response)
      }
    const builder = createDockerBuilder(
      await engine({
        "POST /containers/create": note(json({ Id: "c" }, 201)),
        "GET /containers/c/archive": note((_, response) => response.end("tar")),
        "DELETE /containers/c": note((_, response) => response.writeHead(204).end()),
      }),
    )
    const image = { id: "sha256:1", platform: "linux/amd64" } as const
    const read = async (tar: Readable): Promise<string> => (await buffer(tar)).toString()
    assert.deepEqual(await builder.readPaths(image, ["/opt"], read), ["tar"])
    const failing = async (): Promise<string> => {
      throw new Error("no")
    }
    await assert.rejects(builder.readPaths(image, ["/opt"], failing), /^Error: no$/)
    const once = ["POST /containers/create", "GET /containers/c/archive", "DELETE /containers/c"]
    assert.deepEqual(asked, [...once, ...once])
  })
})
