import assert from "node:assert/strict"
import { test } from "node:test"
import { createLog, errorFields } from "../../runtime/log.ts"

function logTo(format: "text" | "json"): { lines: string[]; log: ReturnType<typeof createLog> } {
  const lines: string[] = []
  const log = createLog({ write: (line) => lines.push(line), now: () => new Date(0), format })
  return { lines, log }
}

test("text lines are for people: time, level, message, fields, and a stack below", () => {
  const { lines, log } = logTo("text")
  log.info("listening", { port: 3000, url: "http://localhost:3000", note: "two words" })
  log.error("failed", { stack: "Error: x\n    at f" })
  assert.deepEqual(lines, [
    '1970-01-01T00:00:00.000Z [info] listening port=3000 url=http://localhost:3000 note="two words"\n',
    "1970-01-01T00:00:00.000Z [error] failed\n    Error: x\n        at f\n",
  ])
})

test("JSON lines are for machines", () => {
  const { lines, log } = logTo("json")
  log.warn("odd", { runner: "iris" })
  assert.deepEqual(lines, [
    '{"time":"1970-01-01T00:00:00.000Z","level":"warn","message":"odd","runner":"iris"}\n',
  ])
})

test("no value can forge a line or speak to a terminal", () => {
  for (const format of ["text", "json"] as const) {
    const { lines, log } = logTo(format)
    log.info("a\nb\u001b[31m\u2028", { key: "x\r\ny\u0007" })
    const [line = ""] = lines
    assert.equal(line.indexOf("\n"), line.length - 1)
    // What JSON leaves as it is (U+2028) ends no line of a terminal.
    assert.doesNotMatch(line.slice(0, -1), /[\p{Cc}]/u)
  }
})

test("an error is told with its cause", () => {
  const { stack } = errorFields(new Error("outer", { cause: new TypeError("inner") }))
  assert.match(typeof stack === "string" ? stack : "", /^Error: outer[\s\S]*caused by TypeError: inner/)
  assert.deepEqual(errorFields("text"), { thrown: "text" })
})
