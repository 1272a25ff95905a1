import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { test } from "node:test"
import fc from "fast-check"
import { IssueError } from "../../store/errors.ts"
import {
  dtypeOf,
  formatCreationTime,
  formatModelYaml,
  microsecondsOf,
  type Model,
  parseModelYaml,
  tensorSpecs,
} from "../../store/model.ts"
import { formatOnnxValue } from "../../store/onnx.ts"
import { YamlMap, YamlScalar } from "../../store/pyyaml.ts"
import { aModel, FIXTURES } from "./support.ts"

const GOLDEN = join(FIXTURES, "model-yaml")
const names = readdirSync(GOLDEN).filter((name) => name.endsWith(".yaml"))

function issuesOf(text: string): string[] {
  try {
    parseModelYaml(text, "model.yaml")
  } catch (error) {
    assert(error instanceof IssueError, String(error))
    assert.equal(error.code, "MANIFEST_INVALID")
    return error.issues.map((issue) => `${issue.line}: ${issue.field ?? ""}: ${issue.message}`)
  }
  assert.fail("it was read")
}

test("model.yaml as BentoML wrote it is read and written again byte for byte", () => {
  assert(names.length >= 10)
  for (const name of names) {
    const text = readFileSync(join(GOLDEN, name), "utf8")
    assert.equal(formatModelYaml(parseModelYaml(text, name)), text, name)
  }
})

test("the same content gives the bytes that BentoML gives", () => {
  const cases: unknown = JSON.parse(readFileSync(join(GOLDEN, "cases.json"), "utf8"))
  assert(isRecord(cases))
  for (const [name, content] of Object.entries(cases)) {
    const text = readFileSync(join(GOLDEN, `${name}.yaml`), "utf8")
    assert.equal(formatModelYaml(modelOf(content, parseModelYaml(text, name))), text, name)
  }
})

/** A model made of the JSON of cases.json; labels and metadata are built up anew, not taken from the file. */
function modelOf(content: unknown, read: Model): Model {
  assert(isRecord(content))
  const metadata = revive(content["metadata"])
  const labels = revive(content["labels"])
  const options = revive(content["options"])
  assert(isRecord(labels) && isRecord(options))
  return {
    ...read,
    labels: Object.fromEntries(Object.entries(labels).map(([key, value]) => [key, String(value)])),
    options,
    // Number keys do not fit the type: only a file that was read has them.
    metadata: isRecord(metadata) ? metadata : read.metadata,
  }
}

function revive(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(revive)
  if (!isRecord(value)) return value
  const [[marker, inner] = ["", null]] = Object.entries(value)
  if (marker === "$int") return BigInt(String(inner))
  if (marker === "$bytes") return new Uint8Array(Buffer.from(String(inner), "base64"))
  if (marker === "$date" || marker === "$datetime") {
    // BentoML's own dump turns datetimes into ISO text, dates stay dates.
    return marker === "$date" ? new YamlScalar("timestamp", String(inner)) : String(inner).replace(" ", "T")
  }
  if (marker === "$float") {
    const number = Number(String(inner).replace("inf", "Infinity").replace("nan", "NaN"))
    return Number.isInteger(number) ? new YamlScalar("float", floatText(String(inner))) : number
  }
  if (marker === "$map") {
    assert(Array.isArray(inner))
    return new YamlMap(inner.map((pair: unknown[]) => [revive(pair[0]), revive(pair[1])]))
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, revive(item)]))
}

/** PyYAML's rule for the text of Python's repr. */
function floatText(repr: string): string {
  return repr.includes(".") || !repr.includes("e") ? repr : repr.replace("e", ".0e")
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Map)
}

test("a file holds what its model says", () => {
  const model = parseModelYaml(readFileSync(join(GOLDEN, "signatures.yaml"), "utf8"), "signatures.yaml")
  assert.deepEqual(model.tag, { name: "golden", version: "u2swufhfec6rgax4" })
  assert.equal(model.module, "bentoml.onnx")
  assert.deepEqual(model.context, {
    frameworkName: "onnx",
    frameworkVersions: { onnx: "1.16.0", onnxruntime: "1.18.1" },
    bentomlVersion: "1.4.38",
    pythonVersion: "3.11.7",
  })
  assert.deepEqual(model.signatures["run"], { batchable: true, batchDim: [0, 1] })
  assert.deepEqual(model.signatures["encode"], { batchable: true, batchDim: [1, 1] })
  assert.deepEqual(model.signatures["not_batched"], { batchable: false, batchDim: [0, 0] })
})

test("what is missing has BentoML's defaults, and unknown keys are passed over", () => {
  const model = parseModelYaml(
    "name: iris\nversion: v1\nnew_key: [1]\nbentoml_version: 1.0.0\ncontext:\n  pip_dependencies: [a]\n" +
      "  framework_versions: {a: b}\nsignatures:\n  run: {batchable: true, batch_dim: 1, other: 2}\n" +
      "creation_time: 2024-01-02T03:04:05+00:00\nlabels: {a: 1, b: yes, c: 1.50}\n",
    "model.yaml",
  )
  assert.deepEqual(model, {
    tag: { name: "iris", version: "v1" },
    module: "",
    labels: { a: "1", b: "True", c: "1.5" },
    options: {},
    metadata: {},
    context: { frameworkName: "", frameworkVersions: {}, bentomlVersion: "", pythonVersion: "" },
    signatures: { run: { batchable: true, batchDim: [1, 1] } },
    apiVersion: "v1",
    creationTime: "2024-01-02T03:04:05+00:00",
  })
})

test("every problem is told with its line", () => {
  assert.deepEqual(issuesOf(""), ["1: : is empty"])
  assert.deepEqual(issuesOf("- a\n"), ["1: : is not a map"])
  assert.deepEqual(
    issuesOf(
      "name: Bad Name\nlabels: [1]\nsignatures:\n  run:\n    batchable: maybe\n    batch_dim: [1, 2, 3]\nmodule: 5\ncreation_time: soon\n",
    ),
    [
      '1: name: "Bad Name" is not a name: it holds " "',
      "1: version: is missing",
      "2: labels: must be a map, is a list",
      "5: signatures.run.batchable: must be true or false, is maybe (quote it)",
      "6: signatures.run.batch_dim: must be an axis, or a list of two: of the inputs, of the outputs",
      "7: module: must be text, is 5 (quote it)",
      '8: creation_time: must be an ISO 8601 time, is "soon"',
    ],
  )
})

test("labels and metadata with number keys are views of what stands in the file", () => {
  const text = readFileSync(join(GOLDEN, "metadata_number_keys.yaml"), "utf8")
  const model = parseModelYaml(text, "x")
  assert.equal(model.metadata["1"], "one")
  assert.equal(
    formatModelYaml({ ...model, tag: { name: "other", version: "v2" } }),
    text.replace("golden", "other").replace("u2swufhfec6rgax4", "v2"),
  )
})

test("creation times are ordered to the microsecond, whatever their offset", () => {
  const times = [
    "2024-01-01T00:00:00.000001+00:00",
    "2024-01-01T02:00:00.000002+02:00",
    "2024-01-01 00:00:00.1",
    "2024-01-01T00:00:01Z",
    "2023-12-31T23:30:02-0030",
  ]
  assert.deepEqual(
    times.toSorted((a, b) => microsecondsOf(a) - microsecondsOf(b)),
    times,
  )
  for (const bad of ["", "soon", "2024", "2024-13-01T00:00:00", "2024-01-01"])
    assert(Number.isNaN(microsecondsOf(bad)), bad)
  fc.assert(
    fc.property(fc.date({ min: new Date(0), max: new Date(4e12), noInvalidDate: true }), (date) => {
      const text = formatCreationTime(date)
      assert.match(text, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$/)
      assert.equal(microsecondsOf(text), date.getTime() * 1000)
    }),
  )
})

test("the specs of tensors are those in the options, both ways", () => {
  const specs = [
    { name: "X", dtype: "float32", shape: [null, "N", 4] },
    { name: "flag", dtype: "bool", shape: [] },
  ]
  const written = [
    formatOnnxValue({ name: "X", type: { kind: "tensor", elemType: 1, shape: [null, "N", 4] } }),
    formatOnnxValue({ name: "flag", type: { kind: "tensor", elemType: 9, shape: [] } }),
  ]
  const options = { input_specs: { run: written }, output_specs: { run: written } }
  const model = parseModelYaml(formatModelYaml({ ...aModel({ name: "a", version: "b" }), options }), "x")
  assert.deepEqual(tensorSpecs(model, "run"), { inputs: specs, outputs: specs })
  assert.equal(tensorSpecs(model, "other"), null)
  assert.equal(tensorSpecs(aModel({ name: "a", version: "b" }), "run"), null)
  assert.deepEqual(tensorSpecs({ options: { input_specs: { run: [] }, output_specs: { run: [] } } }, "run"), {
    inputs: [],
    outputs: [],
  })
})

test("a spec that cannot be checked against is none, and outputs that are no tensors are left out", () => {
  const spec = formatOnnxValue({ name: "X", type: { kind: "tensor", elemType: 1, shape: [] } })
  const bfloat16 = { name: "X", type: { tensorType: { elemType: 16, shape: {} } } }
  const noRank = { name: "X", type: { tensorType: { elemType: 1 } } }
  const map = { name: "Y", type: { sequenceType: { elemType: { mapType: { keyType: 7 } } } } }
  const of = (input: unknown, output: unknown): unknown =>
    tensorSpecs({ options: { input_specs: { run: [input] }, output_specs: { run: [output] } } }, "run")
  for (const odd of [bfloat16, noRank, null, 1, { name: "X" }]) assert.equal(of(odd, spec), null)
  assert.deepEqual(of(spec, map), { inputs: [{ name: "X", dtype: "float32", shape: [] }], outputs: [] })
})

test("every dtype has an element type of ONNX", () => {
  const dtypes = Array.from({ length: 13 }, (_, index) => dtypeOf(index + 1))
  assert.equal(new Set(dtypes).size, 13)
  assert(!dtypes.includes(null))
  assert.equal(dtypeOf(14), null)
  assert.equal(dtypeOf(0), null)
})
