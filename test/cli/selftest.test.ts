/** Examples of models from the import to the server that starts only if they pass: the real program, real models. */
import assert from "node:assert/strict"
import { cp, readFile, readdir, writeFile } from "node:fs/promises"
import { createServer } from "node:net"
import path from "node:path"
import { before, describe, test } from "node:test"
import {
  fixtures,
  folderWith,
  root,
  run,
  scratch,
  start,
  until,
  type Outcome,
  type Started,
} from "./support.ts"

const iris = path.join(root, "examples/iris/iris.onnx")
const examples = path.join(root, "examples/iris/examples.json")
const ENTRY = /_NAME_/g

/** A store with iris in it, which has examples; each test that changes something takes one of its own. */
let original: string
let tag: string
before(async () => {
  original = await scratch()
  tag = await imported(original, iris, "iris", examples)
})

async function imported(home: string, file: string, name: string, example?: string): Promise<string> {
  const more = example === undefined ? [] : ["--example", example]
  return tagOf(await run(["models", "import", file, "--name", name, "-o", "tag", ...more], { home }))
}

function tagOf({ code, stdout, stderr }: Outcome): string {
  assert.equal(code, 0, stderr)
  return stdout.trim().replace("__tag__:", "")
}

async function storeCopy(): Promise<string> {
  const home = await scratch()
  await cp(original, home, { recursive: true })
  return home
}

const folderOf = (home: string, of: string): string => path.join(home, "models", of.replace(":", "/"))

/** One byte in the middle of a file is another one: in the weights of a tree, where the graph still loads. */
async function flipByte(file: string): Promise<void> {
  const bytes = await readFile(file)
  const at = bytes.length >> 1
  bytes[at] = (bytes[at] ?? 0) ^ 1
  await writeFile(file, bytes)
}

async function edit(file: string, change: (text: string) => string): Promise<void> {
  await writeFile(file, change(await readFile(file, "utf8")))
}

const project = (selftest = true): Promise<string> =>
  folderWith({ "bentofile.yaml": `name: tested\nselftest: ${selftest}\nmodels: [iris]\n` })

describe("models import --example", () => {
  test("keeps the examples with the digests of the files, the tensors and the version of ONNX Runtime", async () => {
    const kept = JSON.parse(await readFile(path.join(folderOf(original, tag), "selftest.json"), "utf8")) as {
      onnxruntime: string
      files: Record<string, string>
      signatures: unknown
      examples: unknown[]
    }
    assert.match(kept.onnxruntime, /^\d+\.\d+\.\d+$/)
    assert.deepEqual(Object.keys(kept.files), ["saved_model.onnx"])
    assert.deepEqual(kept.signatures, {
      run: {
        inputs: { X: "float32 [?, 4]" },
        outputs: { output_label: "int64 [?]", output_probability: "float32 [?, 3]" },
      },
    })
    assert.equal(kept.examples.length, 4)
  })

  test("refuses examples that the model answers otherwise, and those that do not fit it; the store is unchanged", async () => {
    const home = await storeCopy()
    const folder = await folderWith({
      "wrong.json": '{"inputs": {"X": [[5.1, 3.5, 1.4, 0.2]]}, "outputs": {"output_label": [1]}}',
      "unfit.json":
        '[{"inputs": {"Y": [1]}, "outputs": {"output_label": ["a"]}}, {"inputs": {"X": [[1,2,3,4]]}}]',
    })
    const importing = (name: string): Promise<Outcome> =>
      run(["models", "import", iris, "--name", "other", "--example", path.join(folder, name)], { home })
    const wrong = await importing("wrong.json")
    assert.equal(wrong.code, 1)
    assert.match(
      wrong.stderr,
      /does not answer as expected:\n.*wrong\.json: examples\[0\]: "1": output_label\[0\]: expected 1, received 0/,
    )
    assert.match(wrong.stderr, /The store is unchanged\. \[EXAMPLES_INVALID\]/)
    const unfit = await importing("unfit.json")
    assert.equal(unfit.code, 1)
    for (const problem of [
      /no input "Y"/,
      /input "X" is missing/,
      /int64 integers/,
      /has no `outputs`; `bentoctl models record`/,
    ]) {
      assert.match(unfit.stderr, problem)
    }
    const missing = await importing("missing.json")
    assert.deepEqual([missing.code, /missing\.json: no such file/.test(missing.stderr)], [1, true])
    assert.deepEqual(await readdir(path.join(home, "models")), ["iris"])
  })

  test("tests the examples that a model folder brings along, against the files that it brings", async () => {
    const home = await storeCopy()
    const folder = path.join(await scratch(), "m")
    await cp(folderOf(home, tag), folder, { recursive: true })
    const whole = await imported(home, folder, "whole")
    assert.deepEqual(
      await readFile(path.join(folderOf(home, whole), "selftest.json")),
      await readFile(path.join(folder, "selftest.json")),
    )
    await flipByte(path.join(folder, "saved_model.onnx"))
    const damaged = await run(["models", "import", folder, "--name", "damaged"], { home })
    assert.equal(damaged.code, 1)
    assert.match(
      damaged.stderr,
      /saved_model\.onnx has changed since the examples were recorded: it is sha256:/,
    )
  })
})

describe("models record", () => {
  test("makes a new version with the answers, and leaves the old one as it is", async () => {
    const home = await storeCopy()
    const before = await readdir(folderOf(home, tag))
    const kept = await readFile(path.join(folderOf(home, tag), "selftest.json"))
    const body = path.join(await folderWith({ "body.json": '{"X": [[5.9, 3, 5.1, 1.8]]}' }), "body.json")
    const { stdout, code } = await run(["models", "record", "iris", "--input", body, "-o", "json"], { home })
    assert.equal(code, 0)
    const recorded = JSON.parse(stdout) as { tag: string; examples: string[] }
    assert.notEqual(recorded.tag, tag)
    assert.deepEqual(recorded.examples, ["setosa", "versicolor", "virginica", "hard to tell", "1"])
    assert.match(
      await readFile(path.join(folderOf(home, recorded.tag), "selftest.json"), "utf8"),
      /"name":"1","signature":"run","inputs":\{"X":\[\[5\.9,3,5\.1,1\.8\]\]\},"outputs":\{"output_label":\[2\],"output_probability":\[\[0,0\.033333335,0\.96666706\]\]\}/,
    )
    assert.deepEqual(await readdir(folderOf(home, tag)), before)
    assert.deepEqual(await readFile(path.join(folderOf(home, tag), "selftest.json")), kept)
    assert.equal(
      tagOf(await run(["models", "get", "iris", "-o", "path"], { home })),
      folderOf(home, recorded.tag),
    )
  })

  test("takes the place of an example of the same name", async () => {
    const home = await storeCopy()
    const input = path.join(
      await folderWith({
        "i.json":
          '[{"name": "setosa", "inputs": {"X": [[5, 3, 1, 0.1]]}}, {"inputs": {"X": [[1, 1, 1, 1]]}}]',
      }),
      "i.json",
    )
    const { stdout } = await run(["models", "record", tag, "--input", input, "-o", "json"], { home })
    assert.deepEqual((JSON.parse(stdout) as { examples: string[] }).examples, [
      "versicolor",
      "virginica",
      "hard to tell",
      "setosa",
      "1",
    ])
  })

  test("two at once under one version: one wins, the other is STORE_EXISTS", async () => {
    const home = await storeCopy()
    const input = path.join(await folderWith({ "i.json": "[[1, 2, 3, 4]]" }), "i.json")
    const both = await Promise.all(
      [1, 2].map(() => run(["models", "record", "iris", "--input", input, "--version", "next"], { home })),
    )
    assert.deepEqual(
      both.map(({ code }) => code).toSorted((a, b) => a - b),
      [0, 1],
    )
    assert.match(both.map(({ stderr }) => stderr).join(""), /\[STORE_EXISTS\]/)
  })

  test("killed at any moment, leaves whole versions and nothing else", async (t) => {
    const home = await storeCopy()
    const input = path.join(await folderWith({ "i.json": "[[1, 2, 3, 4]]" }), "i.json")
    const record = (): Started =>
      start(["models", "record", "iris", "--input", input, "-o", "tag"], { env: { BENTOML_HOME: home } })
    const { ms, ...first } = await record().ended
    const done = [tagOf(first)]
    let left = 6
    const slot = async (): Promise<void> => {
      while (left-- > 0) {
        const { child, ended } = record()
        const isAtWork = async (): Promise<boolean> =>
          (await readdir(path.join(home, "tmp"))).some((name) => name.includes(`-${child.pid}-`))
        await Promise.race([until("a new version", isAtWork), ended])
        const timer = setTimeout(() => child.kill("SIGKILL"), Math.random() * ms)
        const outcome = await ended
        clearTimeout(timer)
        if (outcome.code === 0) done.push(tagOf(outcome))
      }
    }
    await Promise.all([slot(), slot(), slot()])
    t.diagnostic(`${7 - done.length} of 6 were killed before they said that they are done`)
    const last = tagOf(await record().ended)
    const { stdout, code, stderr } = await run(["models", "list", "iris", "-o", "json"], { home })
    assert.deepEqual([code, stderr], [0, ""])
    const listed = (JSON.parse(stdout) as { tag: string }[]).map((item) => item.tag)
    for (const made of [tag, ...done, last]) assert.ok(listed.includes(made), made)
    for (const one of listed) {
      assert.deepEqual((await readdir(folderOf(home, one))).toSorted(), [
        "model.yaml",
        "saved_model.onnx",
        "selftest.json",
      ])
      JSON.parse(await readFile(path.join(folderOf(home, one), "selftest.json"), "utf8"))
    }
    assert.deepEqual(await readdir(path.join(home, "tmp")), [], "the next writer cleans up")
    assert.equal(tagOf(await run(["models", "get", "iris", "-o", "path"], { home })), folderOf(home, last))
  })

  test("keeps what JSON has no word for as null, and int64 exactly", async () => {
    const home = await scratch()
    for (const [file, body, answer] of [
      ["nan_output.onnx", '{"X": [-1, 0, 1]}', /"outputs":\{"log":\[null,null,0\],"inverse":\[-1,null,1\]\}/],
      ["big_int64.onnx", '{"X": [9223372036854775806]}', /"plus_one":\[9223372036854775807\]/],
      ["strings.onnx", '{"text": ["ä"]}', /"echo":\["ä"\]/],
    ] as const) {
      await imported(home, path.join(fixtures, "models", file), "m")
      const input = path.join(await folderWith({ "i.json": body }), "i.json")
      const made = tagOf(await run(["models", "record", "m", "--input", input, "-o", "tag"], { home }))
      assert.match(await readFile(path.join(folderOf(home, made), "selftest.json"), "utf8"), answer)
      const bento = await folderWith({ "bentofile.yaml": `models: ["${made}"]\n` })
      assert.equal((await run(["selftest", bento], { home })).code, 0, file)
    }
  })

  test("says what the model says where it fails on an input, and writes nothing", async () => {
    const home = await scratch()
    await imported(home, path.join(fixtures, "models/fail_on_negative.onnx"), "m")
    const input = path.join(await folderWith({ "i.json": '{"X": [-3]}' }), "i.json")
    const { code, stderr } = await run(["models", "record", "m", "--input", input], { home })
    assert.equal(code, 1)
    assert.match(
      stderr,
      /the answers cannot be recorded:\n.*m\.run failed on this input: .*\[EXAMPLES_INVALID\]/s,
    )
    assert.equal((await readdir(path.join(home, "models/m"))).length, 2, "a version and `latest`")
  })
})

describe("bentoctl selftest", () => {
  test("prints a line for each example and exits 0", async () => {
    const { code, stdout } = await run(["selftest", await project()], { home: original })
    assert.equal(code, 0)
    const entry = `${tag}  run        _NAME_`
    const names = ["setosa      ", "versicolor  ", "virginica   ", "hard to tell"]
    const lines = stdout.split("\n")
    assert.match(lines[0] ?? "", /^MODEL +SIGNATURE +EXAMPLE +RESULT$/)
    names.forEach((name, index) =>
      assert.ok(
        lines[index + 1]?.startsWith(`${entry.replace(ENTRY, name)}  ok (max error `),
        lines[index + 1],
      ),
    )
    assert.match(stdout, /\n\n4 examples passed\.\n$/)
  })

  test("names a file whose bytes have changed, and exits 1", async () => {
    const home = await storeCopy()
    await flipByte(path.join(folderOf(home, tag), "saved_model.onnx"))
    const { code, stdout } = await run(["selftest", await project(), "-o", "json"], { home })
    const report = JSON.parse(stdout) as { ok: boolean; models: { ok: boolean; problems: string[] }[] }
    assert.deepEqual([code, report.ok, report.models[0]?.ok], [1, false, false])
    assert.match(
      report.models[0]?.problems[0] ?? "",
      /^the file saved_model\.onnx has changed since the examples were recorded: it is sha256:[0-9a-f]{64}, and was sha256:[0-9a-f]{64}$/,
    )
  })

  test("names both the file and the failure where the model cannot be loaded any more", async () => {
    const home = await storeCopy()
    await writeFile(path.join(folderOf(home, tag), "saved_model.onnx"), "nonsense")
    const { code, stdout } = await run(["selftest", await project()], { home })
    assert.equal(code, 1)
    assert.match(
      stdout,
      /FAILED: the file saved_model\.onnx has changed.*FAILED: iris:\S+ cannot be loaded:/s,
    )
    assert.match(stdout, /The self-test failed: 2 problems\.\n$/)
  })

  test("names the answer that differs", async () => {
    const home = await storeCopy()
    await edit(path.join(folderOf(home, tag), "selftest.json"), (text) =>
      text.replace('"output_label":[0]', '"output_label":[7]'),
    )
    const { code, stdout } = await run(["selftest", await project()], { home })
    assert.equal(code, 1)
    assert.match(
      stdout,
      /run +setosa +FAILED: output_label\[0\]: expected 7, received 0 \(1 of 1 values differ, by up to 7\)\n/,
    )
    assert.match(stdout, /run +versicolor +ok/)
  })

  test("names an input of another dtype, in a model that loads as well as before", async () => {
    const home = await storeCopy()
    const model = path.join(folderOf(home, tag), "saved_model.onnx")
    const bytes = await readFile(model)
    // `elem_type` of the graph's input X, the last X in the file: float becomes double.
    bytes[bytes.lastIndexOf(Buffer.from([0x0a, 1, 0x58, 0x12])) + 8] = 11
    await writeFile(model, bytes)
    const { code, stdout } = await run(["selftest", await project()], { home })
    assert.equal(code, 1)
    assert.match(stdout, /FAILED: the file saved_model\.onnx has changed since/)
    assert.match(
      stdout,
      /FAILED: run: input "X" is float64 \[\?, 4\], and was float32 \[\?, 4\] when recorded\n/,
    )
  })

  test("names another ONNX Runtime: a warning while the answers agree, the probable cause where they do not", async () => {
    const home = await storeCopy()
    const file = path.join(folderOf(home, tag), "selftest.json")
    await edit(file, (text) => text.replace(/"onnxruntime": "[^"]*"/, '"onnxruntime": "1.2.3"'))
    const passes = await run(["selftest", await project()], { home })
    const both = "recorded with ONNX Runtime 1\\.2\\.3, running on \\d+\\.\\d+\\.\\d+"
    assert.equal(passes.code, 0)
    assert.match(passes.stdout, new RegExp(`WARNING: ${both}; the answers agree\\n`))
    assert.match(passes.stdout, /\n4 examples passed, with a warning\.\n$/)
    const { models } = JSON.parse(
      (await run(["selftest", await project(), "-o", "json"], { home })).stdout,
    ) as { models: { ok: boolean; recorded_with: string; warnings: string[] }[] }
    assert.deepEqual(
      [models[0]?.ok, models[0]?.recorded_with, models[0]?.warnings.length],
      [true, "1.2.3", 1],
    )

    const imported = await run(["models", "import", path.dirname(file), "--name", "moved"], { home })
    assert.equal(imported.code, 0)
    assert.match(imported.stderr, new RegExp(`note: self-test: ${both}; the answers agree`))

    await edit(file, (text) => text.replace('"output_label":[0]', '"output_label":[7]'))
    const fails = await run(["selftest", await project()], { home })
    assert.equal(fails.code, 1)
    assert.match(fails.stdout, new RegExp(`WARNING: probably because of another ONNX Runtime: ${both}\\n`))
  })

  test("fails where there is nothing to test", async () => {
    const home = await scratch()
    await imported(home, iris, "iris")
    const { code, stdout } = await run(["selftest", await project(false)], { home })
    assert.equal(code, 1)
    assert.match(
      stdout,
      /no examples\n\nThere is nothing to test: no model has examples\. `bentoctl models record` makes some\.\n$/,
    )
  })
})

describe("selftest: true", () => {
  test("is refused where no model has examples, with its line", async () => {
    const home = await scratch()
    const plain = await imported(home, iris, "iris")
    for (const command of ["build", "serve"]) {
      const { code, stderr } = await run([command, await project()], { home })
      assert.equal(code, 1)
      assert.match(
        stderr,
        new RegExp(`bentofile\\.yaml:2:11: selftest: there is nothing to test: ${plain} has no examples`),
      )
      assert.match(stderr, new RegExp(`Record some: \`bentoctl models record ${plain} --input FILE\``))
    }
  })

  const freePort = async (): Promise<number> => {
    const server = createServer().listen(0, "127.0.0.1")
    await new Promise((resolve) => server.once("listening", resolve))
    const address = server.address()
    server.close()
    return typeof address === "object" && address !== null ? address.port : 0
  }

  for (const [what, workers] of [
    ["one thread", "1"],
    ["several HTTP threads", "2"],
  ] as const) {
    test(`the server is ready when its models have passed: ${what}`, async () => {
      const port = await freePort()
      const env = {
        BENTOML_HOME: original,
        BENTOML_CONFIG_OPTIONS: `api_server.workers=${workers}`,
      }
      const server = start(["serve", await project(), "-p", String(port)], { env })
      await until("ready", async () =>
        fetch(`http://127.0.0.1:${port}/readyz`).then(
          ({ status }) => status === 200,
          () => false,
        ),
      )
      assert.match(server.output().stderr, /\[info\] iris: self-test passed, 4 examples\n/)
      server.child.kill("SIGTERM")
      assert.equal((await server.ended).code, 0)
    })
  }

  test("a server whose model does not pass ends with exit 1 and says why", async () => {
    const home = await storeCopy()
    const built = tagOf(await run(["build", await project(), "-o", "tag"], { home }))
    await flipByte(path.join(folderOf(home, tag), "saved_model.onnx"))
    const { code, stdout, stderr } = await run(["serve", built, "-p", String(await freePort())], { home })
    assert.equal(code, 1)
    assert.equal(stdout, "", "it never says that it serves")
    assert.match(
      stderr,
      new RegExp(
        `the self-test of ${tag} failed:\\n  the file saved_model\\.onnx has changed .*\\n.*\\[SELFTEST_FAILED\\]\\n`,
      ),
    )
  })
})
