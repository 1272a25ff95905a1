/** What an image build looks like: lines, events, and a live view on a small terminal emulator. */
import assert from "node:assert/strict"
import { test } from "node:test"
import { jsonReporter, liveReporter, plainReporter, warningReporter } from "../../cli/report.ts"
import type { BuildEvent } from "../../images/builder.ts"

const EVENTS: readonly BuildEvent[] = [
  { type: "step", step: "a", name: "[1/3] FROM node:24-bookworm-slim", state: "started" },
  { type: "step", step: "a", name: "[1/3] FROM node:24-bookworm-slim", state: "cached", durationMs: 3 },
  { type: "step", step: "b", name: "[2/3] RUN apt-get install -y libgomp1", state: "started" },
  { type: "log", step: "b", stream: "stdout", text: "Reading package lists..." },
  { type: "step", step: "c", name: "[3/3] COPY models", state: "started" },
  { type: "progress", step: "c", name: "models", current: 1024, total: 4096 },
  { type: "log", step: "b", stream: "stderr", text: "\u001B[31mred\u001B[0m \u001B[2Jnoise" },
  { type: "warning", message: "the base image is old" },
  { type: "step", step: "b", name: "[2/3] RUN apt-get install -y libgomp1", state: "done", durationMs: 3210 },
  { type: "step", step: "c", name: "[3/3] COPY models", state: "failed", durationMs: 50 },
  {
    type: "built",
    builder: "assemble",
    reason: null,
    imageId: "sha256:1",
    tags: ["a:1"],
    sizeBytes: 5,
    durationMs: 7,
  },
]

function screen(columns = 80) {
  let text = ""
  let ms = 0
  return {
    write: (chunk: string) => {
      text += chunk
    },
    columns: () => columns,
    colour: false,
    now: () => new Date((ms += 100)),
    text: () => text,
  }
}

test("in a pipe each step is a numbered line, and so are its output and its end", () => {
  const out = screen()
  const reporter = plainReporter(out)
  EVENTS.forEach(reporter.event)
  reporter.close()
  assert.deepEqual(out.text().trimEnd().split("\n"), [
    "#1 [1/3] FROM node:24-bookworm-slim",
    "#1 CACHED",
    "#2 [2/3] RUN apt-get install -y libgomp1",
    "#2 | Reading package lists...",
    "#3 [3/3] COPY models",
    "#2 | red noise",
    "Warning: the base image is old",
    "#2 done in 3.2s",
    "#3 FAILED after 0.1s",
  ])
})

test("NDJSON has every event on a line of its own, with keys in snake case", () => {
  const out = screen()
  EVENTS.forEach(jsonReporter(out).event)
  const lines = out
    .text()
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>)
  assert.equal(lines.length, EVENTS.length)
  assert.deepEqual(lines.at(-1), {
    type: "built",
    builder: "assemble",
    reason: null,
    image_id: "sha256:1",
    tags: ["a:1"],
    size_bytes: 5,
    duration_ms: 7,
  })
})

test("NDJSON tells of a push what -o json does", () => {
  const out = screen()
  const layers = { sent: 1, present: 2, sentBytes: 3 }
  const pushed = { reference: "r/a:1", digest: "sha256:1", repoDigest: "r/a@sha256:1", durationMs: 7 }
  jsonReporter(out).event({ type: "pushed", ...pushed, layers })
  assert.deepEqual(JSON.parse(out.text()), {
    type: "pushed",
    reference: "r/a:1",
    digest: "sha256:1",
    repo_digest: "r/a@sha256:1",
    layers_sent: 1,
    layers_present: 2,
    sent_bytes: 3,
    duration_ms: 7,
  })
})

test("without progress warnings are told all the same, and nothing else", () => {
  const out = screen()
  const reporter = warningReporter(out)
  EVENTS.forEach(reporter.event)
  reporter.close()
  assert.equal(out.text(), "Warning: the base image is old\n")
})

const ESC = "\u001B"
const SEQUENCE_OR_LETTER = new RegExp(`${ESC}\\[[?\\d;]*[A-Za-z]|[\\s\\S]`, "gu")

/** Enough of a terminal for what the live view writes; `rows` are what a user would see. */
function terminal(columns: number) {
  const rows: string[] = [""]
  let y = 0
  let x = 0
  let cursor = true
  const put = (letter: string): void => {
    if (x === columns) [x, y] = [0, y + 1]
    rows[y] = (rows[y] ?? "").padEnd(x).slice(0, x) + letter + (rows[y] ?? "").slice(x + 1)
    x += 1
  }
  const obey = (sequence: string): void => {
    const [, count = "", command] = /(\??\d*)([A-Za-z])$/.exec(sequence) ?? []
    if (command === "A") y -= Number(count)
    else if (command === "K") rows[y] = (rows[y] ?? "").slice(0, x)
    else if (command === "J") rows.splice(y, Infinity, (rows[y] ?? "").slice(0, x))
    else if (command === "h" || command === "l") cursor = command === "h"
    else if (command !== "m") throw new Error(`unknown sequence ${JSON.stringify(sequence)}`)
    assert.ok(y >= 0, "the cursor left the screen")
  }
  return {
    write: (text: string) => {
      for (const [part] of text.matchAll(SEQUENCE_OR_LETTER)) {
        if (part.startsWith(ESC)) obey(part)
        else if (part === "\n") [x, y] = [0, y + 1]
        else if (part === "\r") x = 0
        else put(part)
      }
    },
    screen: () =>
      rows
        .map((row) => row.trimEnd())
        .join("\n")
        .trimEnd(),
    cursor: () => cursor,
  }
}

for (const columns of [80, 40, 20]) {
  test(`the live view keeps to ${columns} columns and ends with one line per step`, () => {
    const view = terminal(columns)
    let ms = 0
    const reporter = liveReporter({
      write: view.write,
      columns: () => columns,
      colour: true,
      now: () => new Date((ms += 100)),
    })
    assert.equal(view.cursor(), false)
    const seen: string[] = []
    for (const event of EVENTS) {
      reporter.event(event)
      seen.push(view.screen())
    }
    reporter.close()
    assert.equal(view.cursor(), true)
    const lines = view.screen().split("\n")
    // A warning is told whole.
    const warning =
      columns === 20 ? ["Warning: the base", "image is old"] : ["Warning: the base image is old"]
    assert.deepEqual(lines.slice(1, -2), warning)
    assert.match(lines[0] ?? "", /^✓ \[1.* CACHED$/)
    assert.match(lines.at(-2) ?? "", /^✓ \[2.* 3\.2s$/)
    assert.match(lines.at(-1) ?? "", /^✗ \[3.* FAILED 0\.1s$/)
    for (const text of seen.join("\n").split("\n")) assert.ok(text.length < columns, text)
    if (columns === 20) return
    assert.match(seen[4] ?? "", /⠋ \[2\/3\] RUN apt.*\n {4}Reading package lists\.\.\./)
  })
}

test("the live view shows how far a step is, and the newest lines of its output", () => {
  const view = terminal(80)
  const reporter = liveReporter({
    write: view.write,
    columns: () => 80,
    colour: false,
    now: () => new Date(0),
  })
  reporter.event({ type: "step", step: "s", name: "pull", state: "started" })
  for (let line = 1; line <= 9; line += 1)
    reporter.event({ type: "log", step: "s", stream: "stdout", text: `line ${line}` })
  reporter.event({ type: "progress", step: "s", name: "layer", current: 2048, total: 4096 })
  reporter.event({ type: "step", step: "t", name: "other", state: "started" })
  assert.match(
    view.screen(),
    /^⠋ pull +2\.00 KiB of 4\.00 KiB {2}0\.0s\n {4}line 6\n {4}line 7\n {4}line 8\n {4}line 9\n⠋ other/,
  )
  reporter.close()
  assert.equal(view.screen(), "")
})

test("a terminal that became narrower is redrawn without leftovers", () => {
  let columns = 80
  const view = terminal(40)
  const reporter = liveReporter({
    write: view.write,
    columns: () => columns,
    colour: false,
    now: () => new Date(0),
  })
  columns = 40
  reporter.event({ type: "step", step: "s", name: "x".repeat(200), state: "started" })
  reporter.event({ type: "step", step: "s", name: "x".repeat(200), state: "done", durationMs: 1 })
  reporter.close()
  assert.equal(view.screen().split("\n").length, 1)
})
