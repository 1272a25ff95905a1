/** What clients send that is wrong, by mistake or on purpose: their own request fails, and nothing else. */
import assert from "node:assert/strict"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import fc from "fast-check"
import { onnxModel } from "../../images/protobuf.ts"
import { IRIS, type ServerProcess, Wire, modelOf, request, specOf, start } from "./support.ts"

const FLOWER = "[[5.9,3,5.1,1.8]]"
const oddNames = path.join(mkdtempSync(path.join(tmpdir(), "bentoctl-odd-")), "odd.onnx")
after(() => rmSync(path.dirname(oddNames), { recursive: true }))
let server: ServerProcess
before(async () => {
  const nodes = [
    [["valueOf", "constructor"], "toString", "Add"] as const,
    [["constructor"], "hasOwnProperty", "Neg"] as const,
  ]
  writeFileSync(oddNames, onnxModel(["valueOf", "constructor"], nodes))
  server = await start(
    specOf([
      modelOf(IRIS, "iris"),
      modelOf("fail_on_negative.onnx", "picky"),
      modelOf("strings.onnx", "words"),
      modelOf("int64_bool.onnx", "ints"),
      modelOf(oddNames, "odd"),
    ]),
  )
})
test("two poisoned rows of twelve from twelve clients: ten right answers and two errors", async () => {
  for (let round = 0; round < 10; round++) {
    const values = Array.from({ length: 12 }, (_, index) =>
      index === round || index === 11 ? -1 : index % 10,
    )
    const answers = await Promise.all(values.map((value) => server.post("/picky/run", [value])))
    assert.deepEqual(
      answers.map(({ status, body }) =>
        status === 200 ? (body as { Y: unknown }).Y : (body as { error: { code: string } }).error.code,
      ),
      values.map((value) => (value < 0 ? "INFERENCE_FAILED" : [[value, value ** 2]])),
    )
    assert.deepEqual(
      answers.map(({ status }) => status),
      values.map((value) => (value < 0 ? 500 : 200)),
    )
  }
})

test("tensors may be called as what every object has, and are asked for by name", async () => {
  const { status, body } = await server.post("/odd/run", { valueOf: [1, 2], constructor: [3, 4] })
  assert.deepEqual([status, body], [200, { toString: [4, 6], hasOwnProperty: [-3, -4] }])
  for (const missing of [{ valueOf: [1] }, { constructor: [1] }, {}]) {
    assert.equal((await server.post("/odd/run", missing)).status, 400)
  }
})

describe("what is no HTTP, or not quite, gets a 4xx in the shape of all errors", () => {
  const head = (...lines: string[]): string => [...lines, "", ""].join("\r\n")
  const post = (...more: string[]): string => head("POST /iris/run HTTP/1.1", "host: x", ...more)
  for (const [what, bytes, status] of [
    ["a length and chunks", `${post("content-length: 3", "transfer-encoding: chunked")}0\r\n\r\n`, "400"],
    ["chunks and a length", `${post("transfer-encoding: chunked", "content-length: 3")}0\r\n\r\n`, "400"],
    ["two lengths", `${post("content-length: 3", "content-length: 17")}${FLOWER}`, "400"],
    ["a list of lengths", `${post("content-length: 17, 17")}${FLOWER}`, "400"],
    ["a negative length", `${post("content-length: -1")}`, "400"],
    ["a length with a plus sign", `${post("content-length: +17")}${FLOWER}`, "400"],
    ["a length beyond all numbers", `${post("content-length: 99999999999999999999999")}`, "400"],
    ["a length beyond the limit", `${post("content-length: 9007199254740993")}`, "413"],
    ["chunks that are not the last coding", `${post("transfer-encoding: chunked, gzip")}0\r\n\r\n`, "400"],
    ["an unknown transfer coding", `${post("transfer-encoding: xchunked")}0\r\n\r\n`, "400"],
    ["a chunk without a size", `${post("transfer-encoding: chunked")}x\r\n\r\n`, "400"],
    ["a chunk of too many digits", `${post("transfer-encoding: chunked")}${"f".repeat(20)}\r\n\r\n`, "400"],
    [
      "a chunk that is longer than it says",
      `${post("transfer-encoding: chunked")}1\r\nabc\r\n0\r\n\r\n`,
      "400",
    ],
    ["bare line feeds", `POST /iris/run HTTP/1.1\nhost: x\ncontent-length: 17\n\n${FLOWER}`, "400"],
    ["a bare line feed among headers", head("GET /livez HTTP/1.1", "host: x\nx: y"), "400"],
    ["a bare carriage return in a header", head("GET /livez HTTP/1.1", "host: x", "x: y\rz"), "400"],
    ["a folded header", head("GET /livez HTTP/1.1", "host: x", "x: y", " z"), "400"],
    ["a space before the colon", `${post("content-length : 17")}${FLOWER}`, "400"],
    ["NUL in a header", head("GET /livez HTTP/1.1", "host: x", "x: a\0b"), "400"],
    ["NUL in the target", head("GET /li\0vez HTTP/1.1", "host: x"), "400"],
    ["a header without a name", head("GET /livez HTTP/1.1", "host: x", ": y"), "400"],
    ["a huge header", head("GET /livez HTTP/1.1", "host: x", `x: ${"y".repeat(100_000)}`), "431"],
    ["a huge target", head(`GET /${"y".repeat(100_000)} HTTP/1.1`, "host: x"), "431"],
    [
      "ten thousand headers",
      head("GET /livez HTTP/1.1", "host: x", ...Array<string>(10_000).fill("a: b")),
      "431",
    ],
    ["no method at all", head("/livez HTTP/1.1", "host: x"), "400"],
    ["a method of its own", head("FROBNICATE /livez HTTP/1.1", "host: x"), "400"],
    ["a version of its own", head("GET /livez HTTP/9.9", "host: x"), "400"],
    ["HTTP/2 from the start", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"],
    ["TLS", Buffer.from("16030100f8010000f40303", "hex"), "400"],
    ["a pickle without HTTP", Buffer.from("80049503000000000000004b012e", "hex"), "400"],
    ["an expectation that nobody knows", `${post("expect: miracles", "content-length: 17")}${FLOWER}`, "417"],
    ["no host", head("POST /iris/run HTTP/1.1", "content-length: 0", "connection: close"), "400"],
    ["two hosts", head("GET /livez HTTP/1.1", "host: x", "host: y"), "400"],
    ["one host twice", head("GET /livez HTTP/1.1", "host: x", "host: x"), "400"],
    ["two hosts in one", head("GET /livez HTTP/1.1", "host: x, y"), "400"],
    ["two hosts on the way to an API", `${post("host: y", "content-length: 17")}${FLOWER}`, "400"],
    ["two hosts on the way to nowhere", head("GET /nowhere HTTP/1.1", "host: x", "host: y"), "400"],
    ["a tunnel", head("CONNECT example.com:443 HTTP/1.1", "host: example.com"), "405"],
  ] as const) {
    test(what, async () => {
      const wire = new Wire(server.port)
      wire.send(bytes)
      const received = await wire.until((text) => /\r\n\r\n[^]*\}$/.test(text))
      wire.destroy()
      assert.deepEqual(/^HTTP\/1\.1 (\d+)/.exec(received)?.[1], status, received.slice(0, 300))
      const { error } = JSON.parse(received.slice(received.indexOf("\r\n\r\n") + 4)) as {
        error: { code: string }
      }
      assert.match(error.code, /^[A-Z_]+$/)
      assert.match(received, /x-request-id: \S+/)
      assert.equal(received.match(/^HTTP/gm)?.length, 1)
    })
  }

  test("a host is what RFC 3986 lets be one, on the way to an API and to nowhere", async () => {
    const statusFor = async (host: string, path: string): Promise<string | undefined> => {
      const wire = new Wire(server.port)
      wire.send(head(`GET ${path} HTTP/1.1`, `host: ${host}`, "connection: close"))
      return /^HTTP\/1\.1 (\d+)/.exec(await wire.rest())?.[1]
    }
    for (const host of [
      "a_b",
      "127.0.0.1:3000",
      "[::1]:80",
      "xn--bcher-kva.example.:80",
      "%41",
      "x,y",
      "x:",
      "",
    ]) {
      assert.equal(await statusFor(host, "/livez"), "200", host)
    }
    for (const host of [
      "user@x",
      "x y",
      "x:http",
      "[::1",
      "::1",
      "x/y",
      "x?y",
      "x#y",
      "<x>",
      "x\\y",
      '"x"',
      "bücher",
    ]) {
      for (const path of ["/livez", "/nowhere"]) assert.equal(await statusFor(host, path), "400", host)
    }
  })

  test("garbage behind a good request: that one is answered, then the connection ends", async () => {
    const wire = new Wire(server.port)
    wire.send(`${request("/iris/run", FLOWER)}\x00\x01garbage\r\n\r\n`)
    const received = await wire.rest()
    assert.deepEqual(
      [...received.matchAll(/^HTTP\/1\.1 (\d+)/gm)].map(([, status]) => status),
      ["200"],
    )
    assert.match(received, /output_label/)
  })

  test("an offer to upgrade is not taken", async () => {
    const wire = new Wire(server.port)
    const offer = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    wire.send(request("/iris/run", FLOWER, offer))
    assert.match(await wire.until((text) => text.includes("output_label")), /^HTTP\/1\.1 200 /)
    wire.destroy()
  })
})

describe("bodies that are not what they should be", () => {
  for (const type of [
    "application/octet-stream",
    "application/vnd.bentoml+pickle",
    "application/x-python-pickle",
    "multipart/form-data; boundary=x",
    "image/png",
    "application/json",
    undefined,
  ]) {
    test(`a pickle as ${type ?? "nothing at all"}`, async () => {
      // os.system("touch /tmp/owned")
      const pickle = "cos\nsystem\n(S'touch /tmp/owned'\ntR."
      const { status } = await server.post(
        "/iris/run",
        pickle,
        type === undefined ? {} : { "content-type": type },
      )
      assert.ok(status === 415 || status === 400, `${status}`)
    })
  }

  test("a packed one is not unpacked", async () => {
    for (const coding of ["gzip", "br", "deflate", "zstd", "identity, gzip"]) {
      const headers = { "content-encoding": coding, "content-type": "application/json" }
      assert.equal((await server.post("/iris/run", FLOWER, headers)).status, 415)
    }
  })

  const deep = (depth: number): string => "[".repeat(depth) + "]".repeat(depth)
  const BODIES: readonly (readonly [string, string | Buffer])[] = [
    ["nothing", ""],
    ["NUL", "\0"],
    ["NUL behind", `${FLOWER}\0`],
    ["NUL in a string", '["\\u0000"]'],
    ["lone surrogates", '["\\ud800", "\\udfff\\ud800"]'],
    ["half an escape", '["\\u12'],
    ["bytes that are no UTF-8", Buffer.from('["\xff\xfe"]', "latin1")],
    ["surrogates in UTF-8", Buffer.from("5b22eda08022 5d".replace(" ", ""), "hex")],
    ["overlong UTF-8", Buffer.from("5b22c0af225d", "hex")],
    ["UTF-16", Buffer.from(`\ufeff${FLOWER}`, "utf16le")],
    ["nested 33 deep", deep(33)],
    ["nested 1,000,000 deep", deep(1_000_000)],
    ["nested and open", "[".repeat(5_000_000)],
    ["objects nested", '{"X":'.repeat(100_000)],
    ["1e999", "[[1e999,1,1,1]]"],
    ["-1e999", "[[-1e999,1,1,1]]"],
    ["a number of a million digits", `[[${"9".repeat(1_000_000)},1,1,1]]`],
    ["an exponent of a million digits", `[[1e-${"9".repeat(1_000_000)},1,1,1]]`],
    ["-0", "[[-0,0,0,0]]"],
    ["01", "[[01,1,1,1]]"],
    ["NaN", "[[NaN,1,1,1]]"],
    ["__proto__", '{"__proto__": [[1,2,3,4]]}'],
    ["__proto__ beside", '{"X": [[1,2,3,4]], "__proto__": {"polluted": true}}'],
    ["constructor", '{"constructor": {"prototype": {"polluted": true}}}'],
    ["toString", '{"toString": [[1,2,3,4]]}'],
    ["hasOwnProperty", '{"hasOwnProperty": 1, "X": [[1,2,3,4]]}'],
    ["length", '{"length": 1e9}'],
    ["a key twice", '{"X": [[1,2,3,4]], "X": [[1,2,3]]}'],
    ["an empty key", '{"": [[1,2,3,4]]}'],
    ["comments", "[[1,2,3,4]] // rows"],
    ["a comma too much", "[[1,2,3,4],]"],
    ["single quotes", "{'X': [[1,2,3,4]]}"],
    ["uneven", "[[1,2,3,4],[1,2,3]]"],
    ["mixed", '[[1,"2",true,null]]'],
    ["empty", "[]"],
    ["empty rows", "[[],[]]"],
    ["no rows of four", "[[[],[],[],[]]]"],
    ["a bare number", "1"],
    ["null", "null"],
    ["an object of nulls", '{"X": null}'],
    ["2^63", "[[9223372036854775808, 1]]"],
    ["2^63 as a string", '[["9223372036854775808", "1"]]'],
    ["a very long string", `["${"x".repeat(10_000_000)}"]`],
    ["a million empty strings", `[${'"",'.repeat(1_000_000)}""]`],
  ]
  for (const [what, body] of BODIES) {
    test(`JSON: ${what}`, async () => {
      for (const route of ["/iris/run", "/words/run", "/ints/run", "/picky/run"]) {
        const { status, text } = await server.ask("POST", route, body)
        assert.ok(
          status === 200 || (status >= 400 && status < 500),
          `${route}: ${status} ${text.slice(0, 200)}`,
        )
      }
    })
  }

  test("any JSON, and any JSON with a byte changed", async () => {
    const anything = fc.oneof(
      fc.json({ maxDepth: 6 }),
      fc
        .array(fc.array(fc.oneof(fc.double(), fc.integer(), fc.string()), { maxLength: 5 }))
        .map((x) => JSON.stringify(x)),
      fc.record({ X: fc.anything({ maxDepth: 3 }) }).map((x) => {
        try {
          return JSON.stringify(x)
        } catch {
          return "{}"
        }
      }),
    )
    await fc.assert(
      fc.asyncProperty(
        anything,
        fc.constantFrom("/iris/run", "/words/run", "/ints/run"),
        fc.option(fc.tuple(fc.nat(), fc.nat(255))),
        async (text, route, change) => {
          const body = Buffer.from(text)
          if (change !== null && body.length > 0) body[change[0] % body.length] = change[1]
          const { status } = await server.ask("POST", route, body)
          assert.ok(status === 200 || status === 400, `${status}`)
        },
      ),
      { numRuns: 500 },
    )
  })
})

test("after all this everything works, and the log knows of no fault of ours", async () => {
  assert.equal((await server.post("/iris/run", FLOWER)).status, 200)
  assert.deepEqual([await server.status("/livez"), await server.status("/readyz")], [200, 200])
  assert.doesNotMatch(server.output, /not caught|nobody handled|INTERNAL/)
})
