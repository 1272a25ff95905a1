/** The README's first command, as a newcomer runs it; and what is left when they stop it midway. */

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import path from "node:path"
import { after, test } from "node:test"
import { parseArguments, shellQuote } from "../../examples/quickstart.ts"
import { docker, root, watchNames } from "./support.ts"

/** Runs the quickstart; `until` is the text in its output at which it gets SIGINT. */
async function quickstart(until?: string): Promise<{ code: number | null; output: string }> {
  const script = path.join(root, "test/setup/bootstrap.mjs")
  const child = spawn(process.execPath, [script, "examples/quickstart.ts", "--yes"], { cwd: root })
  let output = ""
  let signalled = false
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text
      if (signalled || until === undefined || !output.includes(until)) return
      signalled = true
      child.kill("SIGINT")
    })
  }
  const code = await new Promise<number | null>((done) => child.once("close", done))
  return { code, output }
}

// The quickstart leaves its image to its user.
after(await watchNames("iris_classifier"))

const leftOver = (): Promise<string> => docker("ps", "-aq", "--filter", "name=bentoctl-quickstart")

test("the quickstart leads from the model file to a container that gives the same answer", async () => {
  const { code, output } = await quickstart()
  assert.equal(code, 0, output)
  for (const text of [
    "models import examples/iris/iris.onnx --name iris_clf",
    "the same answer as before",
    "start time: ",
    "image size: ",
    "All done",
  ]) {
    assert.ok(output.includes(text), `"${text}" is missing in:\n${output}`)
  }
  assert.equal(await leftOver(), "")
})

for (const until of ["Serve it on this machine", "Make the image", "docker run -d"]) {
  test(`the quickstart, interrupted at "${until}", exits 130 and leaves nothing running`, async () => {
    const { code, output } = await quickstart(until)
    assert.equal(code, 130, output)
    assert.match(output, /Interrupted; stopping what was started\n$/)
    assert.equal(await leftOver(), "")
  })
}

test("the quickstart knows one argument", () => {
  assert.deepEqual(parseArguments(["--yes"]), { yes: true })
  assert.deepEqual(parseArguments([]), { yes: false })
  assert.ok("error" in parseArguments(["--no"]))
})

test("commands are shown as a shell takes them", () => {
  assert.deepEqual(["a/b:c=1", "[[1,2]]", "it's"].map(shellQuote), ["a/b:c=1", "'[[1,2]]'", `'it'\\''s'`])
})
