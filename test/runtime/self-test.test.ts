/** The self-test over models that are none: what it says of answers that nobody's real model gives on demand. */
import assert from "node:assert/strict"
import { readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { test } from "node:test"
import type { ModelRunner } from "../../runtime/runner.ts"
import { checkExamples, isPassed, reportTable, testModel } from "../../runtime/self-test.ts"
import { fromNested } from "../../runtime/tensor-json.ts"
import type { ExamplesResult } from "../../store/bento.ts"
import { modelWith, scratch, BATCHABLE } from "./runner-world.ts"

/** x float32 [N] → y; `answer` is asked with the number of the call. */
function modelThat(answer: (call: number) => number): {
  model: Parameters<typeof testModel>[0]
  runner: ModelRunner
} {
  let calls = 0
  const run = (): ReturnType<ModelRunner["run"]> =>
    new Promise((resolve) => resolve({ y: fromNested("float32", [answer(calls++)]) }))
  const spec = {
    inputs: [{ name: "x", dtype: "float32", shape: ["N"] }],
    outputs: [{ name: "y", dtype: "float32", shape: ["N"] }],
    batchable: true,
    batchDim: [0, 0],
  } as const
  // The part of a runner that a self-test sees.
  const runner = {
    name: "m",
    signatures: { run: spec },
    start: () => Promise.resolve(),
    run,
  } as unknown as ModelRunner
  return { model: { model: modelWith(BATCHABLE), dir: scratch() }, runner }
}

async function record(given: ReturnType<typeof modelThat>): Promise<ExamplesResult> {
  const file = path.join(given.model.dir, "i.json")
  await writeFile(file, "[1]")
  return checkExamples({ dir: given.model.dir, file, record: true }, given)
}

test("a model whose answers are chance cannot be recorded", async () => {
  const result = await record(modelThat((call) => call))
  assert.ok(!result.ok)
  assert.match(
    `${result.message} ${result.issues[0]?.field} ${result.issues[0]?.message}`,
    /^the answers cannot be recorded: examples\[0\] "1": y\[0\]: expected 0, received 1 /,
  )
})

test("the report names the error of what passes, and what has no examples", async () => {
  const given = modelThat((call) => (call < 2 ? 1 : 1.0001))
  assert.deepEqual(await record(given), { ok: true, examples: ["1"], notes: [] })
  const other = modelThat(() => 0)
  const reports = [
    await testModel(given.model, given.runner, Promise.resolve()),
    await testModel(other.model, other.runner, Promise.resolve()),
  ]
  assert.ok(isPassed(reports))
  assert.equal(
    reportTable(reports),
    `MODEL  SIGNATURE  EXAMPLE  RESULT
m:v1   run        1        ok (max error 0.0001)
m:v1                       no examples

1 example passed.
`,
  )
})

test("files that came or went since are named, in folders too", async () => {
  const given = modelThat(() => 1)
  await record(given)
  const file = path.join(given.model.dir, "selftest.json")
  const kept = JSON.parse(await readFile(file, "utf8")) as { files: Record<string, string> }
  assert.deepEqual(Object.keys(kept.files), ["i.json"])
  kept.files = { "weights/a.bin": `sha256:${"0".repeat(64)}` }
  await writeFile(file, JSON.stringify(kept))
  const { problems } = await testModel(given.model, given.runner, Promise.resolve())
  assert.deepEqual(problems, [
    "the file i.json was not there when the examples were recorded",
    "the file weights/a.bin is missing",
  ])
})

test("a model that cannot be loaded fails, with or without examples, and the other ONNX Runtime stands beside it", async () => {
  const given = modelThat(() => 1)
  const failing = (): Promise<void> => Promise.reject(new Error("no"))
  assert.deepEqual((await testModel(given.model, given.runner, failing())).problems, ["no"])
  await record(given)
  const file = path.join(given.model.dir, "selftest.json")
  await writeFile(
    file,
    (await readFile(file, "utf8")).replace(/"onnxruntime": "[^"]*"/, '"onnxruntime": "0.1.0"'),
  )
  const report = await testModel(given.model, given.runner, failing())
  assert.deepEqual([report.problems, report.recordedWith], [["no"], "0.1.0"])
  assert.match(
    report.warnings.join(""),
    /^probably because of another ONNX Runtime: recorded with ONNX Runtime 0\.1\.0, running on \d/,
  )
  await writeFile(path.join(given.model.dir, "i.json"), "other bytes")
  const changed = await testModel(given.model, given.runner, failing())
  assert.match(changed.warnings.join(""), /^recorded with ONNX Runtime 0\.1\.0, running on \d/)
})

test("examples join others only while the model still is what those say", async () => {
  const given = modelThat((call) => (call < 2 ? 1 : 2))
  await record(given)
  const file = path.join(given.model.dir, "selftest.json")
  const again = await record(given)
  assert.ok(!again.ok)
  assert.match(
    `${again.message} ${again.issues.map(({ message }) => message).join("; ")}`,
    /^the model is not as its examples say any more: its example "1" fails: y\[0\]: expected 1, received 2/,
  )
  await writeFile(path.join(given.model.dir, "i.json"), '[{"name": "1", "inputs": {"x": [1]}}]')
  const request = { dir: given.model.dir, file: path.join(given.model.dir, "i.json"), record: true }
  const changed = await checkExamples(request, given)
  assert.ok(!changed.ok)
  assert.match(changed.issues.map(({ message }) => message).join("; "), /^the file i\.json has changed since/)
  const kept = JSON.parse(await readFile(file, "utf8")) as { files: object }
  await writeFile(file, JSON.stringify({ ...kept, files: {} }))
  assert.deepEqual(await checkExamples(request, given), { ok: true, examples: ["1"], notes: [] }, "replaced")
})

test("examples that cannot be read are problems of the model", async () => {
  const given = modelThat(() => 1)
  for (const [text, problem] of [
    ["{", /is not JSON/],
    [
      '{"examples": [{"inputs": {"z": [1]}, "outputs": {"y": [1]}}]}',
      /there is no input "z".*input "x" is missing/s,
    ],
    ['{"examples": [{"inputs": {"x": [1]}}]}', /example "1" has no outputs to compare with/],
    ['{"files": 3, "examples": [{"inputs": {"x": [1]}}]}', /files: must be a map/],
  ] as const) {
    await writeFile(path.join(given.model.dir, "selftest.json"), text)
    const report = await testModel(given.model, given.runner, Promise.resolve())
    assert.match(report.problems.join("\n"), problem)
    assert.ok(!isPassed([report]), text)
  }
})
