import assert from "node:assert/strict"
import { describe, test } from "node:test"
import type { Hono } from "hono"
import { z } from "zod"
import { ServeError } from "../../runtime/errors.ts"
import { ApiError, api, fromNested, json, ndarray, runner, service, text } from "../../runtime/index.ts"
import { serviceWithoutCode } from "../../runtime/load.ts"
import { FakeRunner, appFor } from "../fakes.ts"
import { ManualClock, settled } from "./manual-clock.ts"
import { RunnerWorld } from "./runner-world.ts"
import { statusApi } from "./status-api.ts"

const model = runner("fake")
const svc = service({
  name: "test",
  runners: [model],
  apis: [
    api({
      name: "double",
      input: ndarray({ dtype: "float32", shape: [-1, 2] }),
      output: ndarray({ dtype: "float32" }),
      handler: (x) => ({ ...x, data: x.data.map((value) => value * 2) }),
    }),
    api({ name: "echo", input: json(), output: json(), handler: (x) => x }),
    api({ name: "shout", input: text(), output: text(), handler: async (x) => x.toUpperCase() }),
    api({
      name: "person",
      route: "/v1/person",
      doc: "Greets.\nAt length.",
      input: json(z.object({ name: z.string(), age: z.number().int().default(30) })),
      output: json(z.object({ greeting: z.string() })),
      handler: ({ name, age }) => ({ greeting: `${name}, ${age}` }),
    }),
    api({
      name: "predict",
      input: ndarray({ dtype: "float32" }),
      output: json(),
      handler: async (x) => Object.keys(await model.run(x)),
    }),
    api({
      name: "context",
      input: json<{ fail?: string }>(),
      output: json(),
      handler: ({ fail }, ctx) => {
        if (fail === "api") throw new ApiError(404, "no such thing", { code: "NO_THING", detail: { id: 7 } })
        if (fail === "type") throw new TypeError("secret of the server")
        if (fail === "string") throw "text" // oxlint-disable-line typescript/only-throw-error
        ctx.response.status = 201
        ctx.response.setHeader("x-mine", "yes")
        return [ctx.requestId, ctx.request.header("X-Asked"), ctx.request.query("q"), ctx.request.path]
      },
    }),
    statusApi,
    api({ name: "never", input: text(), output: text(), handler: () => new Promise<string>(() => {}) }),
  ],
})

interface Asked {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  readonly json: () => any // oxlint-disable-line typescript/no-explicit-any -- whatever the test expects
}

async function ask(
  app: Hono,
  path: string,
  body?: string | Buffer | null,
  init: RequestInit = {},
): Promise<Asked> {
  const response = await app.request(path, {
    ...(body === undefined ? {} : { method: "POST", body }),
    ...init,
  })
  const answer = await response.text()
  assert.ok(response.headers.get("x-request-id"), `no request id on ${path}`)
  return {
    status: response.status,
    headers: response.headers,
    text: answer,
    json: () => JSON.parse(answer),
  }
}

const errorOf = async (asked: Promise<Asked>): Promise<[number, string, string, unknown?]> => {
  const { status, headers, json: parse } = await asked
  assert.equal(headers.get("content-type"), "application/json")
  const { error, ...rest } = parse()
  assert.deepEqual(rest, {})
  return error.detail === undefined
    ? [status, error.code, error.message]
    : [status, error.code, error.message, error.detail]
}

describe("an API", () => {
  const { hono: app } = appFor(svc)

  test("decodes, calls its handler, encodes", async () => {
    const { status, text: body, headers } = await ask(app, "/double", "[[1,2.5],[3,4]]")
    assert.deepEqual([status, body, headers.get("content-type")], [200, "[[2,5],[6,8]]", "application/json"])
    assert.equal((await ask(app, "/shout", "hi")).text, "HI")
    assert.equal((await ask(app, "/echo", '{"a": [1, null]}')).text, '{"a":[1,null]}')
  })

  test("calls its model", async () => {
    assert.equal((await ask(app, "/predict", "[[1,2,3,4]]")).text, '["X"]')
  })

  test("reads JSON whatever a client that was told nothing says it sends", async () => {
    for (const type of [
      "application/json",
      "application/json; charset=utf-8",
      "application/vnd.x+json",
      "application/x-www-form-urlencoded",
      "text/plain;charset=UTF-8",
    ]) {
      const { status } = await ask(app, "/double", "[[1,2]]", { headers: { "content-type": type } })
      assert.equal(status, 200, type)
    }
    const bare = await ask(app, "/double", Buffer.from("[[1,2]]"))
    assert.equal(bare.status, 200)
  })

  test("refuses other types and encoded bodies with 415", async () => {
    const as = (headers: Record<string, string>, path = "/double") =>
      errorOf(ask(app, path, "[[1,2]]", { headers }))
    assert.deepEqual(await as({ "content-type": "application/octet-stream" }), [
      415,
      "MEDIA_TYPE_UNSUPPORTED",
      'expected a body of application/json, received "application/octet-stream"',
    ])
    assert.equal((await as({ "content-type": "application/vnd.bentoml+pickle" }))[0], 415)
    assert.equal((await as({ "content-type": "image/png" }, "/shout"))[0], 415)
    assert.deepEqual(await as({ "content-type": "application/json", "content-encoding": "gzip" }), [
      415,
      "MEDIA_TYPE_UNSUPPORTED",
      'the body must not be encoded, but is "gzip"',
    ])
  })

  test("says what is wrong with a body, and where", async () => {
    assert.deepEqual(await errorOf(ask(app, "/double", "[[1,2],[3")), [
      400,
      "BAD_INPUT",
      'the body is not valid JSON: expected "," or "]", received the end of the body at line 1, column 10',
      { offset: 9, line: 1, column: 10 },
    ])
    assert.deepEqual(await errorOf(ask(app, "/double", "[1,2]")), [
      400,
      "BAD_INPUT",
      "expected an array of shape [-1, 2], received one of shape [2]",
      { expected: [-1, 2], received: [2] },
    ])
    assert.deepEqual(
      (await errorOf(ask(app, "/double", '[["1",2]]')))[2],
      "expected float32 numbers, received a string at [0][0]",
    )
    assert.equal((await errorOf(ask(app, "/echo", "{")))[0], 400)
    assert.equal((await errorOf(ask(app, "/echo", "")))[0], 400)
    assert.equal(
      (await errorOf(ask(app, "/shout", Buffer.from([0xff, 0xfe]))))[2],
      "the body is not UTF-8 text",
    )
  })

  test("checks a body by its schema and names every issue", async () => {
    assert.deepEqual((await ask(app, "/v1/person", '{"name":"Ada"}')).json(), { greeting: "Ada, 30" })
    const [status, code, message, detail] = await errorOf(ask(app, "/v1/person", '{"name":3,"age":1.5}'))
    assert.deepEqual([status, code], [400, "BAD_INPUT"])
    assert.match(message, /^the body does not fit: name: .* \(and 1 more\)$/)
    const { issues } = detail as { issues: { path: string[]; message: string }[] }
    assert.deepEqual(
      issues.map((issue) => issue.path),
      [["name"], ["age"]],
    )
  })

  test("gives its handler the request and takes status and headers of the response", async () => {
    const {
      status,
      headers,
      json: parse,
    } = await ask(app, "/context?q=a%20b", "{}", {
      headers: { "x-asked": "1", "x-request-id": "mine.1" },
    })
    assert.deepEqual([status, headers.get("x-mine")], [201, "yes"])
    assert.deepEqual(parse(), ["mine.1", "1", "a b", "/context"])
  })

  test("answers without a body where its status has none", async () => {
    for (const asked of ["204", "205", "304"]) {
      const { status, headers, text: body } = await ask(app, "/status", asked)
      assert.deepEqual([status, body, headers.get("content-type")], [Number(asked), "", null])
    }
    const { text: body } = await ask(app, "/status", "202")
    assert.equal(body, "null")
  })

  test("takes a request id that fits and replaces one that does not", async () => {
    for (const [given, taken] of [
      ["a".repeat(128), true],
      ["a".repeat(129), false],
      ["a b", false],
      ["ä", false],
      ["", false],
    ] as const) {
      const { headers } = await ask(app, "/livez", undefined, { headers: { "x-request-id": given } })
      assert.equal(headers.get("x-request-id") === given, taken, given)
    }
  })
})

describe("what goes wrong in a handler", () => {
  const failing = (run: () => never): ReturnType<typeof appFor> =>
    appFor(svc, { runner: new FakeRunner({}, run) })

  test("an ApiError is the answer, word for word", async () => {
    const { hono: app, log } = appFor(svc)
    assert.deepEqual(await errorOf(ask(app, "/context", '{"fail":"api"}')), [
      404,
      "NO_THING",
      "no such thing",
      { id: 7 },
    ])
    assert.deepEqual(log.lines, [])
  })

  test("anything else is 500 without a word of it, and a line in the log under the same request id", async () => {
    const { hono: app, log } = appFor(svc)
    for (const [fail, trace] of [
      ["type", /TypeError: secret of the server[\s\S]*app\.test\.ts/],
      ["string", /text/],
    ] as const) {
      const answer = ask(app, "/context", JSON.stringify({ fail }), { headers: { "x-request-id": fail } })
      const [status, code, message] = await errorOf(answer)
      assert.deepEqual([status, code], [500, "INTERNAL"])
      assert.doesNotMatch(message, /secret|text/)
      const line = log.lines.pop()
      assert.equal(line?.fields["requestId"], fail)
      assert.match(String(line?.fields["stack"] ?? line?.fields["thrown"]), trace)
    }
  })

  test("a handler that gives up on its model by a signal of its own is one of them: the client is still there", async () => {
    const own = new AbortController()
    const handle = runner("fake")
    const impatient = service({
      name: "impatient",
      runners: [handle],
      apis: [
        api({
          name: "predict",
          input: ndarray({ dtype: "float32" }),
          output: json(),
          handler: async (x) => Object.keys(await handle.run(x, { signal: own.signal })),
        }),
      ],
    })
    const world = new RunnerWorld({ model: () => "never" })
    await world.start()
    const { hono: app, log } = appFor(impatient, { runner: world.runner, clock: world.clock })
    const answer = errorOf(ask(app, "/predict", "[[1,2]]"))
    while (world.batches.length === 0) await settled()
    own.abort(new Error("patience is over"))
    const [status, code] = await answer
    assert.deepEqual([status, code], [500, "INTERNAL"])
    assert.match(String(log.lines.pop()?.fields["stack"]), /patience is over/)
  })

  test("an answer that does not fit the output is a fault of the server", async () => {
    const bad = service({
      name: "bad",
      apis: [
        // What the compiler would refuse: JavaScript users have none.
        api({ name: "text", input: text(), output: text(), handler: () => 1 as unknown as string }),
        api({
          name: "schema",
          input: text(),
          output: json(z.object({ a: z.number() })),
          handler: () => ({ a: "1" }) as never,
        }),
        api({
          name: "tensor",
          input: text(),
          output: ndarray({ dtype: "int8" }),
          handler: () => fromNested("float32", 1) as never,
        }),
        api({
          name: "shape",
          input: text(),
          output: ndarray({ shape: [2] }),
          handler: () => fromNested("float32", [1]),
        }),
        api({ name: "nothing", input: text(), output: json(), handler: () => undefined }),
        api({ name: "big", input: text(), output: json(), handler: () => ({ a: 2n ** 60n }) }),
      ],
    })
    const { hono: app, log } = appFor(bad)
    for (const name of ["text", "schema", "tensor", "shape"]) {
      assert.equal((await errorOf(ask(app, `/${name}`, "")))[1], "INTERNAL", name)
      assert.match(String(log.lines.pop()?.fields["stack"]), /TypeError: the handler/)
    }
    assert.equal((await ask(app, "/nothing", "")).text, "null")
    assert.equal((await ask(app, "/big", "")).text, '{"a":1152921504606846976}')
  })

  test("what a runner refuses keeps its status, and says when to come again", async () => {
    const { hono: app } = failing(() => {
      throw new ServeError("OVERLOADED", 429, "the queue is full", { retryAfterS: 2.2 })
    })
    const { status, headers } = await ask(app, "/predict", "[[1,2,3,4]]")
    assert.deepEqual([status, headers.get("retry-after")], [429, "3"])
  })
})

describe("routes", () => {
  const { hono: app } = appFor(svc)

  test("a path that is none is 404, a wrong method 405 with those allowed", async () => {
    assert.deepEqual(await errorOf(ask(app, "/nope", "")), [
      404,
      "ROUTE_NOT_FOUND",
      "there is no route /nope",
    ])
    assert.deepEqual(await errorOf(ask(app, "/double/")), [
      404,
      "ROUTE_NOT_FOUND",
      "there is no route /double/",
    ])
    const { status, headers } = await ask(app, "/double")
    assert.deepEqual([status, headers.get("allow")], [405, "POST"])
    const probe = await ask(app, "/livez", "")
    assert.deepEqual([probe.status, probe.headers.get("allow")], [405, "GET, HEAD"])
    assert.equal((await ask(app, "/double", undefined, { method: "OPTIONS" })).status, 405)
  })

  test("GET routes answer HEAD, without a body", async () => {
    for (const path of ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"]) {
      const get = await ask(app, path)
      const head = await ask(app, path, undefined, { method: "HEAD" })
      assert.deepEqual([get.status, head.status, head.text], [200, 200, ""], path)
    }
  })

  test("probes answer a line feed, as BentoML's", async () => {
    for (const path of ["/livez", "/healthz", "/readyz"]) assert.equal((await ask(app, path)).text, "\n")
  })

  test("readiness waits for every runner; while the server starts everything else is 503", async () => {
    const waiting = new FakeRunner()
    waiting.ready = false
    const { hono: notReady } = appFor(svc, { runner: waiting })
    assert.deepEqual(await errorOf(ask(notReady, "/readyz")), [503, "UNAVAILABLE", "not ready: fake"])
    waiting.ready = true
    assert.equal((await ask(notReady, "/readyz")).status, 200)

    const { hono: starting } = appFor(null)
    assert.equal((await ask(starting, "/livez")).status, 200)
    assert.deepEqual(await errorOf(ask(starting, "/readyz")), [503, "UNAVAILABLE", "the server is starting"])
    const early = await ask(starting, "/double", "[[1,2]]")
    assert.deepEqual([early.status, early.headers.get("retry-after")], [503, "1"])
  })

  test("a service without code takes inputs by name, or the one bare, and answers outputs by name", async () => {
    const iris = new FakeRunner(
      {
        inputs: [{ name: "X", dtype: "float32", shape: [null, 4] }],
        outputs: [
          { name: "output_label", dtype: "int64", shape: [null] },
          { name: "output_probability", dtype: "float32", shape: [null, 3] },
        ],
      },
      ({ X }) => {
        assert.deepEqual(X, fromNested("float32", [[5.9, 3, 5.1, 1.8]]))
        return {
          output_label: fromNested("int64", [2]),
          output_probability: fromNested("float32", [[0, 0.1, 0.9]]),
        }
      },
    )
    const tag = { name: "iris", version: "v1" }
    const spec = {
      name: "iris",
      dir: "",
      spec: { tag: "iris:v1", dir: "" },
      model: { tag, signatures: { run: {} } } as never,
    }
    const loaded = serviceWithoutCode(
      "iris",
      [spec],
      () => iris,
      () => iris.signatures["run"] ?? { inputs: [], outputs: [] },
    )
    const { hono: zero } = appFor({ ...loaded, version: null })
    const expected = { output_label: [2], output_probability: [[0, 0.1, 0.9]] }
    assert.deepEqual((await ask(zero, "/run", '{"X": [[5.9, 3, 5.1, 1.8]]}')).json(), expected)
    assert.deepEqual((await ask(zero, "/run", "[[5.9, 3, 5.1, 1.8]]")).json(), expected)
    assert.equal(
      (await errorOf(ask(zero, "/run", '{"Y": [[1]]}')))[2],
      'unknown input "Y"; the inputs are "X"',
    )
  })
})

describe("limits", () => {
  test("a declared length over the limit is refused before a byte is read", async () => {
    const { hono: app } = appFor(svc, { config: { maxBodyBytes: 10 } })
    assert.deepEqual(
      await errorOf(ask(app, "/echo", `"${"x".repeat(9)}"`, { headers: { "content-length": "11" } })),
      [413, "BODY_TOO_LARGE", "the body has 11 bytes; at most 10 are read", { maxBytes: 10 }],
    )
    assert.equal((await ask(app, "/echo", `"${"x".repeat(8)}"`)).status, 200)
  })

  test("a body without a declared length is counted as it comes", async () => {
    const { hono: app } = appFor(svc, { config: { maxBodyBytes: 10 } })
    let sent = 0
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        sent++
        controller.enqueue(Buffer.from("x"))
      },
    })
    const [status] = await errorOf(
      ask(app, "/echo", null, { method: "POST", body: endless, duplex: "half" } as RequestInit),
    )
    assert.equal(status, 413)
    assert.ok(sent < 20, `${sent} pieces were read`)
  })

  test("no more requests than allowed are worked on at once", async () => {
    const { hono: app } = appFor(svc, { config: { maxConcurrency: 1 } })
    void app.request("/never", { method: "POST", body: "" })
    await settled()
    const { status, headers } = await ask(app, "/shout", "x")
    assert.deepEqual([status, headers.get("retry-after")], [429, "1"])
    assert.equal((await ask(app, "/livez")).status, 200)
  })

  test("probes and scrapes that take their time do not count, neither here nor for other threads", async () => {
    const published: number[] = []
    const siblings = {
      notReady: () => new Promise<string | null>(() => {}),
      setInFlight: (count: number) => void published.push(count),
      inFlight: () => published.at(-1) ?? 0,
    }
    for (const options of [{}, { siblings }]) {
      const { hono: app, metrics } = appFor(svc, { config: { maxConcurrency: 1 }, ...options })
      metrics.text = () => new Promise(() => {})
      for (const path of ["/metrics", "/metrics", "/readyz"]) void app.request(path)
      await settled()
      assert.equal((await ask(app, "/shout", "x")).status, 200)
      assert.equal((await ask(app, "/livez")).status, 200)
    }
    assert.deepEqual(published, [1, 0])
  })

  test("a request that takes too long is answered 504 and its handler told", async () => {
    const clock = new ManualClock()
    let reason: unknown
    const slow = service({
      name: "slow",
      apis: [
        api({
          name: "wait",
          input: text(),
          output: text(),
          handler: (_, { signal }) =>
            new Promise<string>((_resolve, reject) => {
              signal.addEventListener("abort", () => {
                reason = signal.reason
                reject(new Error("aborted"))
              })
            }),
        }),
      ],
    })
    const { hono: app, log } = appFor(slow, { clock, config: { timeoutMs: 1000 } })
    const first = errorOf(ask(app, "/wait", ""))
    await settled()
    await clock.advance(600)
    const second = errorOf(ask(app, "/wait", ""))
    const hurried = errorOf(ask(app, "/wait", "", { headers: { "x-request-timeout-ms": "100" } }))
    await settled()
    await clock.advance(100)
    assert.deepEqual(await hurried, [504, "DEADLINE_EXCEEDED", "no answer within 100 ms"])
    await clock.advance(300)
    assert.deepEqual(await first, [504, "DEADLINE_EXCEEDED", "no answer within 1000 ms"])
    await clock.advance(600)
    assert.deepEqual(await second, [504, "DEADLINE_EXCEEDED", "no answer within 1000 ms"])
    assert.ok(reason instanceof ServeError)
    assert.ok(log.lines.every((line) => line.message.includes("DEADLINE_EXCEEDED")))
    const wrong = ask(app, "/wait", "", { headers: { "x-request-timeout-ms": "soon" } })
    assert.equal((await wrong).status, 400)
  })

  test("a runner is told the smaller of the two: what the client allows and what the server does", async () => {
    const clock = new ManualClock()
    let deadlineMs: number | undefined
    const watching = new FakeRunner({}, (inputs, options) => {
      ;({ deadlineMs } = options)
      return inputs
    })
    const { hono: app } = appFor(svc, { clock, runner: watching, config: { timeoutMs: 1000 } })
    await ask(app, "/predict", "[[1,2,3,4]]")
    assert.equal(deadlineMs, clock.now() + 1000)
    await ask(app, "/predict", "[[1,2,3,4]]", { headers: { "x-request-timeout-ms": "50" } })
    assert.equal(deadlineMs, clock.now() + 50)
    await ask(app, "/predict", "[[1,2,3,4]]", { headers: { "x-request-timeout-ms": "5000" } })
    assert.equal(deadlineMs, clock.now() + 1000, "a client gets no more than it would without asking")
  })
})

describe("the drain", () => {
  test("finishes what is in flight, says goodbye on every answer, then refuses", async () => {
    const finish = Promise.withResolvers<string>()
    const waiting = service({
      name: "waiting",
      apis: [api({ name: "wait", input: text(), output: text(), handler: () => finish.promise })],
    })
    const { app: core, hono: app } = appFor(waiting)
    const inFlight = ask(app, "/wait", "")
    await settled()
    let drained = false
    const drain = core.drain().then(() => {
      drained = true
    })
    const { status, headers } = await ask(app, "/readyz")
    assert.deepEqual([status, headers.get("connection")], [503, "close"])
    assert.equal((await ask(app, "/livez")).status, 200)
    assert.equal(drained, false)
    core.refuse()
    assert.equal((await errorOf(ask(app, "/wait", "")))[1], "UNAVAILABLE")
    finish.resolve("done")
    const answered = await inFlight
    assert.deepEqual(
      [answered.status, answered.text, answered.headers.get("connection")],
      [200, "done", "close"],
    )
    await drain
    assert.equal(drained, true)
  })
})

describe("metrics", () => {
  test("requests are counted by route and status, and no client can add a series", async () => {
    const { hono: app } = appFor(svc)
    const scrape = async (): Promise<string[]> => (await ask(app, "/metrics")).text.split("\n")
    await ask(app, "/shout", "x")
    await ask(app, "/echo", "{")
    await ask(app, "/unknown-0")
    const before = await scrape()
    assert.ok(
      before.includes(
        'bentoml_api_server_request_total{endpoint="/shout",service_name="test",service_version="v1",http_response_code="200"} 1',
      ),
    )
    assert.ok(
      before.includes(
        'bentoml_api_server_request_total{endpoint="/echo",service_name="test",service_version="v1",http_response_code="400"} 1',
      ),
    )
    for (let index = 0; index < 1000; index++) await ask(app, `/unknown-${index}`)
    const names = (lines: string[]): string[] =>
      lines.filter((line) => line.startsWith("bentoml")).map((line) => line.replace(/ \S+$/, ""))
    assert.deepEqual(
      names(await scrape()).filter((name) => !name.includes('"/metrics"')),
      names(before).filter((name) => !name.includes('"/metrics"')),
    )
    assert.ok(
      (await scrape()).includes(
        'bentoml_api_server_request_in_progress{endpoint="/shout",service_name="test",service_version="v1"} 0',
      ),
    )
  })
})
