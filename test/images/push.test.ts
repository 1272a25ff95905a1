/** Pushing, with an engine that says what real ones were heard to say. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { PushRefused } from "../../images/builder.ts"
import type { BuildEvent, PushProgress } from "../../images/builder.ts"
import { preparePush, pushImages } from "../../images/push.ts"
import type { PushTarget } from "../../images/push.ts"
import { registryOf } from "../../images/reference.ts"
import { BentoError } from "../../store/errors.ts"

const target = (auth: PushTarget["credentials"]["auth"] = null): PushTarget => ({
  reference: "r.example:5000/ml/iris:1",
  registry: "r.example:5000",
  credentials: { auth, source: "/home/me/.docker/config.json" },
})

type Said = readonly [layer: string, status: string, current?: number, total?: number]

/** An engine that says this, and then fails or has the image pushed. */
function engine(said: readonly Said[], failure?: Error) {
  return {
    async *push(): AsyncGenerator<PushProgress, { digest: string }> {
      for (const [layer, status, current = 0, total = 0] of said) yield { layer, status, current, total }
      if (failure !== undefined) throw failure
      return { digest: "sha256:d" }
    },
    inspect: async () => ({ ...image, layers: ["base", "a", "b", "c"].map((id) => `sha256:${id}`) }),
    history: async () => [
      line("/bin/sh -c #(nop) ADD"),
      line("bentoctl: model of an image below in /x"),
      line("container config"),
      line("bentoctl: model iris:1 in /home/bentoml/bento/models/iris/1"),
      line("bentoctl: source in /home/bentoml/bento/src", 512),
      line("container config"),
    ],
  }
}

const image = {
  id: "sha256:i",
  os: "",
  architecture: "",
  variant: null,
  config: {},
  repoDigests: [],
  sizeBytes: 0,
}
const line = (createdBy: string, sizeBytes = 0) => ({ createdS: 0, createdBy, comment: "", sizeBytes })

async function push(
  said: readonly Said[],
  failure?: Error,
  given: PushTarget = target(),
): Promise<{ events: BuildEvent[]; error: unknown }> {
  const events: BuildEvent[] = []
  try {
    for await (const event of pushImages(engine(said, failure), [given], { clock: () => 0 }))
      events.push(event)
    return { events, error: undefined }
  } catch (error) {
    return { events, error }
  }
}

/** `layer a started`, `layer a | text`, `layer a 5/10`. */
function short(events: readonly BuildEvent[]): string[] {
  return events.map((event) => {
    const at = "step" in event ? event.step.replace(/^push \S+ ?/, "") || "all" : ""
    if (event.type === "step") return `${at} ${event.state}`
    if (event.type === "log") return `${at} | ${event.text}`
    if (event.type === "progress") return `${at} ${event.current}/${event.total}`
    return event.type
  })
}

test("of a layer of ours that is sent without a word on its size, the size is that of the history", async () => {
  const { events } = await push([
    ["c", "Preparing"],
    ["c", "Pushed"],
  ])
  const pushed = events.at(-1)
  assert.deepEqual(pushed?.type === "pushed" && pushed.layers, { sent: 1, present: 0, sentBytes: 512 })
})

test("each layer is a step: sent, there already, or mounted from another repository", async () => {
  const { events } = await push([
    ["a", "Preparing"],
    ["b", "Preparing"],
    ["c", "Waiting"],
    ["a", "Pushing", 512, 10],
    ["b", "Layer already exists"],
    ["a", "Pushing", 1024, 2000],
    ["c", "Mounted from ml/other"],
    ["a", "Pushed"],
  ])
  assert.deepEqual(short(events), [
    "all started",
    "a started",
    "a 512/512",
    "b started",
    "b | Layer already exists",
    "b cached",
    "a 1024/2000",
    "c started",
    "c | Mounted from ml/other",
    "c cached",
    "a done",
    "all done",
    "pushed",
  ])
  assert.deepEqual(events.at(-1), {
    type: "pushed",
    reference: "r.example:5000/ml/iris:1",
    digest: "sha256:d",
    repoDigest: "r.example:5000/ml/iris@sha256:d",
    layers: { sent: 1, present: 2, sentBytes: 2000 },
    durationMs: 0,
  })
})

test("an engine that tells nothing of layers is believed its digest", async () => {
  const { events } = await push([])
  const last = events.at(-1)
  assert.deepEqual(last?.type === "pushed" && [last.digest, last.layers], ["sha256:d", null])
})

test("layers of ours have their names", async () => {
  const { events } = await push(["base", "a", "b", "c"].map((id) => [id, "Pushed"]))
  assert.deepEqual(
    events.flatMap((event) => (event.type === "step" && event.state === "started" ? [event.name] : [])),
    ["push r.example:5000/ml/iris:1", "layer base", "layer a", "layer b (model iris:1)", "layer c (source)"],
  )
})

test("the engine's countdown to another try is told once per try", async () => {
  const countdown = (from: number): Said[] =>
    Array.from({ length: from }, (_, index) => ["a", `Retrying in ${from - index} seconds`])
  const { events } = await push([
    ["a", "Pushing", 1, 2],
    ...countdown(5),
    ["a", "Pushing", 1, 2],
    ...countdown(10),
    ["a", "Pushed"],
  ])
  assert.deepEqual(
    short(events).filter((line) => line.includes("|")),
    ["a | Retrying in 5 seconds", "a | Retrying in 10 seconds"],
  )
})

test("a failure ends the layers that were on their way, and the push", async () => {
  const { events, error } = await push(
    [
      ["a", "Pushing", 1, 2],
      ["b", "Preparing"],
    ],
    new PushRefused("EOF"),
  )
  assert.deepEqual(short(events), ["all started", "a started", "a 1/2", "a failed", "all failed"])
  assert.ok(error instanceof BentoError)
})

describe("what went wrong is told with the name, the registry and the way out", () => {
  const auth = { username: "me", password: "hunter2" }
  for (const [said, given, code, message, hint] of [
    [
      "no basic auth credentials",
      null,
      "REGISTRY_DENIED",
      /wants credentials.*config\.json has none/,
      /docker login r\.example:5000/,
    ],
    [
      "denied: requested access to the resource is denied",
      null,
      "REGISTRY_DENIED",
      /config\.json has none/,
      /docker login/,
    ],
    [
      "unauthorized: authentication required",
      auth,
      "REGISTRY_DENIED",
      /credentials of \/home\/me/,
      /Log in again/,
    ],
    [
      "unexpected status from HEAD request to https://r.example: 403 Forbidden",
      auth,
      "REGISTRY_DENIED",
      /403/,
      /may push/,
    ],
    [
      'Get "http://r.example:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused',
      null,
      "REGISTRY_UNREACHABLE",
      /cannot connect/,
      /registry runs/,
    ],
    [
      'Get "https://r.example:5000/v2/": dial tcp: lookup r.example on 1.1.1.1:53: no such host',
      null,
      "REGISTRY_UNREACHABLE",
      /no such host/,
      /machine of the engine/,
    ],
    [
      'Get "https://r.example:5000/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)',
      null,
      "REGISTRY_UNREACHABLE",
      /cannot connect/,
      /reaches it/,
    ],
    [
      'Get "https://r.example:5000/v2/": http: server gave HTTP response to HTTPS client',
      null,
      "REGISTRY_UNREACHABLE",
      /speaks no TLS/,
      /insecure-registries/,
    ],
    [
      'Get "https://r.example:5000/v2/": x509: certificate signed by unknown authority',
      null,
      "REGISTRY_UNREACHABLE",
      /does not trust/,
      /certs\.d\/r\.example:5000\/ca\.crt/,
    ],
    [
      "received unexpected HTTP status: 500 Internal Server Error",
      null,
      "PUSH_FAILED",
      /500/,
      /disk is full/,
    ],
    [
      'Put "http://r.example:5000/v2/ml/iris/manifests/1": EOF',
      null,
      "PUSH_FAILED",
      /broke off/,
      /not sent again/,
    ],
    [
      'Patch "http://r.example:5000/v2/": write tcp 1->2: write: broken pipe',
      null,
      "PUSH_FAILED",
      /broke off/,
      /docker push/,
    ],
    ["read tcp 1->2: read: connection reset by peer", null, "PUSH_FAILED", /broke off/, /A proxy/],
    ["name invalid: invalid repository name", null, "PUSH_FAILED", /name invalid/, /docker push/],
  ] as const) {
    test(said.slice(0, 70), async () => {
      const { error } = await push([], new PushRefused(said), target(given))
      assert.ok(error instanceof BentoError)
      assert.equal(error.code, code)
      assert.match(error.message, message)
      assert.match(error.message, /r\.example:5000\/ml\/iris:1/)
      assert.match(error.hint ?? "", hint)
      assert.doesNotMatch(`${error.message}${error.hint}`, /hunter2/)
    })
  }
})

test("an error that has its words already stays as it is", async () => {
  const gone = new BentoError("ENGINE_UNREACHABLE", "gone")
  assert.equal((await push([], gone)).error, gone)
})

test("the registry is the first part of a name, if it looks like a host", () => {
  const cases = {
    "registry.example.com/iris:1": "registry.example.com",
    "localhost/iris": "localhost",
    "localhost:5000/a/b:1": "localhost:5000",
    "host:5000/iris": "host:5000",
    "docker.io/me/iris": "docker.io",
    "[::1]:5000/iris": "[::1]:5000",
    "me/iris:1": null,
    "iris:1": null,
    iris: null,
  }
  for (const [reference, registry] of Object.entries(cases)) assert.equal(registryOf(reference), registry)
})

describe("before anything is built", () => {
  const env = { DOCKER_CONFIG: "/nowhere" }
  for (const [what, references, code, message] of [
    ["no name at all", [], "REGISTRY_MISSING", /nothing names a registry/],
    [
      "a name without a registry",
      ["r.example/a:1", "iris:1"],
      "REGISTRY_MISSING",
      /^iris:1 names no registry/,
    ],
    ["a name of Docker Hub in short", ["me/iris:1"], "REGISTRY_MISSING", /^me\/iris:1 names no registry/],
    ["what is no name", ["r.example/Iris:1"], "TAG_INVALID", /"r\.example\/Iris:1"/],
  ] as const) {
    test(`${what} is refused`, async () => {
      await assert.rejects(
        preparePush(references, { env }),
        (error) => error instanceof BentoError && error.code === code && message.test(error.message),
      )
    })
  }

  test("each name gets the credentials of its registry", async () => {
    const targets = await preparePush(["a.example/x:1", "a.example/x:2", "b.example/x:1"], { env })
    assert.deepEqual(
      targets.map(({ registry, credentials }) => [registry, credentials.auth]),
      [
        ["a.example", null],
        ["a.example", null],
        ["b.example", null],
      ],
    )
  })
})
