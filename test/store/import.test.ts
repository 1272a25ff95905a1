import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import {
  cp,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises"
import { createServer } from "node:net"
import { join } from "node:path"
import { test, type TestContext } from "node:test"
import { BentoError } from "../../store/errors.ts"
import { importModel, type ImportOptions, parseMetadata, parseSignatures } from "../../store/import.ts"
import { formatModelYaml, parseModelYaml, tensorSpecs } from "../../store/model.ts"
import { openModelStore } from "../../store/store.ts"
import { formatTag, parseTag } from "../../store/tag.ts"
import { checkModel, floats, loadOnnx } from "./ort.ts"
import { assertWithin } from "../within.ts"
import { FIXTURES, tempFolder, treeOf, writesModel } from "./support.ts"

const MODELS = join(FIXTURES, "models")
const EXAMPLES = join(FIXTURES, "..", "..", "examples")
const NOW = new Date("2026-01-02T03:04:05.678Z")

interface Place {
  readonly home: string
  readonly options: Omit<ImportOptions, "path">
}

async function place(t: TestContext, more: Partial<Omit<ImportOptions, "path">> = {}): Promise<Place> {
  const home = join(await tempFolder(t), "home")
  const store = openModelStore(home)
  return {
    home,
    options: {
      store,
      name: "iris",
      version: "v1",
      now: NOW,
      random: randomBytes,
      check: checkModel,
      checkExamples: () => Promise.resolve({ ok: true, examples: [], notes: [] }),
      ...more,
    },
  }
}

async function refused(work: Promise<unknown>, code = "IMPORT_FAILED"): Promise<BentoError> {
  const error: unknown = await work.then(
    () => assert.fail("it was imported"),
    (reason: unknown) => reason,
  )
  assert(error instanceof BentoError, String(error))
  assert.equal(error.code, code, error.message)
  return error
}

test("a model file becomes a model of the store, as BentoML would have saved it", async (t) => {
  const { home, options } = await place(t, { labels: { owner: "us" }, metadata: { accuracy: 0.97 } })
  const { model, notes } = await importModel({ ...options, path: join(MODELS, "two_inputs.onnx") })
  assert.deepEqual(notes, [])
  assert.equal(
    await readFile(join(home, "models", "iris", "v1", "model.yaml"), "utf8"),
    `name: iris
version: v1
module: bentoml.onnx
labels:
  owner: us
options:
  input_specs:
    run:
    - name: A
      type:
        tensorType:
          elemType: 1
          shape:
            dim:
            - dimParam: N
            - dimValue: '3'
    - name: B
      type:
        tensorType:
          elemType: 1
          shape:
            dim:
            - dimParam: N
            - dimValue: '3'
  output_specs:
    run:
    - name: C
      type:
        tensorType:
          elemType: 1
          shape:
            dim:
            - dimParam: N
            - dimValue: '3'
  providers: null
  session_options: null
metadata:
  accuracy: 0.97
context:
  framework_name: onnx
  framework_versions: {}
  bentoml_version: 1.4.38
  python_version: ''
signatures:
  run:
    batchable: true
    batch_dim:
    - 0
    - 0
api_version: v2
creation_time: '2026-01-02T03:04:05.678000+00:00'
`,
  )
  assert.deepEqual(await options.store.get({ name: "iris" }), model)
  const saved = await readFile(join(home, "models", "iris", "v1", "saved_model.onnx"))
  assert.deepEqual(saved, await readFile(join(MODELS, "two_inputs.onnx")))
})

test("without a version one is made, without a name nothing is", async (t) => {
  const { home, options } = await place(t)
  const { name: _name, version: _version, ...bare } = options
  const path = join(MODELS, "row_id.onnx")
  const { model } = await importModel({ ...bare, path, name: "Rows" })
  assert.match(formatTag(model.tag), /^rows:[a-z2-7]{16}$/)
  assert.match((await refused(importModel({ ...bare, path }), "TAG_INVALID")).hint ?? "", /--name/)
  assert.match(
    (await refused(importModel({ ...options, path, name: "a b" }), "TAG_INVALID")).message,
    /holds " "/,
  )
  assert.match(
    (await refused(importModel({ ...options, path, version: "latest" }), "TAG_INVALID")).message,
    /latest/,
  )
  assert.deepEqual(await readdir(join(home, "models")), ["rows"])
})

test("a name in upper case is lowered, and said so", async (t) => {
  const { options } = await place(t, { name: "Iris" })
  const { model, notes } = await importModel({ ...options, path: join(MODELS, "row_id.onnx") })
  assert.equal(model.tag.name, "iris")
  assert.deepEqual(notes, ['name "Iris" was lowered to "iris"'])
})

test("batchable is what the first dimensions say", async (t) => {
  const { options } = await place(t)
  for (const [file, batchable] of [
    ["two_outputs", true],
    ["strings", true],
    ["dtypes", true],
    ["inner_dim_free", true],
    ["initializer_as_input", true],
    ["batch_axis1", false],
    ["fixed_batch1", false],
    ["scalar_output", false],
  ] as const) {
    const { model } = await importModel({
      ...options,
      version: file.replace("_", "."),
      path: join(MODELS, `${file}.onnx`),
    })
    assert.equal(model.signatures["run"]?.batchable, batchable, file)
    assert.notEqual(tensorSpecs(model, "run"), null, file)
  }
})

test("a signature given goes before the one inferred", async (t) => {
  const { options } = await place(t, {
    signatures: parseSignatures('{"run": {"batchable": true, "batch_dim": 1}}', "--signature"),
  })
  const path = join(MODELS, "batch_axis1.onnx")
  const { model } = await importModel({ ...options, path })
  assert.deepEqual(model.signatures["run"], { batchable: true, batchDim: [1, 1] })
  const unknown = await refused(
    importModel({ ...options, path, version: "v2", signatures: { predict: { batchable: true } } }),
  )
  assert.match(unknown.message, /no signature "predict"/)
  const beyond = await refused(
    importModel({ ...options, path, version: "v3", signatures: { run: { batchDim: [1, 2] } } }),
  )
  assert.match(beyond.message, /^signature "run": batch_dim is 2, but output "Y" has 2 dimensions$/)
})

test("signatures are read as BentoML writes them, and what is wrong is named", () => {
  assert.deepEqual(parseSignatures("run: {batch_dim: [0, 1]}", "x"), { run: { batchDim: [0, 1] } })
  assert.deepEqual(parseSignatures('{"run": {"batchable": false}}', "x"), { run: { batchable: false } })
  for (const [text, reason] of [
    ['{"run": true}', /signature "run": must be a map/],
    ['{"run": {"batchable": "yes"}}', /batchable must be true or false/],
    ['{"run": {"batch_dims": 0}}', /unknown key "batch_dims"/],
    ['{"run": {"batch_dim": -1}}', /batch_dim must be an axis/],
    ['{"run": {"batch_dim": [0, 0, 0]}}', /batch_dim must be an axis/],
    ["[]", /must hold a map/],
    ['{"run": ', /x:1/],
  ] as const) {
    assert.throws(
      () => parseSignatures(text, "x"),
      (error) => error instanceof BentoError && error.code === "IMPORT_FAILED" && reason.test(error.message),
      text,
    )
  }
})

test("metadata keeps what JavaScript would lose", async (t) => {
  const { home, options } = await place(t, {
    metadata: parseMetadata('{"score": 1.0, "on": "yes", "day": "2024-01-01"}', "meta.json"),
  })
  await importModel({ ...options, path: join(MODELS, "row_id.onnx") })
  const text = await readFile(join(home, "models", "iris", "v1", "model.yaml"), "utf8")
  assert.match(text, /\nmetadata:\n {2}score: 1\.0\n {2}'on': 'yes'\n {2}day: '2024-01-01'\n/)
})

test("ZipMap is taken out, its labels go to the metadata, and the import says so", async (t) => {
  const { home, options } = await place(t, { metadata: { class_labels: { other: [1] } } })
  const { model, notes } = await importModel({ ...options, path: join(EXAMPLES, "iris", "iris.onnx") })
  assert.deepEqual(model.metadata, { class_labels: { other: [1] } }, "what the user says goes before")
  const { model: strings } = await importModel({
    ...options,
    metadata: { a: 1 },
    version: "v2",
    path: join(MODELS, "zipmap_strings.onnx"),
  })
  assert.deepEqual(strings.metadata, {
    class_labels: { output_probability: ["setosa", "versicolor", "virginica"] },
    a: 1,
  })
  assert.match(notes.join(), /ZipMap was taken out: output "output_probability" is now a tensor \[N, 3\]/)
  assert.deepEqual(model.signatures["run"], { batchable: true, batchDim: [0, 0] })
  assert.deepEqual(tensorSpecs(model, "run")?.outputs, [
    { name: "output_label", dtype: "int64", shape: [null] },
    { name: "output_probability", dtype: "float32", shape: [null, 3] },
  ])
  const session = await loadOnnx(join(home, "models", "iris", "v1", "saved_model.onnx"))
  const { output_probability: probability } = await session.run({ X: floats([[5.9, 3, 5.1, 1.8]]) })
  assert.deepEqual(probability?.dims, [1, 3])
})

test("external data comes along, and the stored model runs", async (t) => {
  const { home, options } = await place(t)
  await importModel({ ...options, path: join(MODELS, "external_data", "model.onnx") })
  const dir = join(home, "models", "iris", "v1")
  assert.deepEqual((await readdir(dir)).toSorted(), ["model.yaml", "saved_model.onnx", "weights.bin"])
  assert.deepEqual(
    await readFile(join(dir, "weights.bin")),
    await readFile(join(MODELS, "external_data", "weights.bin")),
  )
  const session = await loadOnnx(join(dir, "saved_model.onnx"))
  const { Y } = await session.run({ X: floats([[1, 2, 3, 4]]) })
  assert.deepEqual(Y?.dims, [1, 3])
})

test("external data outside the model's folder, or no plain file, is refused by name", async (t) => {
  const { home, options } = await place(t)
  const folder = join(await tempFolder(t), "model")
  await cp(join(MODELS, "external_data"), folder, { recursive: true })
  const weights = join(folder, "weights.bin")
  const path = join(folder, "model.onnx")
  const outside = join(folder, "..", "outside.bin")
  await cp(weights, outside)
  const expect = async (reason: RegExp, model = path): Promise<void> => {
    const error = await refused(importModel({ ...options, path: model }))
    assert.match(error.message, reason)
    assert(error.message.startsWith(model))
    assert.deepEqual(await treeOf(home), {})
  }
  await expect(
    /"\.\.\/x" of tensor "W" is refused: the path leaves the model's folder by `\.\.`/,
    join(MODELS, "external_escape_dotdot.onnx"),
  )
  await expect(
    /"\/etc\/passwd" of tensor "W" is refused: the path is absolute/,
    join(MODELS, "external_escape_absolute.onnx"),
  )
  await truncate(weights, 40)
  await expect(/ends at byte 48 of a file of 40 bytes/)
  await rm(weights)
  await expect(/"weights\.bin" of tensor "W" is refused: there is no such file/)
  await symlink(outside, weights)
  await expect(/it is a link/)
  await rm(weights)
  await mkdir(weights)
  await expect(/it is not a plain file/)
  await rm(weights, { recursive: true })
  const bytes = await readFile(path)
  const relocate = async (location: string): Promise<void> => {
    assert.equal(location.length, "weights.bin".length)
    await writeFile(path, Buffer.from(bytes.toString("latin1").replace("weights.bin", location), "latin1"))
  }
  await mkdir(join(folder, "..", "far"))
  await cp(outside, join(folder, "..", "far", "weight"))
  await symlink(join(folder, "..", "far"), join(folder, "dirs"))
  for (const [location, reason] of [
    ["dirs/weight", /a link leads it out of the model's folder/],
    ["a//b/c.bin.", /the path is not a plain one/],
    ["a\\b\\weight", /the path is not a plain one/],
    ["a\0b/weight.", /the path is not a plain one/],
    ["C:/weights.", /the path is absolute/],
    ["a/../../etc", /by `\.\.`/],
    ["./././././.", /the name is taken|not a plain/],
    [".model.yaml", /no such file/],
    ["/model.yaml", /absolute/],
    ["/////////..", /absolute/],
  ] as const) {
    await relocate(location.slice(0, 11).padEnd(11, "x"))
    await expect(reason)
  }
})

test("external data may lie in a folder of its own", async (t) => {
  const { home, options } = await place(t)
  const folder = await tempFolder(t)
  const bytes = await readFile(join(MODELS, "external_data", "model.onnx"))
  await writeFile(
    join(folder, "m.onnx"),
    Buffer.from(bytes.toString("latin1").replace("weights.bin", "sub/dir/w.b"), "latin1"),
  )
  await mkdir(join(folder, "sub", "dir"), { recursive: true })
  await cp(join(MODELS, "external_data", "weights.bin"), join(folder, "sub", "dir", "w.b"))
  await importModel({ ...options, path: join(folder, "m.onnx") })
  assert((await readdir(join(home, "models", "iris", "v1", "sub", "dir"))).includes("w.b"))
})

test("what cannot be imported is named with the reason, and the store stays as it was", async (t) => {
  const { home, options } = await place(t)
  const folder = await tempFolder(t)
  await mkdir(join(folder, "empty"))
  await mkdir(join(folder, "full"))
  await cp(join(MODELS, "row_id.onnx"), join(folder, "full", "net.onnx"))
  const rows = [
    [join(folder, "none.onnx"), /none\.onnx: no such file/, /^Check the path/],
    [join(folder, "full", "net.onnx", "x"), /no such file/, /^Check the path/],
    [join(folder, "empty"), /empty is a folder without a model: it has no model\.yaml/, /\.onnx file/],
    [join(folder, "full"), /full is a folder without a model/, /net\.onnx/],
    [join(MODELS, "text.onnx"), /text\.onnx is not an ONNX model/, /text file/],
    [join(MODELS, "truncated.onnx"), /truncated\.onnx .*cut off/, /completely/],
    [
      join(MODELS, "unknown_op.onnx"),
      /unknown_op\.onnx cannot be loaded by ONNX Runtime: This is an invalid model\. .*NoSuchOp/,
      /^Mend the graph/,
    ],
    ["/dev/null", /neither a file nor a folder/, undefined],
  ] as const
  for (const filled of [false, true]) {
    if (filled) await options.store.add(parseTag("iris:v0"), writesModel(parseTag("iris:v0")))
    const before = await treeOf(home)
    for (const [path, reason, hint] of rows) {
      const error = await refused(importModel({ ...options, path }))
      assert.match(error.message, reason)
      assert(error.message.startsWith(path.replace(/\/x$/, "/x")), error.message)
      assert(!error.message.includes(home), "the temporary place is none of the user's business")
      if (hint !== undefined) assert.match(error.hint ?? "", hint)
      assert.deepEqual(await treeOf(home), before)
    }
  }
})

test("an existing tag is refused", async (t) => {
  const { options } = await place(t)
  const path = join(MODELS, "row_id.onnx")
  await importModel({ ...options, path })
  await refused(importModel({ ...options, path }), "STORE_EXISTS")
})

// --------------------------------------------------------------------------------------------------- model folders

const BENTOML_MODELS = join(FIXTURES, "bentoml-home", "models")

async function bentomlModel(name: string): Promise<string> {
  const [version = ""] = (await readdir(join(BENTOML_MODELS, name))).filter((entry) => entry !== "latest")
  return join(BENTOML_MODELS, name, version)
}

test("a model folder of BentoML keeps its tag, and its files but for ZipMap", async (t) => {
  const { options } = await place(t)
  const { name: _name, version: _version, ...bare } = options
  const path = await bentomlModel("iris_sklearn")
  const { model, notes } = await importModel({ ...bare, path })
  const written = parseModelYaml(await readFile(join(path, "model.yaml"), "utf8"), "x")
  assert.equal(formatTag(model.tag), formatTag(written.tag))
  assert.equal(model.creationTime, written.creationTime)
  assert.deepEqual(model.labels, written.labels)
  assert.match(notes.join(), /ZipMap/)
  const { class_labels: labels, ...metadata } = model.metadata
  assert.deepEqual(labels, { output_probability: [0, 1, 2] })
  assert.deepEqual(metadata, written.metadata)
  assert.deepEqual(model.signatures, written.signatures)
  assert.equal((await checkModel(join(options.store.dir(model.tag), "saved_model.onnx"))).ok, true)
})

test("a model folder with nothing to change is taken byte for byte", async (t) => {
  const { options } = await place(t)
  const { name: _name, version: _version, ...bare } = options
  const folder = join(await tempFolder(t), "m")
  await mkdir(join(folder, "assets", "none"), { recursive: true })
  await writeFile(join(folder, "assets", "words.txt"), "words")
  await writeFile(join(folder, "assets", "empty"), "")
  await cp(join(MODELS, "row_id.onnx"), join(folder, "saved_model.onnx"))
  const source = await importModel({
    ...options,
    path: join(MODELS, "row_id.onnx"),
    store: openModelStore(join(await tempFolder(t), "h")),
  })
  await writeFile(join(folder, "model.yaml"), `${formatModelYaml(source.model)}key_of_tomorrow: 1\n`)
  const { model } = await importModel({ ...bare, path: folder })
  assert.deepEqual(await treeOf(options.store.dir(model.tag)), await treeOf(folder))
  const renamed = await importModel({ ...bare, path: folder, name: "other", labels: { a: "b" } })
  assert.equal(formatTag(renamed.model.tag), "other:v1")
  assert.deepEqual(renamed.model.labels, { a: "b" })
  const { "model.yaml": _yaml, ...files } = await treeOf(options.store.dir(renamed.model.tag))
  const { "model.yaml": _other, ...others } = await treeOf(folder)
  assert.deepEqual(files, others)
})

test("a folder that is no ONNX model is kept as it is, with a note", async (t) => {
  const { options } = await place(t)
  const { name: _name, version: _version, ...bare } = options
  const path = await bentomlModel("tokenizer")
  const { model, notes } = await importModel({ ...bare, path })
  assert.match(notes.join(), /not served/)
  assert.deepEqual(await treeOf(options.store.dir(model.tag)), await treeOf(path))
})

test("a model folder holds plain files and nothing else, whatever stands where", async (t) => {
  const { home, options } = await place(t)
  const whole = await bentomlModel("tokenizer")
  const manifest = await readFile(join(whole, "model.yaml"), "utf8")
  const bomb = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
  for (const letter of "bcdefghij") {
    const before = String.fromCharCode(letter.charCodeAt(0) - 1)
    bomb.push(`${letter}: &${letter} [${Array(10).fill(`*${before}`).join(", ")}]`)
  }
  const mkfifo = (path: string): void => void execFileSync("mkfifo", [path])
  const yaml = (text: string) => (folder: string) => writeFile(join(folder, "model.yaml"), text)
  const cases: readonly (readonly [
    what: string,
    spoil: (folder: string) => unknown,
    reason: RegExp,
    code?: "MANIFEST_INVALID",
  ])[] = [
    ["a link to a file", (folder) => symlink("/etc/passwd", join(folder, "link")), /link is a link/],
    ["a link to a folder", (folder) => symlink("/etc", join(folder, "etc")), /etc is a link/],
    ["a link inside", (folder) => symlink("model.yaml", join(folder, "inside")), /inside is a link/],
    ["a link in a loop", (folder) => symlink(".", join(folder, "loop")), /loop is a link/],
    [
      "a link deep down",
      async (folder) => {
        await mkdir(join(folder, "a/b"), { recursive: true })
        await symlink("../../..", join(folder, "a/b/up"))
      },
      /a\/b\/up is a link/,
    ],
    ["a named pipe", (folder) => mkfifo(join(folder, "pipe")), /pipe is no plain file/],
    [
      "a socket",
      async (folder) => {
        const server = createServer().listen(join(folder, "socket"))
        await once(server, "listening")
        t.after(() => server.close())
      },
      /socket is no plain file/,
    ],
    [
      "a model.yaml that is a link",
      async (folder) => {
        await rename(join(folder, "model.yaml"), join(folder, "other.yaml"))
        await symlink("other.yaml", join(folder, "model.yaml"))
      },
      /model\.yaml is a link/,
    ],
    [
      "a model.yaml that is a named pipe",
      async (folder) => {
        await rm(join(folder, "model.yaml"))
        mkfifo(join(folder, "model.yaml"))
      },
      /model\.yaml is no plain file/,
    ],
    [
      "a model.yaml that is a folder",
      async (folder) => {
        await rm(join(folder, "model.yaml"))
        await mkdir(join(folder, "model.yaml"))
      },
      /model\.yaml is no plain file/,
    ],
    [
      "a saved model that is a link",
      (folder) => symlink("/dev/zero", join(folder, "saved_model.onnx")),
      /saved_model\.onnx is a link/,
    ],
    [
      "a name that is no text",
      (folder) => writeFile(Buffer.concat([Buffer.from(`${folder}/b`), Buffer.of(0xff)]), ""),
      /is not UTF-8/,
    ],
    ["broken YAML", yaml("name: a\nversion: [\n"), /model\.yaml:3/, "MANIFEST_INVALID"],
    [
      "a tag of Python",
      yaml(`${manifest}\nx: !!python/object/apply:os.system ["touch /pwned"]\n`),
      /model\.yaml:\d+:\d+: .*python\/object\/apply:os\.system is refused/,
      "MANIFEST_INVALID",
    ],
    [
      "a tag of Python in a key",
      yaml(manifest.replace("labels:", "!!python/name:os.system labels:")),
      /model\.yaml:\d+:/,
      "MANIFEST_INVALID",
    ],
    [
      "__proto__",
      yaml(manifest.replace("options: {}", "options: {__proto__: {x: y}}")),
      /model\.yaml:\d+:.*__proto__ is refused/,
      "MANIFEST_INVALID",
    ],
    ["an alias bomb", yaml(bomb.join("\n")), /model\.yaml:\d+:.*100000 values/, "MANIFEST_INVALID"],
    [
      "a name with a way up",
      yaml(manifest.replace(/^name: .*/m, "name: ../../x")),
      /name/,
      "MANIFEST_INVALID",
    ],
    [
      "a version with a way up",
      yaml(manifest.replace(/^version: .*/m, "version: ../x")),
      /version/,
      "MANIFEST_INVALID",
    ],
  ]
  for (const [what, spoil, reason, code] of cases) {
    const folder = join(await tempFolder(t), "m")
    await cp(whole, folder, { recursive: true })
    await spoil(folder)
    const { name: _name, version: _version, ...own } = options
    assert.match((await refused(importModel({ ...own, path: folder }), code)).message, reason, what)
    assert.deepEqual(await treeOf(home), {}, what)
  }
})

test(
  "a device in a model folder is refused",
  { skip: process.getuid?.() !== 0 && "only root makes devices" },
  async (t) => {
    const { home, options } = await place(t)
    const folder = join(await tempFolder(t), "m")
    await cp(await bentomlModel("tokenizer"), folder, { recursive: true })
    try {
      execFileSync("mknod", [join(folder, "zero"), "c", "1", "5"], { stdio: "pipe" })
    } catch {
      return t.skip("this container may not make devices")
    }
    assert.match((await refused(importModel({ ...options, path: folder }))).message, /zero is no plain file/)
    assert.deepEqual(await treeOf(home), {})
  },
)

// ------------------------------------------------------------------------------------------------------ interruption

test("an import is interrupted within a second and leaves nothing, wherever it is", async (t) => {
  const { home, options } = await place(t)
  const folder = await tempFolder(t)
  const bytes = await readFile(join(MODELS, "external_data", "model.onnx"))
  await writeFile(join(folder, "m.onnx"), bytes)
  const weights = await open(join(folder, "weights.bin"), "w")
  await weights.truncate(3 * 2 ** 30) // sparse: long to copy, quick to make
  await weights.close()
  const never = (): Promise<never> => new Promise(() => undefined)
  for (const [path, check, afterMs] of [
    [join(folder, "m.onnx"), checkModel, 40],
    [join(MODELS, "row_id.onnx"), never, 40],
    [join(MODELS, "row_id.onnx"), never, 0],
  ] as const) {
    await assertWithin(1000 + afterMs, async () => {
      const signal = AbortSignal.timeout(afterMs)
      const start = performance.now()
      await refused(importModel({ ...options, path, check, signal }), "CANCELLED")
      const tookMs = performance.now() - start
      assert.deepEqual(await treeOf(home), {})
      return tookMs
    })
  }
  const aborted = AbortSignal.abort()
  await refused(importModel({ ...options, path: join(MODELS, "row_id.onnx"), signal: aborted }), "CANCELLED")
})
