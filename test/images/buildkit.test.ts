import assert from "node:assert/strict"
import { describe, test } from "node:test"
import fc from "fast-check"
import { BuildKitTrace, decodeStatusResponse } from "../../images/buildkit.ts"
import { WireError } from "../../store/protobuf.ts"
import { message } from "./protobuf.ts"
import type { Field } from "./protobuf.ts"

const time = (ms: number): Buffer => message([1, Math.floor(ms / 1000)], [2, (ms % 1000) * 1e6])
const vertex = (digest: string, name: string, more: readonly Field[] = []): Buffer =>
  message([1, digest], [2, "sha256:input"], [3, name], ...more)
const log = (digest: string, text: string | Uint8Array, stream = 1): Buffer =>
  message([1, digest], [2, time(0)], [3, stream], [4, text])

describe("BuildKit's messages", () => {
  test("become what they say", () => {
    const status = decodeStatusResponse(
      message(
        [
          1,
          vertex("v1", "[1/2] FROM x", [
            [4, 1],
            [5, time(1500)],
            [6, time(2750)],
            [7, "no"],
          ]),
        ],
        [2, message([1, "sending"], [2, "v1"], [4, 2 ** 40], [5, 2 ** 41])],
        [3, log("v1", "hello\n", 2)],
        [9, "a field of the future"],
      ),
    )
    assert.deepEqual(status, {
      vertexes: [
        { digest: "v1", name: "[1/2] FROM x", cached: true, startedMs: 1500, completedMs: 2750, error: "no" },
      ],
      statuses: [{ id: "sending", vertex: "v1", current: 2 ** 40, total: 2 ** 41 }],
      logs: [{ vertex: "v1", stream: 2, bytes: Buffer.from("hello\n") }],
    })
  })

  test("that are cut short are refused, and no bytes make the reader hang", () => {
    const whole = message([1, vertex("v1", "name")])
    assert.throws(() => decodeStatusResponse(whole.subarray(0, -1)), WireError)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          decodeStatusResponse(bytes)
        } catch (error) {
          assert.ok(error instanceof WireError)
        }
      }),
    )
  })
})

describe("a build's trace", () => {
  test("keeps the lines of stdout and of stderr apart, however their pieces come", () => {
    const trace = new BuildKitTrace()
    const pieces = [
      log("v", "ls: ", 2),
      log("v", "hello\nwor", 1),
      log("v", "cannot access\nrest", 2),
      log("v", "ld\n", 1),
    ]
    const events = pieces.flatMap((piece) => [...trace.read(message([3, piece]))])
    assert.deepEqual(
      events.map((event) => event.type === "log" && [event.stream, event.text]),
      [
        ["stdout", "hello"],
        ["stderr", "ls: cannot access"],
        ["stdout", "world"],
      ],
    )
  })

  test("tells each state of a step once, and its log by lines", () => {
    const trace = new BuildKitTrace()
    const read = (...fields: Field[]) => [...trace.read(message(...fields))]
    const started = vertex("v", "[2/3] RUN --mount=type=cache,target=/x   make   it", [[5, time(1000)]])
    assert.deepEqual(read([1, started], [1, started]), [
      { type: "step", step: "v", name: "[2/3] RUN make it", state: "started" },
    ])
    assert.deepEqual(read([3, log("v", "one\r\ntw")], [3, log("v", Uint8Array.of(0xc3))]), [
      { type: "log", step: "v", stream: "stdout", text: "one" },
    ])
    assert.deepEqual(
      read([3, log("v", Uint8Array.of(0xbc, 0x0a))], [2, message([1, "s"], [2, "v"], [4, 5], [5, 9])]),
      [
        { type: "log", step: "v", stream: "stdout", text: "twü" },
        { type: "progress", step: "v", name: "s", current: 5, total: 9 },
      ],
    )
    const done = vertex("v", "[2/3] RUN make it", [
      [5, time(1000)],
      [6, time(3500)],
    ])
    assert.deepEqual(read([3, log("v", "rest")], [1, done]), [
      { type: "log", step: "v", stream: "stdout", text: "rest" },
      { type: "step", step: "v", name: "[2/3] RUN make it", state: "done", durationMs: 2500 },
    ])
    assert.deepEqual(read([1, done]), [])
  })

  test("knows the step that failed, not those that were cancelled with it, and its last 20 lines", () => {
    const trace = new BuildKitTrace()
    const lines = Array.from({ length: 30 }, (_, index) => `line ${index + 1}`).join("\n")
    const failed = [
      [5, time(1)],
      [6, time(2)],
    ] as const
    const events = [
      ...trace.read(
        message([1, vertex("a", "COPY x", [...failed, [7, "context canceled"]])], [3, log("b", lines)]),
      ),
      ...trace.read(message([1, vertex("b", "RUN y", [...failed, [7, "exit code: 3"]])])),
    ]
    assert.deepEqual(
      events.flatMap((event) => (event.type === "step" ? [`${event.name} ${event.state}`] : [])),
      ["COPY x started", "COPY x failed", "RUN y started", "RUN y failed"],
    )
    const { step, error, logTail } = trace.failure()
    assert.deepEqual(
      [step, error, logTail.length, logTail[0], logTail.at(-1)],
      ["RUN y", "exit code: 3", 20, "line 11", "line 30"],
    )
  })
})
