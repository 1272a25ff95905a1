/** What `models import` stores and prints when all is well. */
import assert from "node:assert/strict"
import { readFile, writeFile } from "node:fs/promises"
import path from "node:path"
import { test } from "node:test"
import { parse } from "yaml"
import { onnxModel } from "../images/protobuf.ts"
import { fixtures, folderWith, root, run, scratch } from "./support.ts"

const iris = path.join(root, "examples/iris/iris.onnx")

interface Written {
  labels: Record<string, string>
  metadata: Record<string, unknown>
  signatures: { run: { batchable: boolean; batch_dim?: number[] } }
}

async function modelYaml(home: string, tag: string): Promise<Written> {
  const { stdout } = await run(["models", "get", tag], { home })
  return parse(stdout) as Written
}

test("import names the model and notes what it changed", async () => {
  const home = await scratch()
  const { code, stdout, stderr } = await run(["models", "import", iris, "--name", "iris"], { home })
  assert.equal(code, 0)
  assert.match(stdout, /^Model\(tag="iris:[a-z2-7]{16}"\) imported\.\n$/)
  assert.match(stderr, /^note: ZipMap was taken out: output "output_probability" is now a tensor/)
})

test("-o tag prints nothing but the tag", async () => {
  const home = await scratch()
  const outcome = await run(["models", "import", iris, "--name", "iris", "--version", "1", "-o", "tag"], {
    home,
  })
  assert.deepEqual(outcome, { code: 0, stdout: "__tag__:iris:1\n", stderr: "" })
})

test("-o json prints tag, folder, notes and model.yaml", async () => {
  const home = await scratch()
  const { stdout, stderr } = await run(
    ["models", "import", iris, "--name", "iris", "--version", "1", "-o", "json"],
    { home },
  )
  const result = JSON.parse(stdout) as { tag: string; path: string; notes: string[]; model: unknown }
  assert.equal(stderr, "")
  assert.deepEqual([result.tag, result.path], ["iris:1", path.join(home, "models/iris/1")])
  assert.equal(result.notes.length, 1)
  assert.deepEqual(result.model, parse(await readFile(path.join(result.path, "model.yaml"), "utf8")))
})

test("-q prints nothing", async () => {
  const home = await scratch()
  assert.deepEqual(await run(["models", "import", iris, "--name", "iris", "-q"], { home }), {
    code: 0,
    stdout: "",
    stderr: "",
  })
})

test("a tensor that no object of JavaScript can hold is refused by name", async () => {
  const home = await scratch()
  const folder = await scratch()
  for (const [what, input, output] of [
    ["input", "__proto__", "y"],
    ["output", "x", "__proto__"],
  ] as const) {
    const file = path.join(folder, `${what}.onnx`)
    await writeFile(file, onnxModel([input], [[[input], output, "Neg"]]))
    const { code, stderr } = await run(["models", "import", file, "--name", "m"], { home })
    assert.equal(code, 1)
    assert.match(
      stderr,
      new RegExp(`its ${what} is called __proto__, .*: rename it in the graph\\n.*unchanged`),
    )
  }
})

test("labels, metadata and signature are kept, from files or from the command line", async () => {
  const home = await scratch()
  const cwd = await folderWith({
    "meta.yaml": "accuracy: 0.97\nrows: [1, 2]\n",
    "sig.json": '{"run": {"batchable": false}}',
  })
  const args = [
    "--label",
    "stage=prod",
    "--label",
    "team=a=b",
    "--metadata",
    "meta.yaml",
    "--signature",
    "sig.json",
  ]
  assert.equal((await run(["models", "import", iris, "--name", "iris", ...args], { home, cwd })).code, 0)
  const model = await modelYaml(home, "iris")
  assert.deepEqual(model.labels, { stage: "prod", team: "a=b" })
  assert.equal(model.metadata["accuracy"], 0.97)
  assert.deepEqual(model.metadata["rows"], [1, 2])
  assert.equal(model.signatures.run.batchable, false)
  const axis1 = path.join(fixtures, "models/batch_axis1.onnx")
  const signature = '{"run": {"batchable": true, "batch_dim": 1}}'
  assert.equal(
    (await run(["models", "import", axis1, "--name", "axis", "--signature", signature], { home })).code,
    0,
  )
  assert.deepEqual((await modelYaml(home, "axis")).signatures.run, { batchable: true, batch_dim: [1, 1] })
})

test("external data comes along, and a relative path is one of the working directory", async () => {
  const home = await scratch()
  const cwd = path.join(fixtures, "models/external_data")
  assert.equal(
    (await run(["models", "import", "model.onnx", "--name", "ext", "--version", "1"], { home, cwd })).code,
    0,
  )
  const copied = await readFile(path.join(home, "models/ext/1/weights.bin"))
  assert.deepEqual(copied, await readFile(path.join(cwd, "weights.bin")))
})

test("a folder that BentoML saved brings its own name", async () => {
  const home = await scratch()
  const { stdout } = await run(["models", "get", "digits_sklearn", "-o", "path"], {
    home: path.join(fixtures, "bentoml-home"),
  })
  assert.equal((await run(["models", "import", stdout.trim()], { home })).code, 0)
  assert.equal((await run(["models", "get", "digits_sklearn"], { home })).code, 0)
})
