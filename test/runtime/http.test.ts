/** The app behind a real socket: what only shows on the wire. */
import assert from "node:assert/strict"
import { type Server, request } from "node:http"
import net from "node:net"
import { after, describe, test } from "node:test"
import { setTimeout as sleep } from "node:timers/promises"
import { createHttpServer, listen } from "../../runtime/http.ts"
import { ndarray, runner } from "../../runtime/index.ts"
import { api, json, service, text } from "../../runtime/index.ts"
import { FakeRunner, appFor, refuseToLoad } from "../fakes.ts"
import { statusApi } from "./status-api.ts"

const MAX_BODY = 1 << 20
const servers: Server[] = []
after(() => {
  for (const server of servers) {
    server.close()
    server.closeAllConnections()
  }
})

const realClock = {
  now: () => performance.now(),
  setTimer(callback: () => void, ms: number) {
    const timer = setTimeout(callback, ms).unref()
    return () => clearTimeout(timer)
  },
}

const model = runner("fake")
const events: string[] = []
const svc = service({
  name: "test",
  runners: [model],
  apis: [
    api({ name: "length", input: text(), output: json(), handler: (x) => x.length }),
    api({
      name: "id",
      input: text(),
      output: json(),
      handler: (_, ctx) => [ctx.requestId, ctx.request.query("q")],
    }),
    api({
      name: "hang",
      input: text(),
      output: text(),
      handler: (x, { signal }) => {
        signal.addEventListener("abort", () => events.push(`${x} aborted`))
        return new Promise<string>(() => {})
      },
    }),
    statusApi,
    api({
      name: "predict",
      input: ndarray({ dtype: "float32" }),
      output: json(),
      handler: async (x) => {
        await sleep(1)
        return Object.keys(await model.run(x))
      },
    }),
  ],
})

async function start(options: { receiveTimeoutMs?: number; runner?: FakeRunner } = {}): Promise<number> {
  const { app } = appFor(svc, {
    clock: realClock,
    config: { maxBodyBytes: MAX_BODY },
    ...(options.runner === undefined ? {} : { runner: options.runner }),
  })
  const server = createHttpServer({
    app: () => app,
    newRequestId: () => "raw-id",
    maxBodyBytes: MAX_BODY,
    receiveTimeoutMs: options.receiveTimeoutMs ?? 60_000,
    keepAliveTimeoutMs: 5000,
  })
  servers.push(server)
  return listen(server, { host: "127.0.0.1", port: 0, backlog: 511 })
}

/** Sends bytes as they are and gives back all that comes until the connection ends, or `until` is in it. */
async function raw(port: number, pieces: Iterable<string | Buffer>, until?: string): Promise<string> {
  const socket = net.connect({ host: "127.0.0.1", port })
  let received = ""
  const done = new Promise<void>((resolve) => {
    socket.on("data", (chunk: Buffer) => {
      received += chunk.toString("latin1")
      if (until !== undefined && received.includes(until)) resolve()
    })
    socket.on("close", () => resolve())
    socket.on("error", () => resolve())
  })
  for (const piece of pieces) {
    if (socket.destroyed) break
    socket.write(piece)
  }
  await done
  socket.destroy()
  return received
}

const post = (path: string, body: string, more = ""): string =>
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-length: ${Buffer.byteLength(body)}\r\n${more}\r\n${body}`
const statuses = (received: string): string[] =>
  [...received.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status ?? "")
const bodyOf = (received: string): { error: { code: string; message: string } } =>
  JSON.parse(received.slice(received.indexOf("\r\n\r\n") + 4))

describe("requests that are in order", () => {
  test("follow one another on a connection, also before the first is answered", async () => {
    const port = await start()
    const received = await raw(
      port,
      [post("/length", "abc") + post("/length", "") + post("/id?q=1", "", "x-request-id: me\r\n")],
      '["me","1"]',
    )
    assert.deepEqual(statuses(received), ["200", "200", "200"])
  })

  test("of every kind keep their connection", async () => {
    const port = await start()
    const get = (path: string): string => `GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`
    const received = await raw(
      port,
      [
        get("/livez") +
          get("/nope") +
          post("/length", "{") +
          post("/nope", "abc") +
          get("/length") +
          post("/id", "x"),
      ],
      '",null]',
    )
    assert.deepEqual(statuses(received), ["200", "404", "200", "404", "405", "200"])
    assert.doesNotMatch(received, /connection: close/i)
  })

  test("are answered without a body where the status has none, and the next answer is read right", async () => {
    const port = await start()
    for (const [status, lengths] of [
      ["204", [undefined, "4"]],
      ["205", ["0", "4"]],
      ["304", [undefined, "4"]],
    ] as const) {
      const received = await raw(port, [post("/status", status) + post("/status", "202")], "\r\n\r\nnull")
      const answers = received.split(/(?=HTTP\/1\.1 )/)
      assert.deepEqual(statuses(received), [status, "202"])
      assert.deepEqual(
        answers.map((answer) => /content-length: (\d+)/i.exec(answer)?.[1]),
        lengths,
      )
      assert.match(answers[0] ?? "", /\r\n\r\n$/)
      assert.doesNotMatch(received, /transfer-encoding|connection: close/i)
    }
  })

  test("may come in pieces of any size, and without a declared length", async () => {
    const port = await start()
    const whole = post("/length", "x".repeat(300))
    assert.match(await raw(port, whole.split(""), "300"), /\r\n\r\n300$/)
    const chunked = `POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n`
    assert.match(await raw(port, [chunked], "\r\n\r\n5"), /\r\n\r\n5$/)
  })

  test("carry a body of many pieces, put together right", async () => {
    const port = await start()
    const body = Array.from({ length: 100_000 }, (_, index) => index).join(",")
    const answer = await fetch(`http://127.0.0.1:${port}/length`, { method: "POST", body })
    assert.equal(await answer.json(), body.length)
  })

  test("are answered with a request id, on errors too", async () => {
    const port = await start()
    for (const path of ["/length", "/nope", "/livez"]) {
      const answer = await fetch(`http://127.0.0.1:${port}${path}`, { headers: { "x-request-id": "abc" } })
      assert.equal(answer.headers.get("x-request-id"), "abc")
      await answer.arrayBuffer()
    }
  })
})

test("a path that is none is answered 500 while what would answer cannot be loaded, then 404", async () => {
  const port = await start()
  const status = async (): Promise<number> => (await fetch(`http://127.0.0.1:${port}/nope`)).status
  const failing = refuseToLoad("./hono.ts")
  try {
    assert.deepEqual([await status(), await status()], [500, 500])
  } finally {
    failing.deregister()
  }
  assert.equal(await status(), 404)
  assert.match(await (await fetch(`http://127.0.0.1:${port}/metrics`)).text(), /"unmatched",.*"500"\} 2/)
})

describe("bodies that are too long", () => {
  test("are refused by their declared length, and the client can read why", async () => {
    const port = await start()
    const received = await raw(port, [
      `POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: ${MAX_BODY + 1}\r\n\r\n`,
      "x".repeat(100_000),
    ])
    assert.deepEqual(statuses(received), ["413"])
    assert.match(received, /connection: close/)
    assert.equal(
      bodyOf(received).error.message,
      `the body has ${MAX_BODY + 1} bytes; at most ${MAX_BODY} are read`,
    )
  })

  test("are refused by what has come, where no length is declared", async () => {
    const port = await start()
    const piece = `8000\r\n${"x".repeat(0x8000)}\r\n`
    const received = await raw(port, [
      "POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
      ...Array.from({ length: 40 }, () => piece),
    ])
    assert.deepEqual(statuses(received), ["413"])
  })

  test("are not asked for, where the client asks first", async () => {
    const port = await start()
    const head = (length: number) =>
      `POST /length HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: ${length}\r\n\r\n`
    assert.deepEqual(statuses(await raw(port, [head(MAX_BODY + 1)])), ["413"])
    assert.deepEqual(statuses(await raw(port, [head(3), "abc"], "\r\n\r\n3")), ["100", "200"])
  })

  test("a body sent byte by byte costs memory for its bytes, not for each piece", async () => {
    const port = await start()
    const count = 300_000
    const pieces = "1\r\nx\r\n".repeat(count)
    const before = process.memoryUsage().rss
    const received = await raw(
      port,
      [`POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n${pieces}0\r\n\r\n`],
      `\r\n\r\n${count}`,
    )
    assert.deepEqual(statuses(received), ["200"])
    const grownMiB = (process.memoryUsage().rss - before) / 2 ** 20
    assert.ok(grownMiB < 150, `${grownMiB} MiB`)
  })
})

describe("what is no request", () => {
  const cases: [string, string, string, string][] = [
    ["other protocols", "\x16\x03\x01 hello", "400", "REQUEST_INVALID"],
    [
      "two lengths",
      "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
      "400",
      "REQUEST_INVALID",
    ],
    [
      "a length and chunks",
      "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
      "400",
      "REQUEST_INVALID",
    ],
    ["bare line feeds", "GET /livez HTTP/1.1\nhost: x\n\n", "400", "REQUEST_INVALID"],
    [
      "no host",
      "POST /length HTTP/1.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
      "400",
      "REQUEST_INVALID",
    ],
    [
      "a target that is no path",
      "GET foo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
      "400",
      "REQUEST_INVALID",
    ],
    [
      "endless headers",
      `GET /livez HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(20_000)}\r\n\r\n`,
      "431",
      "REQUEST_INVALID",
    ],
  ]
  for (const [name, bytes, status, code] of cases) {
    test(`${name}: ${status} in the shape of all errors, and the connection ends`, async () => {
      const port = await start()
      const received = await raw(port, [bytes])
      assert.deepEqual(statuses(received), [status])
      assert.equal(bodyOf(received).error.code, code)
      assert.match(received, /x-request-id: \S+/)
      assert.equal((await fetch(`http://127.0.0.1:${port}/livez`)).status, 200)
    })
  }

  test("strange bodies never end the server", async () => {
    const port = await start()
    const bodies = [
      "\0",
      '"\\ud800"',
      "[".repeat(100_000),
      "1e999",
      '{"__proto__":1}',
      '{"a":1,"a":2}',
      "\ufeff",
      "nul",
      "-",
      '"\\u12"',
    ]
    for (const body of bodies) {
      for (const path of ["/predict", "/length"]) {
        const { status } = await fetch(`http://127.0.0.1:${port}${path}`, { method: "POST", body })
        assert.ok(status === 200 || status === 400, `${status} for ${body.slice(0, 20)}`)
      }
    }
  })
})

describe("clients that dawdle or leave", () => {
  test("have the whole time for a body, but 15 s at most for the head", async () => {
    for (const [receiveTimeoutMs, headMs] of [
      [60_000, 15_000],
      [1000, 1000],
    ] as const) {
      await start({ receiveTimeoutMs })
      const { requestTimeout, headersTimeout } = servers.at(-1) ?? {}
      assert.deepEqual([requestTimeout, headersTimeout], [receiveTimeoutMs, headMs])
    }
  })

  test("a body that does not arrive in time is cut with 408; others are served meanwhile", async () => {
    const port = await start({ receiveTimeoutMs: 1000 })
    const slow = raw(port, ["POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc"])
    const other = await fetch(`http://127.0.0.1:${port}/length`, { method: "POST", body: "abc" })
    assert.equal(other.status, 200)
    const received = await slow
    assert.deepEqual([statuses(received), bodyOf(received).error.code], [["408"], "REQUEST_TIMEOUT"])
  })

  test("a client that leaves aborts its handler and takes its job back from the runner", async () => {
    let signal: AbortSignal | undefined
    const started = Promise.withResolvers<void>()
    const waiting = new FakeRunner({}, (_inputs, options) => {
      ;({ signal } = options)
      started.resolve()
      return new Promise(() => {})
    })
    const port = await start({ runner: waiting })
    const leave = async (path: string, body: string, when: Promise<void>): Promise<void> => {
      const outgoing = request({ host: "127.0.0.1", port, path, method: "POST" })
      outgoing.on("error", () => {})
      outgoing.end(body)
      await when
      outgoing.destroy()
      await sleep(50)
    }
    await leave("/predict", "[[1,2,3,4]]", started.promise)
    // The handler awaited something before it called the runner, and passed no signal on.
    assert.equal(signal?.aborted, true)
    await leave("/hang", "h", sleep(50))
    assert.deepEqual(events, ["h aborted"])
    const scrape = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
    assert.match(scrape, /request_total\{endpoint="\/predict",.*http_response_code="499"\} 1/)
    assert.match(scrape, /request_in_progress\{endpoint="\/predict",.*\} 0/)
  })
})

test("a port in use names its holder", async () => {
  const port = await start()
  const second = createHttpServer({
    app: () => appFor(svc).app,
    newRequestId: () => "",
    maxBodyBytes: 1,
    receiveTimeoutMs: 1000,
    keepAliveTimeoutMs: 1000,
  })
  await assert.rejects(listen(second, { host: "127.0.0.1", port, backlog: 1 }), (error: Error) => {
    assert.match(
      error.message,
      new RegExp(
        `^port ${port} is in use${process.platform === "linux" ? ` by .*\\(pid ${process.pid}\\)` : ""}`,
      ),
    )
    return true
  })
})
