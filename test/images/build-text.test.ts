import assert from "node:assert/strict"
import { describe, test } from "node:test"
import type { BuildEvent } from "../../images/builder.ts"
import { BuildText } from "../../images/build-text.ts"

/** The events in few words. */
function told(events: readonly BuildEvent[]): string[] {
  return events.flatMap((event) =>
    event.type === "step"
      ? [`${event.name} ${event.state}`]
      : event.type === "log"
        ? [`${event.step} | ${event.text}`]
        : [],
  )
}

/** Read in pieces of this size, since an engine cuts its text wherever it likes. */
function readAll(trace: BuildText, text: string, size: number): BuildEvent[] {
  const pieces = text.match(new RegExp(`[^]{1,${size}}`, "g")) ?? []
  return pieces.flatMap((piece) => [...trace.read(piece)])
}

describe("the text of a build without BuildKit", () => {
  const podman = [
    "STEP 1/3: FROM base",
    "STEP 2/3: RUN --mount=type=bind,source=a,target=/a     set -eu;     ./a",
    "hello",
    "STEP by step",
    "--> 3f3c266ec96",
    'STEP 3/3: ENTRYPOINT ["x"]',
    "--> Using cache 1234",
    "COMMIT docker.io/library/foo:1",
    "Successfully tagged docker.io/library/foo:1",
    "",
  ].join("\n")

  for (const size of [1, 7, 10_000]) {
    test(`becomes steps with what they printed, read ${size} characters at a time`, () => {
      const trace = new BuildText()
      assert.deepEqual(told([...readAll(trace, podman, size), ...trace.end("done")]), [
        "[1/3] FROM base started",
        "[1/3] FROM base done",
        "[2/3] RUN set -eu; ./a started",
        "[2/3] RUN set -eu; ./a | hello",
        "[2/3] RUN set -eu; ./a | STEP by step",
        "[2/3] RUN set -eu; ./a done",
        '[3/3] ENTRYPOINT ["x"] started',
        '[3/3] ENTRYPOINT ["x"] cached',
      ])
      assert.equal(trace.failure().step, undefined)
    })
  }

  test("of docker's old builder is read as well", () => {
    const trace = new BuildText()
    const text = "Step 1/2 : FROM base\n ---> abc\nStep 2/2 : RUN x\n ---> Using cache\n ---> def\n"
    assert.deepEqual(told([...trace.read(text), ...trace.end("done")]), [
      "[1/2] FROM base started",
      "[1/2] FROM base done",
      "[2/2] RUN x started",
      "[2/2] RUN x cached",
    ])
  })

  test("tells the step that failed, with its last lines", () => {
    const trace = new BuildText()
    const lines = Array.from({ length: 30 }, (_, index) => `line ${index}\n`).join("")
    const events = [...trace.read(`STEP 1/1: RUN make\n${lines}`), ...trace.end("failed")]
    assert.equal(told(events).at(-1), "[1/1] RUN make failed")
    const { step, logTail } = trace.failure()
    assert.deepEqual([step, logTail.length, logTail.at(-1)], ["[1/1] RUN make", 20, "line 29"])
  })
})
