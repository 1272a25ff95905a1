import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { writeFile } from "node:fs/promises"
import { join } from "node:path"
import { test } from "node:test"
import fc from "fast-check"
import { BentoError } from "../../store/errors.ts"
import { type OnnxInfo, parseOnnx, readOnnx, readOnnxOrigin, removeZipMaps } from "../../store/onnx.ts"
import { writeField, writeInt } from "../../store/protobuf.ts"
import { floats, loadOnnx } from "./ort.ts"
import { FIXTURES, tempFolder } from "./support.ts"

const MODELS = join(FIXTURES, "models")
const EXAMPLES = join(FIXTURES, "..", "..", "examples")
const IRIS = readFileSync(join(EXAMPLES, "iris", "iris.onnx"))

const message = (...parts: readonly Uint8Array[]): Buffer => Buffer.concat(parts)
const text = (number: number, value: string): Buffer => writeField(number, Buffer.from(value))

/** Just enough of the messages of onnx.proto to write odd models. */
const make = {
  model: (graph: Uint8Array, ...more: Uint8Array[]) =>
    message(
      writeInt(1, 8),
      writeField(7, graph),
      writeField(8, message(text(1, ""), writeInt(2, 17))),
      ...more,
    ),
  node: (op: string, inputs: string[], outputs: string[], ...more: Uint8Array[]) =>
    writeField(
      1,
      message(
        ...inputs.map((name) => text(1, name)),
        ...outputs.map((name) => text(2, name)),
        text(4, op),
        ...more,
      ),
    ),
  attribute: (name: string, ...more: Uint8Array[]) => writeField(5, message(text(1, name), ...more)),
  external: (...pairs: [key: string, value: string][]) =>
    message(
      text(8, "W"),
      writeInt(14, 1),
      ...pairs.map(([key, value]) => writeField(13, message(text(1, key), text(2, value)))),
    ),
  value: (number: number, name: string, ...dims: (number | string | null)[]) =>
    writeField(
      number,
      message(
        text(1, name),
        writeField(2, writeField(1, message(writeInt(1, 1), writeField(2, message(...dims.map(dim)))))),
      ),
    ),
}

function dim(size: number | string | null): Buffer {
  return writeField(
    1,
    size === null ? Buffer.alloc(0) : typeof size === "string" ? text(2, size) : writeInt(1, size),
  )
}

function zipMap(input: string, output: string, labels: readonly number[] = [0, 1]): Buffer {
  const ints = make.attribute("classlabels_int64s", ...labels.map((label) => writeInt(8, label)))
  return make.node("ZipMap", [input], [output], text(7, "ai.onnx.ml"), ints)
}

function refusal(bytes: Uint8Array): BentoError {
  try {
    parseOnnx(bytes, "some.onnx")
  } catch (error) {
    assert(error instanceof BentoError, String(error))
    assert.equal(error.code, "IMPORT_FAILED")
    assert(error.message.startsWith("some.onnx"))
    return error
  }
  assert.fail("it was read")
}

test("a model says what goes in and what comes out", async () => {
  const { info } = await readOnnx(join(EXAMPLES, "iris", "iris.onnx"))
  assert.match(info.producer, /^skl2onnx /)
  assert.deepEqual(info.inputs, [{ name: "X", type: { kind: "tensor", elemType: 1, shape: [null, 4] } }])
  assert.deepEqual(
    info.outputs.map((output) => [output.name, output.type.kind]),
    [
      ["output_label", "tensor"],
      ["output_probability", "sequence"],
    ],
  )
  assert.deepEqual(info.zipMaps, [{ output: "output_probability", labels: [0, 1, 2] }])
  assert.deepEqual(info.customDomains, [])
})

test("initializers are no inputs", async () => {
  const { info } = await readOnnx(join(MODELS, "initializer_as_input.onnx"))
  assert.equal(info.irVersion, 3)
  assert.deepEqual(info.opsets, { "ai.onnx": 8 })
  assert.deepEqual(
    info.inputs.map((input) => input.name),
    ["X"],
  )
})

test("all element types and dimensions are told", async () => {
  const { info } = await readOnnx(join(MODELS, "dtypes.onnx"))
  assert.deepEqual(
    info.inputs
      .map((input) => (input.type.kind === "tensor" ? input.type.elemType : null))
      .toSorted((a, b) => Number(a) - Number(b)),
    Array.from({ length: 13 }, (_, i) => i + 1),
  )
  const graph = message(
    make.value(11, "a", "N", null, 3, 0),
    make.value(12, "b"),
    writeField(12, text(1, "untyped")),
  )
  const { inputs, outputs } = parseOnnx(make.model(graph), "x")
  assert.deepEqual(inputs[0]?.type, { kind: "tensor", elemType: 1, shape: ["N", null, 3, 0] })
  assert.deepEqual(outputs[0]?.type, { kind: "tensor", elemType: 1, shape: [] })
  assert.deepEqual(outputs[1]?.type, { kind: "other" })
})

test("external data is found wherever a tensor can be", () => {
  const at = (place: string): Buffer =>
    make.external(["location", `${place}.bin`], ["offset", "4096"], ["length", "8"])
  const sub = writeField(
    6,
    message(
      writeField(5, at("subgraph")),
      make.node("If", [], [], make.attribute("b", writeField(11, writeField(5, at("deeper"))))),
    ),
  )
  const graph = message(
    writeField(5, at("initializer")),
    writeField(15, message(writeField(1, at("sparse_values")), writeField(2, at("sparse_indices")))),
    make.node("Constant", [], ["c"], make.attribute("value", writeField(5, at("attribute")))),
    make.node(
      "Odd",
      [],
      ["d"],
      make.attribute(
        "values",
        writeField(10, at("attributes")),
        writeField(22, writeField(1, at("sparse_attribute"))),
      ),
    ),
    make.node("If", ["c"], ["e"], make.attribute("then_branch", sub)),
  )
  const training = writeField(
    20,
    message(writeField(1, writeField(5, at("training"))), writeField(2, writeField(5, at("algorithm")))),
  )
  const fn = message(
    text(1, "F"),
    text(10, "local"),
    writeField(7, message(text(4, "Constant"), make.attribute("value", writeField(5, at("function"))))),
    writeField(11, message(text(1, "d"), writeField(5, at("function_default")))),
  )
  const info = parseOnnx(make.model(graph, training, writeField(25, fn)), "x")
  assert.deepEqual(info.external.map((data) => data.location.replace(".bin", "")).toSorted(), [
    "algorithm",
    "attribute",
    "attributes",
    "deeper",
    "function",
    "function_default",
    "initializer",
    "sparse_attribute",
    "sparse_indices",
    "sparse_values",
    "subgraph",
    "training",
  ])
  assert.deepEqual(info.external[0], { tensor: "W", location: "initializer.bin", offset: 4096n, length: 8n })
})

test("external data with other keys, doubled keys or odd sizes is refused", () => {
  for (const [pairs, reason] of [
    [
      [
        ["location", "a"],
        ["basepath", "/etc"],
      ],
      /unknown key "basepath"/,
    ],
    [
      [
        ["location", "a"],
        ["__proto__", "x"],
      ],
      /unknown key "__proto__"/,
    ],
    [
      [
        ["location", "a"],
        ["location", "b"],
      ],
      /key "location" twice/,
    ],
    [[["offset", "0"]], /no location/],
    [
      [
        ["location", "a"],
        ["offset", "-1"],
      ],
      /offset "-1", which is no size/,
    ],
    [
      [
        ["location", "a"],
        ["length", "0x10"],
      ],
      /length "0x10", which is no size/,
    ],
    [
      [
        ["location", "a"],
        ["length", "9".repeat(40)],
      ],
      /is no size/,
    ],
  ] as const) {
    const error = refusal(
      make.model(
        writeField(5, make.external(...pairs.map(([key, value]): [string, string] => [key, value]))),
      ),
    )
    assert.match(error.message, reason)
  }
})

test("custom domains are those that nobody defines", () => {
  const fn = message(text(1, "F"), text(10, "local"))
  const nodes = ["", "ai.onnx.ml", "com.microsoft", "local", "my.ops"].map((domain) =>
    make.node("Op", [], [], text(7, domain)),
  )
  assert.deepEqual(parseOnnx(make.model(message(...nodes), writeField(25, fn)), "x").customDomains, [
    "my.ops",
  ])
})

test("what is no model is refused, and said what it looks like", () => {
  for (const [bytes, reason, hint] of [
    ["", /file is empty/, undefined],
    ["hello, this is no model\n", /not an ONNX model/, /text file/],
    ["version https://git-lfs.github.com/spec/v1\noid sha256:…", /not an ONNX model/, /git lfs pull/],
    ["\x10\x00\x00\x00ORTM\xff\xff\xff\xff", /not an ONNX model/, /\.ort/],
    [writeInt(1, 8), /holds no graph/, undefined],
    [message(writeField(7, ""), writeField(7, "")), /two graphs/, undefined],
    [IRIS.subarray(0, IRIS.length - 1), /cut off: .* bytes are announced and .* left/, /completely/],
    [Buffer.alloc(100, 0xff), /more than 10 bytes/, /completely/],
    [Buffer.from([0x0f]), /wire type 7/, /completely/],
    [Buffer.from([0x00, 0x00]), /no field has the number 0/, /completely/],
  ] as const) {
    const error = refusal(typeof bytes === "string" ? Buffer.from(bytes, "latin1") : bytes)
    assert.match(error.message, reason)
    if (hint !== undefined) assert.match(error.hint ?? "", hint)
  }
  assert.match(refusal(make.model(make.node("EPContext", [], []))).message, /EPContext/)
})

test("protobuf bombs end at once", () => {
  let graph: Buffer = Buffer.alloc(0)
  for (let depth = 0; depth < 2000; depth++)
    graph = make.node("If", [], [], make.attribute("b", writeField(6, graph)))
  assert.match(refusal(make.model(graph)).message, /nested deeper than 32/)
  let type: Buffer = Buffer.alloc(0)
  for (let depth = 0; depth < 2000; depth++) type = writeField(4, writeField(1, type))
  assert.match(
    refusal(make.model(writeField(11, message(text(1, "X"), writeField(2, type))))).message,
    /types are nested deeper/,
  )
  const wide = make.value(11, "X", ...Array.from({ length: 1000 }, () => 1))
  assert.match(refusal(make.model(wide)).message, /1000 dimensions/)
  const huge = Buffer.from([0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])
  const shaped = writeField(
    11,
    message(text(1, "X"), writeField(2, writeField(1, writeField(2, writeField(1, huge))))),
  )
  assert.match(refusal(make.model(shaped)).message, /dimension of 9223372036854775807 is no size/)
})

test("half a million nodes are read in linear time", () => {
  const one = make.node("Add", ["a", "b"], ["c"])
  const time = (nodes: number): number => {
    const bytes = make.model(Buffer.concat(Array.from({ length: nodes }, () => one)))
    const start = performance.now()
    parseOnnx(bytes, "x")
    return performance.now() - start
  }
  time(10_000)
  const [small, large] = [time(50_000), time(500_000)]
  assert(large < Math.max(small, 20) * 40, `${small} ms for 50 000 nodes, ${large} ms for 500 000`)
})

test("whatever is changed in a model, it is read or refused", () => {
  const seeds = [
    ...readdirSync(MODELS)
      .filter((name) => name.endsWith(".onnx"))
      .map((name) => readFileSync(join(MODELS, name))),
    readFileSync(join(MODELS, "external_data", "model.onnx")),
  ]
  const change = fc.record({
    at: fc.nat(),
    byte: fc.nat(255),
    kind: fc.constantFrom("set", "cut", "drop", "double", "insert"),
  })
  fc.assert(
    fc.property(
      fc.nat(seeds.length - 1),
      fc.array(change, { minLength: 1, maxLength: 6 }),
      (which, changes) => {
        let bytes: Buffer = seeds[which] ?? Buffer.alloc(0)
        for (const { at, byte, kind } of changes) bytes = mutate(bytes, at % (bytes.length + 1), byte, kind)
        for (const read of [() => parseOnnx(bytes, "x"), () => removeZipMaps(bytes)]) {
          try {
            read()
          } catch (error) {
            assert(error instanceof BentoError && error.code === "IMPORT_FAILED", String(error))
          }
        }
      },
    ),
    { numRuns: 5000 },
  )
})

function mutate(bytes: Buffer, at: number, byte: number, kind: string): Buffer {
  const [before, after] = [bytes.subarray(0, at), bytes.subarray(at)]
  switch (kind) {
    case "set":
      return Buffer.concat([before, Buffer.from([byte]), after.subarray(1)])
    case "cut":
      return before
    case "drop":
      return Buffer.concat([before, after.subarray(byte)])
    case "double":
      return Buffer.concat([before, after.subarray(0, byte), after])
    default:
      return Buffer.concat([before, Buffer.from([byte, byte]), after])
  }
}

// ------------------------------------------------------------------------------------------------------------- ZipMap

test("iris without its ZipMap answers as scikit-learn did, all 150 rows", async () => {
  const golden = JSON.parse(readFileSync(join(EXAMPLES, "iris", "golden.json"), "utf8")) as Golden
  const { bytes, removed } = removeZipMaps(IRIS)
  assert.deepEqual(removed, [{ output: "output_probability", labels: [0, 1, 2] }])
  const session = await loadOnnx(bytes)
  assert.deepEqual(session.outputNames, ["output_label", "output_probability"])
  const { output_label: label, output_probability: probability } = await session.run({
    X: floats(golden.inputs),
  })
  assert(label !== undefined && probability !== undefined)
  assert.deepEqual(probability.dims, [150, 3])
  assert.deepEqual(Array.from(label.data as BigInt64Array, Number), golden.labels)
  const expected = golden.probabilities.flat()
  const largest = Math.max(
    ...Array.from(probability.data as Float32Array, (value, i) => Math.abs(value - (expected[i] ?? NaN))),
  )
  assert(largest < 1e-6, `off by ${largest}`)
})

/** What train.py wrote; the file is ours. */
interface Golden {
  inputs: number[][]
  labels: number[]
  probabilities: number[][]
}

test("a ZipMap with text labels goes too", async () => {
  const model = readFileSync(join(MODELS, "zipmap_strings.onnx"))
  const tries = JSON.parse(readFileSync(join(MODELS, "expected.json"), "utf8")) as Record<string, Try[]>
  const [expected] = tries["zipmap_strings.onnx"] ?? []
  assert(expected !== undefined)
  const { bytes, removed } = removeZipMaps(model)
  assert.deepEqual(removed, [{ output: "output_probability", labels: expected.classes }])
  const session = await loadOnnx(bytes)
  const rows = Array.from({ length: expected.inputs.X.shape[0] ?? 0 }, (_, i) =>
    expected.inputs.X.data.slice(i * 4, i * 4 + 4),
  )
  const { output_label: label, output_probability: probability } = await session.run({ X: floats(rows) })
  assert.deepEqual(label?.data, expected.outputs.output_label.data)
  assert.deepEqual(Array.from(probability?.data as Float32Array), expected.outputs.output_probability.data)
})

/** What make.py wrote; the file is ours. */
interface Try {
  inputs: { X: { shape: number[]; data: number[] } }
  classes: string[]
  outputs: { output_label: { data: string[] }; output_probability: { data: number[] } }
}

test("without its ZipMap a model says so, and has none to take out again", () => {
  const { bytes } = removeZipMaps(IRIS)
  const info = parseOnnx(bytes, "x")
  assert.deepEqual(info.outputs[1], {
    name: "output_probability",
    type: { kind: "tensor", elemType: 1, shape: [null, 3] },
  })
  assert.deepEqual(info.zipMaps, [])
  assert.equal(removeZipMaps(bytes).bytes, bytes)
  assert.deepEqual(
    { ...info, outputs: [], zipMaps: [] },
    { ...parseOnnx(IRIS, "x"), outputs: [], zipMaps: [] },
  )
})

test("all bytes that are no ZipMap stay as they were", () => {
  const weights = writeField(
    5,
    message(text(8, "W"), writeField(9, Buffer.from("the weights, byte for byte"))),
  )
  const odd = message(Buffer.from([0xfd, 0x3e, 1, 2, 3, 4]), writeField(777, "a field of tomorrow"))
  const before = message(weights, make.node("Relu", ["X"], ["T"]), odd, make.value(11, "X", "rows", 2))
  const after = message(text(2, "name of the graph"), make.value(13, "T", "rows", 2))
  const bytes = make.model(
    message(before, zipMap("T", "Y"), after, writeField(12, message(text(1, "Y"), text(3, "doc")))),
    odd,
  )
  const result = removeZipMaps(bytes)
  const identity = make.node("Identity", ["T"], ["Y"])
  const typed = writeField(
    2,
    writeField(1, message(writeInt(1, 1), writeField(2, message(dim("rows"), dim(2))))),
  )
  assert.deepEqual(
    Buffer.from(result.bytes),
    make.model(
      message(before, identity, after, writeField(12, message(text(1, "Y"), text(3, "doc"), typed))),
      odd,
    ),
  )
})

test("only a ZipMap that feeds an output of the graph and nothing else is taken out", async () => {
  const outputs = make.value(12, "Y")
  const taken = (graph: Uint8Array): OnnxInfo["zipMaps"] => {
    const bytes = make.model(graph)
    const { removed, bytes: after } = removeZipMaps(bytes)
    assert.deepEqual(parseOnnx(bytes, "x").zipMaps, removed)
    if (removed.length === 0) assert.equal(after, bytes)
    return removed
  }
  const inSubgraph = make.node(
    "If",
    ["c"],
    ["d"],
    make.attribute("then_branch", writeField(6, make.node("Op", ["Y"], ["z"]))),
  )
  assert.equal(taken(message(zipMap("T", "Y"), outputs)).length, 1)
  assert.equal(taken(zipMap("T", "Y")).length, 0, "no output of the graph")
  assert.equal(
    taken(message(zipMap("T", "Y"), outputs, make.node("SequenceAt", ["Y", "i"], ["z"]))).length,
    0,
    "taken by a node",
  )
  assert.equal(taken(message(zipMap("T", "Y"), outputs, inSubgraph)).length, 0, "taken in a sub-graph")
  assert.equal(taken(message(zipMap("T", "Y", []), outputs)).length, 0, "no labels")
  assert.equal(
    taken(message(make.node("ZipMap", ["T"], ["Y"], text(7, "my.ops")), outputs)).length,
    0,
    "another domain",
  )
  assert.deepEqual(
    taken(message(zipMap("T", "Y", [5, 2 ** 40]), outputs, make.value(12, "Z"), zipMap("T", "Z", [7]))),
    [
      { output: "Y", labels: [5, 2 ** 40] },
      { output: "Z", labels: [7] },
    ],
  )
})

test("packed labels are labels too", () => {
  const packed = make.attribute(
    "classlabels_int64s",
    writeField(8, Buffer.from([1, 0x80, 1, ...Array<number>(9).fill(0xff), 1])),
  )
  const node = make.node("ZipMap", ["T"], ["Y"], text(7, "ai.onnx.ml"), packed)
  const { removed } = removeZipMaps(make.model(message(node, make.value(12, "Y"))))
  assert.deepEqual(removed, [{ output: "Y", labels: [1, 128, -1] }])
})

test("a graph of ai.onnx.ml alone gets the default operators for its Identity", async (t) => {
  const graph = message(
    text(2, "g"),
    make.node(
      "Normalizer",
      ["X"],
      ["T"],
      text(7, "ai.onnx.ml"),
      make.attribute("norm", writeField(4, "L1"), writeInt(20, 3)),
    ),
    make.node(
      "ZipMap",
      ["T"],
      ["Y"],
      text(7, "ai.onnx.ml"),
      make.attribute("classlabels_int64s", writeInt(8, 0), writeInt(8, 1), writeInt(20, 7)),
    ),
    make.value(11, "X", "N", 2),
    writeField(
      12,
      message(
        text(1, "Y"),
        writeField(
          2,
          writeField(
            4,
            writeField(
              1,
              writeField(5, message(writeInt(1, 7), writeField(2, writeField(1, writeInt(1, 1))))),
            ),
          ),
        ),
      ),
    ),
  )
  const bytes = message(
    writeInt(1, 8),
    writeField(7, graph),
    writeField(8, message(text(1, "ai.onnx.ml"), writeInt(2, 1))),
  )
  const file = join(await tempFolder(t), "model.onnx")
  await writeFile(file, removeZipMaps(bytes).bytes)
  const session = await loadOnnx(file)
  const { Y } = await session.run({ X: floats([[1, 3]]) })
  assert.deepEqual(Array.from(Y?.data as Float32Array), [0.25, 0.75])
})

test("who wrote a file is read without its graph, and is what reading all of it says", async () => {
  let read = 0
  for (const name of readdirSync(MODELS).filter((file) => file.endsWith(".onnx"))) {
    const whole = await readOnnx(join(MODELS, name)).catch(() => null)
    if (whole === null) continue // one that is broken on purpose
    const { producer, opsets } = whole.info
    assert.deepEqual(await readOnnxOrigin(join(MODELS, name)), { producer, opsets }, name)
    read += 1
  }
  assert.ok(read > 3)
})

test("what is no ONNX file, or is cut off, was written by nobody", async (t) => {
  const path = join(await tempFolder(t), "x.onnx")
  for (const bytes of ["model of v1", IRIS.subarray(0, IRIS.length - 7), Buffer.alloc(20, 0xff)]) {
    await writeFile(path, bytes)
    assert.equal(await readOnnxOrigin(path), null)
  }
})
