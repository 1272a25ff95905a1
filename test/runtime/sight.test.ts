/** What an answer says beside the answer, and what the access log says of it. */
import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { createAccessLog } from "../../runtime/access-log.ts"
import type { AppConfig } from "../../runtime/app.ts"
import type { CorsConfig } from "../../runtime/config.ts"
import { ApiError, api, json, ndarray, runner, service, text } from "../../runtime/index.ts"
import { FakeRunner, appFor } from "../fakes.ts"
import { ManualClock } from "./manual-clock.ts"

const model = runner("fake")
const svc = service({
  name: "test",
  runners: [model],
  apis: [
    api({ name: "echo", input: text(), output: text(), handler: (x) => x }),
    api({
      name: "fail",
      input: json<number>(),
      output: json(),
      handler: (status) => {
        throw new ApiError(status, "no")
      },
    }),
    api({
      name: "thrice",
      input: ndarray({ dtype: "float32" }),
      output: json(),
      handler: async (x) => {
        await Promise.all([model.run(x), model.run(x)])
        await model.run(x)
        return 1
      },
    }),
  ],
})

/** Takes 2 ms in the queue, then 3.25 ms in batches of 4, 8 and 8 rows. */
function busyRunner(): FakeRunner {
  let calls = 0
  return new FakeRunner({}, (inputs, { timing }) => {
    assert.ok(timing !== undefined)
    timing.queueMs += 2
    timing.inferMs += 3.25
    timing.batchRows = Math.max(timing.batchRows, ++calls === 1 ? 4 : 8)
    return inputs
  })
}

/** A clock that goes on by itself: 1.5 ms each time it is looked at. */
class TickingClock extends ManualClock {
  #ticks = 0

  override now(): number {
    return super.now() + 1000 + 1.5 * ++this.#ticks
  }
}

const ROWS = "[[1, 2, 3, 4]]"
const post = (body: string, headers: Record<string, string> = {}): RequestInit => ({
  method: "POST",
  body,
  headers,
})

describe("Server-Timing", () => {
  test("adds up several calls of runners; of their batches it tells the largest", async () => {
    const { hono } = appFor(svc, { runner: busyRunner() })
    const answer = await hono.request("/thrice", post(ROWS))
    assert.equal(
      answer.headers.get("server-timing"),
      'decode;dur=0.00, queue;dur=6.00, batch;desc="rows=8", infer;dur=9.75, encode;dur=0.00',
    )
  })

  test("has the time of decoding and encoding, and no runner where none was called", async () => {
    const { hono } = appFor(svc, { clock: new TickingClock() })
    const answer = await hono.request("/echo", post("x"))
    assert.equal(answer.headers.get("server-timing"), "decode;dur=1.50, encode;dur=1.50")
  })

  test("is on errors of APIs as far as the request came, and on nothing else", async () => {
    const { hono } = appFor(svc, { clock: new TickingClock() })
    const timing = async (path: string, init?: RequestInit): Promise<string | null> =>
      (await hono.request(path, init)).headers.get("server-timing")
    assert.match((await timing("/fail", post("418"))) ?? "", /^decode;dur=1\.50$/)
    assert.match((await timing("/fail", post("{"))) ?? "", /^decode;dur=\d\.\d\d$/)
    assert.equal(await timing("/livez"), null)
    assert.equal(await timing("/nowhere"), null)
  })

  test("can be turned off", async () => {
    const { hono } = appFor(svc, { config: { serverTiming: false } })
    assert.equal((await hono.request("/echo", post("x"))).headers.get("server-timing"), null)
  })
})

describe("a trace", () => {
  const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
  const header = async (config: Partial<AppConfig>, traceparent?: string): Promise<string | null> => {
    const { hono } = appFor(svc, { config })
    const answer = await hono.request("/echo", post("x", traceparent === undefined ? {} : { traceparent }))
    return answer.headers.get("x-bentoml-trace-id")
  }

  test("that the client names is answered where the configuration says so", async () => {
    const sent = `00-${trace}-00f067aa0ba902b7-01`
    assert.equal(await header({ traceId: true }, sent), trace)
    assert.equal(await header({ traceId: true }, `cc-${trace}-00f067aa0ba902b7-01-more`), trace)
    assert.equal(await header({}, sent), null)
    assert.equal(await header({ traceId: true }), null)
  })

  test("is not taken from a header that breaks the rules", async () => {
    for (const bad of [
      `ff-${trace}-00f067aa0ba902b7-01`,
      `00-${"0".repeat(32)}-00f067aa0ba902b7-01`,
      `00-${trace}-0000000000000000-01`,
      `00-${trace.toUpperCase()}-00f067aa0ba902b7-01`,
      `00-${trace}\u00e4-00f067aa0ba902b7-01`,
      trace,
    ]) {
      assert.equal(await header({ traceId: true }, bad), null, bad)
    }
  })
})

describe("without metrics", () => {
  test("there is no /metrics, and the rest works", async () => {
    const { hono, metrics } = appFor(svc, { config: { metrics: false } })
    assert.equal((await hono.request("/metrics")).status, 404)
    assert.equal((await hono.request("/echo", post("x"))).status, 200)
    assert.doesNotMatch(await metrics.text(), /request_total\{/)
  })
})

describe("browsers of other origins", () => {
  const CORS: CorsConfig = {
    origins: ["https://a.example"],
    originRegex: /^(?:https:\/\/[a-z]+\.b\.example)$/,
    credentials: false,
    methods: ["GET", "HEAD", "POST"],
    headers: ["X-Token"],
    exposeHeaders: ["X-Rows"],
    maxAgeS: 600,
  }
  const ask = async (cors: CorsConfig | null, path: string, init: RequestInit): Promise<Response> =>
    appFor(svc, { config: { cors } }).hono.request(path, init)
  const preflight = (origin: string, method = "POST", headers?: string): RequestInit => ({
    method: "OPTIONS",
    headers: {
      origin,
      "access-control-request-method": method,
      ...(headers === undefined ? {} : { "access-control-request-headers": headers }),
    },
  })

  test("are refused by the method where nothing is configured, without a header for them", async () => {
    const asked = await ask(null, "/echo", preflight("https://a.example"))
    assert.equal(asked.status, 405)
    const answer = await ask(null, "/echo", post("x", { origin: "https://a.example" }))
    assert.equal(answer.headers.get("access-control-allow-origin"), null)
  })

  test("may ask first", async () => {
    const answer = await ask(CORS, "/echo", preflight("https://x.b.example", "POST", "content-type, x-token"))
    assert.equal(answer.status, 200)
    assert.equal(await answer.text(), "OK")
    const { headers } = answer
    assert.equal(headers.get("access-control-allow-origin"), "https://x.b.example")
    assert.equal(headers.get("access-control-allow-methods"), "GET, HEAD, POST")
    assert.equal(
      headers.get("access-control-allow-headers"),
      "Accept, Accept-Language, Content-Language, Content-Type, X-Token",
    )
    assert.equal(headers.get("access-control-max-age"), "600")
    assert.equal(headers.get("vary"), "Origin")
  })

  test("are told what they may not, in the shape of all errors", async () => {
    const message = async (init: RequestInit): Promise<string> => {
      const answer = await ask(CORS, "/echo", init)
      assert.equal(answer.status, 400)
      const { error } = (await answer.json()) as { error: { message: string } }
      return error.message
    }
    assert.equal(await message(preflight("https://c.example")), "Disallowed CORS origin")
    assert.equal(await message(preflight("https://a.b.example.evil")), "Disallowed CORS origin")
    assert.equal(await message(preflight("https://a.example", "PUT")), "Disallowed CORS method")
    assert.equal(await message(preflight("https://a.example", "POST", "x-other")), "Disallowed CORS headers")
  })

  test("may read answers, errors too; without an origin nothing is added", async () => {
    for (const [path, body] of [
      ["/echo", "x"],
      ["/fail", "418"],
      ["/nowhere", ""],
    ] as const) {
      const { headers } = await ask(CORS, path, post(body, { origin: "https://a.example" }))
      assert.equal(headers.get("access-control-allow-origin"), "https://a.example", path)
      assert.equal(headers.get("access-control-expose-headers"), "X-Rows")
      assert.equal(headers.get("vary"), "Origin")
    }
    const foreign = await ask(CORS, "/echo", post("x", { origin: "https://c.example" }))
    assert.equal(foreign.headers.get("access-control-allow-origin"), null)
    const plain = await ask(CORS, "/echo", post("x"))
    assert.equal(plain.headers.get("access-control-expose-headers"), null)
  })

  test("of all origins get a star, or their own where cookies are meant", async () => {
    const any = { ...CORS, origins: ["*"], headers: ["*"] }
    const asked = await ask(any, "/echo", preflight("https://z.example", "POST", "x-whatever"))
    assert.equal(asked.headers.get("access-control-allow-origin"), "*")
    assert.equal(asked.headers.get("access-control-allow-headers"), "x-whatever")
    const origin = "https://z.example"
    const answer = await ask(any, "/echo", post("x", { origin }))
    assert.equal(answer.headers.get("access-control-allow-origin"), "*")
    const own = { ...CORS, origins: [origin], credentials: true }
    const withCookies = await ask(own, "/echo", preflight(origin))
    assert.equal(withCookies.headers.get("access-control-allow-origin"), origin)
    assert.equal(withCookies.headers.get("access-control-allow-credentials"), "true")
  })
})

describe("the access log", () => {
  const NOW = new Date("2026-01-31T12:00:00.007Z")
  function logged(config: Partial<Parameters<typeof createAccessLog>[0]["config"]> = {}, random = () => 0) {
    const lines: Record<string, unknown>[] = []
    const accessLog = createAccessLog({
      config: { enabled: true, sampleRate: 1, skipPaths: ["/livez"], ...config },
      write: (line) => {
        assert.ok(line.endsWith("\n"))
        lines.push(JSON.parse(line) as Record<string, unknown>)
      },
      now: () => NOW,
      random,
    })
    const { hono } = appFor(svc, { accessLog, clock: new TickingClock(), runner: busyRunner() })
    return { lines, hono }
  }

  test("has one line for each request, with all that is known of it", async () => {
    const { lines, hono } = logged()
    const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await hono.request("/thrice?secret=1", post(ROWS, { traceparent, "x-request-id": "mine" }))
    assert.deepEqual(lines, [
      {
        type: "access",
        time: "2026-01-31T12:00:00.007Z",
        requestId: "mine",
        traceId: "4bf92f3577b34da6a3ce929d0e0e4736",
        method: "POST",
        route: "/thrice",
        status: 200,
        bytesIn: ROWS.length,
        bytesOut: 1,
        ms: lines[0]?.["ms"],
        batchRows: 8,
      },
    ])
    assert.equal(typeof lines[0]?.["ms"], "number")
  })

  test("names no raw path, and leaves out what is not there", async () => {
    const { lines, hono } = logged()
    await hono.request('/no"where', { method: "DELETE" })
    assert.deepEqual(
      lines.map((line) => ({ ...line, requestId: "", ms: 0, bytesOut: 0 })),
      [
        {
          type: "access",
          time: "2026-01-31T12:00:00.007Z",
          requestId: "",
          method: "DELETE",
          route: "unmatched",
          status: 404,
          bytesIn: 0,
          bytesOut: 0,
          ms: 0,
        },
      ],
    )
  })

  test("skips paths by their beginning", async () => {
    const { lines, hono } = logged({ skipPaths: ["/livez", "/ec"] })
    await hono.request("/livez")
    await hono.request("/echo", post("x"))
    await hono.request("/fail", post("418"))
    assert.deepEqual(
      lines.map((line) => line["route"]),
      ["/fail"],
    )
  })

  test("takes a sample, and every request that failed here", async () => {
    let turn = 0
    const { lines, hono } = logged({ sampleRate: 0.25 }, () => (turn++ % 4) / 4)
    for (let index = 0; index < 8; index++) await hono.request("/echo", post("x"))
    for (const status of [500, 503]) await hono.request("/fail", post(`${status}`))
    assert.deepEqual(
      lines.map((line) => line["status"]),
      [200, 200, 500, 503],
    )
  })
})
