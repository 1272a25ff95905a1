import assert from "node:assert/strict"
import { describe, test } from "node:test"
import fc from "fast-check"
import {
  type Example,
  Problems,
  compareOutputs,
  describeSignature,
  formatExamples,
  readExamples,
  resolveExamples,
} from "../../runtime/examples.ts"
import type { SignatureSpec } from "../../runtime/runner.ts"
import { type DType, type Tensor, type Tensors, makeTensor } from "../../runtime/tensor.ts"
import { fromNested } from "../../runtime/tensor-json.ts"
import { formatIssue } from "../../store/errors.ts"

const RUN: SignatureSpec = {
  inputs: [{ name: "X", dtype: "float32", shape: ["N", 2] }],
  outputs: [
    { name: "label", dtype: "int64", shape: ["N"] },
    { name: "scores", dtype: "float32", shape: ["N", 3] },
  ],
  batchable: true,
  batchDim: [0, 0],
}

/** What comes of a text, and everything that is wrong with it. */
function read(
  value: unknown,
  {
    signatures = { run: RUN },
    record = false,
  }: { signatures?: Record<string, SignatureSpec>; record?: boolean } = {},
): { examples: Example[]; problems: string[] } {
  const problems = new Problems("e.json")
  const text = typeof value === "string" ? value : JSON.stringify(value)
  const written = readExamples(Buffer.from(text), problems, record)
  const examples = resolveExamples(written?.examples ?? [], signatures, problems)
  return { examples, problems: problems.issues.map(formatIssue) }
}

describe("a file of examples", () => {
  const one = { inputs: { X: [[1, 2]] }, outputs: { label: [3] } }

  for (const [what, value] of [
    ["a set", { examples: [one] }],
    ["a list", [one]],
    ["one example", one],
  ] as const) {
    test(`is ${what}`, () => {
      const { examples, problems } = read(value)
      assert.deepEqual(problems, [])
      assert.deepEqual(examples, [
        {
          name: "1",
          signature: "run",
          inputs: { X: fromNested("float32", [[1, 2]]) },
          outputs: { label: fromNested("int64", [3]) },
          tolerance: {},
        },
      ])
    })
  }

  for (const [what, body] of [
    ["an object by name", { X: [[1, 2]] }],
    ["the array alone", [[1, 2]]],
  ] as const) {
    test(`may be the body of a request where answers are recorded: ${what}`, () => {
      const { examples, problems } = read(body, { record: true })
      assert.deepEqual(problems, [])
      assert.deepEqual(examples[0]?.inputs, { X: fromNested("float32", [[1, 2]]) })
      assert.notDeepEqual(read(body).problems, [], "and nowhere else")
    })
  }

  test("keeps integers beyond 2^53, as digits and as text", () => {
    const { examples, problems } = read(
      '[{"inputs":{"X":[[1,2]]},"outputs":{"label":[9223372036854775807]}},{"inputs":{"X":[[1,2]]},"outputs":{"label":["-9223372036854775808"]}}]',
    )
    assert.deepEqual(problems, [])
    assert.deepEqual(
      examples.map(({ outputs }) => outputs?.["label"]?.data),
      [BigInt64Array.of(9223372036854775807n), BigInt64Array.of(-9223372036854775808n)],
    )
  })

  test("says all that is wrong with it at once, and where", () => {
    const { problems } = read(
      `{"version": 1, "files": {"a": "md5:0"}, "examples": [
        {"name": "a", "inputs": {"X": [[1, 2, 3]]}, "outputs": {"scores": [["x"]], "nope": [1]}},
        {"name": "a", "inputs": {"Y": [1]}, "output": {}, "outputs": {}},
        {"inputs": {"X": [[1, 1e400]]}, "outputs": {"label": [1.5]}, "tolerance": {"absolute": -1}},
        {"inputs": {"X": [[1, 2], [3]]}, "signature": "predict"},
        {"inputs": {"X": [[1, 2], [3]]}, "outputs": {"label": [18446744073709551616]}},
        {"name": "two\\nlines"}, 3]}`,
    )
    const expected = [
      "e.json: version: unknown key; known are onnxruntime, files, signatures, examples",
      "e.json: files: must be a map of paths to `sha256:…`",
      "e.json: examples[1].output: unknown key; known are name, signature, inputs, outputs, tolerance",
      'e.json: examples[2].tolerance: must be {"absolute": NUMBER, "relative": NUMBER}, or one of them, not negative',
      "e.json: examples[5].name: must be text of 1 to 100 characters, on one line",
      "e.json: examples[5].inputs: is missing",
      "e.json: examples[6]: must be a map with `inputs`",
      'e.json: examples[1].name: "a" is given twice (first in examples[0])',
      "e.json: examples[0].inputs.X: expected float32 of the shape [N, 2], received [1, 3]",
      "e.json: examples[0].outputs.scores: expected float32 numbers, received a string at [0][0]",
      'e.json: examples[0].outputs: there is no output "nope"; the outputs are "label", "scores"',
      'e.json: examples[1].inputs: there is no input "Y"; the inputs are "X"',
      'e.json: examples[1].inputs: input "X" is missing',
      "e.json: examples[1].outputs: names no output",
      "e.json: examples[2].inputs.X: 1e400 at [0][1] is out of the range of float32",
      "e.json: examples[2].outputs.label: expected int64 integers (-9223372036854775808 to 9223372036854775807), received 1.5 at [0]",
      'e.json: examples[3].signature: the model has no signature "predict"; it has run',
    ]
    assert.deepEqual(problems.slice(0, expected.length), expected)
    assert.match(
      problems.slice(expected.length).join("\n"),
      /examples\[4\]\.inputs\.X: the arrays are uneven/,
    )
  })

  for (const [text, problem] of [
    ["", /is not JSON/],
    ["{", /is not JSON/],
    ["3", /expected \{"examples"/],
    ["[]", /expected \{"examples"/],
    ['{"examples": []}', /examples: is empty/],
    ['{"examples": 3}', /expected \{"examples"/],
    ['{"__proto__": {"inputs": {}}, "examples": [{"inputs": {"X": [[1,2]]}}]}', /__proto__: unknown key/],
  ] as const) {
    test(`is refused: ${text}`, () => assert.match(read(text).problems.join("\n"), problem))
  }

  test("means the only signature of a model, else `run`, unless it names one", () => {
    const body = { inputs: { X: [[1, 2]] } }
    const signatureOf = (names: string[], more: object = {}): string | undefined =>
      read([{ ...body, ...more }], { signatures: Object.fromEntries(names.map((name) => [name, RUN])) })
        .examples[0]?.signature
    assert.equal(signatureOf(["encode"]), "encode")
    assert.equal(signatureOf(["encode", "run"]), "run")
    assert.equal(signatureOf(["encode", "decode"]), undefined)
    assert.equal(signatureOf(["encode", "decode"], { signature: "decode" }), "decode")
  })
})

const DTYPES: readonly DType[] = [
  "float16",
  "float32",
  "float64",
  "int8",
  "int64",
  "uint64",
  "bool",
  "string",
]

describe("what is written", () => {
  const value: Record<string, fc.Arbitrary<unknown>> = {
    float16: fc.constantFrom(0, 1.5, -65504, 6e-8, null),
    float32: fc.oneof(fc.float({ noNaN: true, noDefaultInfinity: true }), fc.constant(null)),
    float64: fc.oneof(fc.double({ noNaN: true, noDefaultInfinity: true }), fc.constant(null)),
    int8: fc.integer({ min: -128, max: 127 }),
    int64: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
    uint64: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    bool: fc.boolean(),
    string: fc.string({ unit: "binary" }),
  }
  const tensor = fc
    .constantFrom(...DTYPES)
    .chain((dtype) =>
      fc
        .array(value[dtype] ?? fc.constant(0), { minLength: 1, maxLength: 6 })
        .map((values) => fromNested(dtype, values)),
    )

  test("is read back as the same tensors, for every dtype", () => {
    fc.assert(
      fc.property(tensor, tensor, fc.string({ minLength: 1 }), (input, output, name) => {
        fc.pre(!/\p{Cc}/u.test(name) && name.length <= 100)
        const spec: SignatureSpec = {
          inputs: [{ name: "x", dtype: input.dtype, shape: [null] }],
          outputs: [{ name: "y", dtype: output.dtype, shape: ["N"] }],
          batchable: false,
          batchDim: [0, 0],
        }
        const signatures = { run: describeSignature(spec) }
        const head = { onnxruntime: "1.2.3", files: { m: `sha256:${"0".repeat(64)}` }, signatures }
        const example: Example = {
          name,
          signature: "run",
          inputs: { x: input },
          outputs: { y: output },
          tolerance: { relative: 0.5 },
        }
        const text = formatExamples(head, [example])
        const problems = new Problems("s.json")
        const { examples, ...rest } = readExamples(Buffer.from(text), problems) ?? assert.fail(text)
        assert.deepEqual(rest, head)
        assert.deepEqual(resolveExamples(examples, { run: spec }, problems), [example])
        assert.deepEqual(problems.issues, [])
      }),
    )
  })
})

describe("an answer", () => {
  const compare = (
    dtype: DType,
    expected: unknown[],
    actual: unknown[],
    tolerance = {},
  ): ReturnType<typeof compareOutputs> =>
    compareOutputs({ y: fromNested(dtype, expected) }, { y: fromNested(dtype, actual) }, tolerance)

  for (const [dtype, expected, actual, tolerance, problem] of [
    ["float32", [1, 2], [1, 2], {}, null],
    ["float32", [1], [1.0005], {}, null],
    [
      "float32",
      [1],
      [1.01],
      {},
      "y[0]: expected 1, received 1.01 (1 of 1 values differ, by up to 0.00999999; tolerance: 0.00001 + 0.001 × |expected|)",
    ],
    ["float32", [1], [1.01], { absolute: 0.1 }, null],
    [
      "float32",
      [0],
      [1e-5],
      { absolute: 0 },
      "y[0]: expected 0, received 0.00001 (1 of 1 values differ, by up to 0.00001; tolerance: 0 + 0.001 × |expected|)",
    ],
    [
      "float64",
      [1],
      [1.0001],
      {},
      "y[0]: expected 1, received 1.0001 (1 of 1 values differ, by up to 0.0001; tolerance: 1e-8 + 0.00001 × |expected|)",
    ],
    ["float16", [1], [1.005], {}, null],
    ["float32", [null, 1], [null, 1], {}, null],
    [
      "float32",
      [1],
      [null],
      { absolute: 1e9 },
      "y[0]: expected 1, received NaN (1 of 1 values differ; tolerance: 1000000000 + 0.001 × |expected|)",
    ],
    [
      "float32",
      [null],
      [1],
      {},
      "y[0]: expected NaN, received 1 (1 of 1 values differ; tolerance: 0.00001 + 0.001 × |expected|)",
    ],
    [
      "int64",
      [
        [1, 2],
        [3, 4],
      ],
      [
        [1, 2],
        [5, 9],
      ],
      { absolute: 100 },
      "y[1][0]: expected 3, received 5 (2 of 4 values differ, by up to 5)",
    ],
    [
      "int64",
      ["9223372036854775807"],
      ["9223372036854775806"],
      {},
      "y[0]: expected 9223372036854775807, received 9223372036854775806 (1 of 1 values differ, by up to 1)",
    ],
    ["uint8", [1], [2], {}, "y[0]: expected 1, received 2 (1 of 1 values differ, by up to 1)"],
    ["bool", [true], [false], {}, "y[0]: expected true, received false (1 of 1 values differ)"],
    ["string", ["a", "b"], ["a", "ß"], {}, 'y[1]: expected "b", received "ß" (1 of 2 values differ)'],
    ["float32", [1, 2], [[1, 2]], {}, "y: expected the shape [2], received [1, 2]"],
    ["float32", [], [[], []], {}, null],
    ["float32", [], [1], {}, "y: expected the shape [0], received [1]"],
  ] as const satisfies readonly (readonly [DType, unknown[], unknown[], object, string | null])[]) {
    test(`${JSON.stringify(actual)} for ${JSON.stringify(expected)} (${dtype}, ${JSON.stringify(tolerance)})`, () => {
      assert.equal(compare(dtype, [...expected], [...actual], tolerance).problem, problem)
    })
  }

  test("has the largest error of all its numbers", () => {
    assert.equal(compare("float64", [1, 2, null], [1.5, 1, null]).maxError, 1)
    assert.equal(compare("string", ["a"], ["b"]).maxError, 0)
  })

  test("is compared in the outputs that are expected, and all of them must be there", () => {
    const y: Tensor = makeTensor("int64", [1], BigInt64Array.of(1n))
    const answer: Tensors = { y, z: y }
    assert.equal(compareOutputs({ y }, answer).problem, null)
    assert.equal(compareOutputs({ w: y }, answer).problem, 'there is no output "w"')
    assert.equal(
      compareOutputs({ y: makeTensor("int32", [1], Int32Array.of(1)) }, answer).problem,
      "y: expected int32, received int64",
    )
  })
})
