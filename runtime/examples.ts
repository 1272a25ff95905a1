/**
 * Examples of a model: inputs, and what it answers to them. Users write them, `models record` makes them, and they lie beside
 * the model in `selftest.json`. Here is their form, read and written, and how an answer is compared with the expected one.
 * Values are those of requests and answers: nested arrays, integers exact, `null` for what is no finite number.
 */
import type { Issue } from "../store/errors.ts"
import type { TensorSpec } from "../store/model.ts"
import type { SignatureSpec } from "./runner.ts"
import { type DType, type Tensor, type Tensors, formatShape, shapeFits } from "./tensor.ts"
import { flatValues, formatTensors, fromNested, parseExactJson } from "./tensor-json.ts"

/** How far a float may be from the expected one: `absolute + relative × |expected|`, as NumPy's `allclose`. */
export interface Tolerance {
  readonly absolute: number
  readonly relative: number
}

/**
 * Other CPUs and other batch sizes sum in another order. That is far below these; a wrong weight that matters is far above.
 * Integers, booleans and strings must be equal.
 */
const DEFAULT_TOLERANCE: Partial<Record<DType, Tolerance>> = {
  float16: { absolute: 1e-3, relative: 1e-2 },
  float32: { absolute: 1e-5, relative: 1e-3 },
  float64: { absolute: 1e-8, relative: 1e-5 },
}

/** As it is written: what its values mean, the model's signature says. */
export interface WrittenExample {
  readonly name: string
  /** It has no name of its own. */
  readonly isNumbered: boolean
  /** Where it stands, for messages: `examples[0]`. */
  readonly at: string
  readonly signature: string | null
  readonly inputs: Readonly<Record<string, unknown>>
  readonly outputs: Readonly<Record<string, unknown>> | null
  readonly tolerance: Partial<Tolerance>
}

/** What a signature took and gave when its examples were recorded: name → `float32 [N, 4]`. */
export interface RecordedSignature {
  readonly inputs: Readonly<Record<string, string>>
  readonly outputs: Readonly<Record<string, string>>
}

export interface WrittenExamples {
  /** The ONNX Runtime whose answers they are; null where nobody recorded them yet. */
  readonly onnxruntime: string | null
  /** The model's files when they were recorded: path → `sha256:…`. */
  readonly files: Readonly<Record<string, string>>
  readonly signatures: Readonly<Record<string, RecordedSignature>>
  readonly examples: readonly WrittenExample[]
}

export interface Example {
  readonly name: string
  readonly signature: string
  readonly inputs: Tensors
  /** Those that are compared; not all need be given. Null: still to be recorded. */
  readonly outputs: Tensors | null
  readonly tolerance: Partial<Tolerance>
}

type Report = (field: string, message: string) => void

/** Collects what is wrong with a file. */
export class Problems {
  readonly issues: Issue[] = []
  readonly #file: string

  constructor(file: string) {
    this.#file = file
  }

  readonly add: Report = (field, message) => {
    this.issues.push({ file: this.#file, ...(field === "" ? {} : { field }), message })
  }
}

// ---------------------------------------------------------------------------------------------------- reading

const SET_KEYS = ["onnxruntime", "files", "signatures", "examples"]
const EXAMPLE_KEYS = ["name", "signature", "inputs", "outputs", "tolerance"]

/**
 * `{"examples": [{"inputs": {…}, "outputs": {…}}]}`, the list alone, or one example alone; where answers are to be recorded
 * also the body of a request. Null for what has not this form at all; what is wrong within is left out, and a problem.
 */
export function readExamples(bytes: Uint8Array, problems: Problems, record = false): WrittenExamples | null {
  let value: unknown
  try {
    value = parseExactJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes))
  } catch (error) {
    problems.add("", `is not JSON: ${error instanceof Error ? error.message : String(error)}`)
    return null
  }
  const set = setOf(value, record)
  const { add } = problems
  if (set === null) {
    add("", 'expected {"examples": [{"inputs": {…}, "outputs": {…}}]}')
    return null
  }
  for (const key of Object.keys(set)) if (!SET_KEYS.includes(key)) add(key, unknownKey(SET_KEYS))
  const { onnxruntime = null, files = {}, signatures = {}, examples } = set
  const hasVersion = onnxruntime === null || typeof onnxruntime === "string"
  if (!hasVersion) add("onnxruntime", "must be a version, as text")
  const hasFiles = isMapOf(files, isDigest)
  if (!hasFiles) add("files", "must be a map of paths to `sha256:…`")
  const hasSignatures = isMapOf(signatures, isRecordedSignature)
  if (!hasSignatures) add("signatures", "must be a map of names to `inputs` and `outputs`")
  if (!Array.isArray(examples)) add("examples", "must be a list")
  else if (examples.length === 0) add("examples", "is empty")
  const read = Array.isArray(examples) ? examples.map((one, index) => readExample(one, index, add)) : []
  read.forEach(({ name, at }, index) => {
    const first = read.findIndex((other) => other.name === name)
    if (first < index)
      add(`${at}.name`, `${JSON.stringify(name)} is given twice (first in examples[${first}])`)
  })
  return {
    onnxruntime: hasVersion ? onnxruntime : null,
    files: hasFiles ? files : {},
    signatures: hasSignatures ? signatures : {},
    examples: read,
  }
}

function setOf(value: unknown, record: boolean): Record<string, unknown> | null {
  if (Array.isArray(value) && value.every(isMap) && value.length > 0) return { examples: value }
  if (isMap(value) && Object.hasOwn(value, "examples") && !isNested(value["examples"])) return value
  if (isMap(value) && isMap(value["inputs"])) return { examples: [value] }
  if (record && (isMap(value) || isNested(value))) return { examples: [{ inputs: value }] }
  return null
}

/** Is it a value of a tensor? Those are no maps and hold none. */
function isNested(value: unknown): boolean {
  return Array.isArray(value) ? value.length > 0 && value.every(isNested) : !isMap(value)
}

function readExample(value: unknown, index: number, add: Report): WrittenExample {
  const at = `examples[${index}]`
  const example = isMap(value) ? value : {}
  if (!isMap(value)) add(at, "must be a map with `inputs`")
  for (const key of Object.keys(example))
    if (!EXAMPLE_KEYS.includes(key)) add(`${at}.${key}`, unknownKey(EXAMPLE_KEYS))
  const { name = String(index + 1), signature = null, inputs, outputs = null } = example
  const isName = typeof name === "string" && /^[^\p{Cc}]{1,100}$/u.test(name)
  if (!isName) add(`${at}.name`, "must be text of 1 to 100 characters, on one line")
  if (signature !== null && typeof signature !== "string")
    add(`${at}.signature`, "must be the name of a signature")
  if (isMap(value) && inputs === undefined) add(`${at}.inputs`, "is missing")
  if (outputs !== null && !isMap(outputs)) add(`${at}.outputs`, "must be a map of the outputs by name")
  return {
    name: isName ? name : String(index + 1),
    isNumbered: !Object.hasOwn(example, "name"),
    at,
    signature: typeof signature === "string" ? signature : null,
    // The body of a request may be the array alone, where the model has one input.
    inputs: isMap(inputs) ? inputs : { [BARE]: inputs },
    outputs: isMap(outputs) ? outputs : null,
    tolerance: readTolerance(example["tolerance"], `${at}.tolerance`, add),
  }
}

/** Stands for the name of the only input: no name of a tensor is empty. */
const BARE = ""

function readTolerance(value: unknown, at: string, add: Report): Partial<Tolerance> {
  if (value === undefined || value === null) return {}
  const parts = isMap(value) ? Object.entries(value) : []
  const isRight = ([key, part]: [string, unknown]): boolean =>
    ["absolute", "relative"].includes(key) && typeof part === "number" && part >= 0
  if (isMap(value) && parts.every(isRight)) return value
  add(at, 'must be {"absolute": NUMBER, "relative": NUMBER}, or one of them, not negative')
  return {}
}

function unknownKey(known: readonly string[]): string {
  return `unknown key; known are ${known.join(", ")}`
}

/** A number that `parseExactJson` kept as text is an object too, and a frozen one. */
function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && Object.isExtensible(value)
}

function isMapOf<T>(value: unknown, test: (member: unknown) => member is T): value is Record<string, T> {
  return isMap(value) && Object.values(value).every(test)
}

function isText(value: unknown): value is string {
  return typeof value === "string"
}

function isDigest(value: unknown): value is string {
  return isText(value) && /^sha256:[0-9a-f]{64}$/.test(value)
}

function isRecordedSignature(value: unknown): value is RecordedSignature {
  return isMap(value) && isMapOf(value["inputs"], isText) && isMapOf(value["outputs"], isText)
}

// ---------------------------------------------------------------------------------------------------- meaning

/** The examples as tensors of the signatures; problems for all that does not fit. */
export function resolveExamples(
  written: readonly WrittenExample[],
  signatures: Readonly<Record<string, SignatureSpec>>,
  problems: Problems,
): Example[] {
  return written.flatMap((example) => resolveExample(example, signatures, problems.add))
}

function resolveExample(
  { name, at, signature, inputs, outputs, tolerance }: WrittenExample,
  signatures: Readonly<Record<string, SignatureSpec>>,
  add: Report,
): Example[] {
  const names = Object.keys(signatures)
  const asked = signature ?? (names.includes("run") || names.length !== 1 ? "run" : (names[0] ?? "run"))
  const spec = Object.hasOwn(signatures, asked) ? signatures[asked] : undefined
  if (spec === undefined) {
    add(`${at}.signature`, `the model has no signature ${JSON.stringify(asked)}; it has ${names.join(", ")}`)
    return []
  }
  const axis = (side: 0 | 1): number | null => (spec.batchable ? spec.batchDim[side] : null)
  const [only, ...others] = spec.inputs
  const isBare = Object.hasOwn(inputs, BARE) && only !== undefined && others.length === 0
  const named = isBare ? { [only.name]: inputs[BARE] } : inputs
  const given = tensorsOf(named, spec.inputs, axis(0), { at: `${at}.inputs`, what: "input" }, add)
  for (const { name: missing } of spec.inputs) {
    if (!Object.hasOwn(named, missing)) add(`${at}.inputs`, `input ${JSON.stringify(missing)} is missing`)
  }
  if (outputs !== null && Object.keys(outputs).length === 0) add(`${at}.outputs`, "names no output")
  const expected =
    outputs === null
      ? null
      : tensorsOf(outputs, spec.outputs, axis(1), { at: `${at}.outputs`, what: "output" }, add)
  return [{ name, signature: asked, inputs: given, outputs: expected, tolerance }]
}

function tensorsOf(
  values: Readonly<Record<string, unknown>>,
  specs: readonly TensorSpec[],
  axis: number | null,
  { at, what }: { readonly at: string; readonly what: "input" | "output" },
  add: Report,
): Tensors {
  const found: Record<string, Tensor> = {}
  for (const [name, value] of Object.entries(values)) {
    const spec = specs.find((candidate) => candidate.name === name)
    if (spec === undefined) {
      const known = specs.map((candidate) => JSON.stringify(candidate.name)).join(", ")
      add(
        at,
        `${name === BARE ? "must be a map by name" : `there is no ${what} ${JSON.stringify(name)}`}; the ${what}s are ${known}`,
      )
      continue
    }
    const field = `${at}.${name}`
    try {
      const tensor = fromNested(spec.dtype, value)
      // `[]` says nothing of the dimensions within.
      if (tensor.data.length === 0 || shapeFits(tensor.shape, spec.shape, axis)) found[name] = tensor
      else {
        const shapes = `${formatShape(spec.shape)}, received ${formatShape(tensor.shape)}`
        add(field, `expected ${spec.dtype} of the shape ${shapes}`)
      }
    } catch (error) {
      add(field, error instanceof Error ? error.message : String(error))
    }
  }
  return found
}

// ---------------------------------------------------------------------------------------------------- writing

export function describeSignature({ inputs, outputs }: SignatureSpec): RecordedSignature {
  const texts = (specs: readonly TensorSpec[]): Record<string, string> =>
    Object.fromEntries(specs.map(({ name, dtype, shape }) => [name, `${dtype} ${formatShape(shape)}`]))
  return { inputs: texts(inputs), outputs: texts(outputs) }
}

/** The text of `selftest.json`, one line for each example. */
export function formatExamples(
  head: Omit<WrittenExamples, "examples">,
  examples: readonly Example[],
): string {
  const lines = examples.map(({ name, signature, inputs, outputs, tolerance }) => {
    const begin = JSON.stringify({ name, signature }).slice(0, -1)
    const answer = outputs === null ? "" : `,"outputs":${formatTensors(outputs)}`
    const end = Object.keys(tolerance).length === 0 ? "" : `,"tolerance":${JSON.stringify(tolerance)}`
    return `    ${begin},"inputs":${formatTensors(inputs)}${answer}${end}}`
  })
  const { onnxruntime, files, signatures } = head
  const begin = JSON.stringify({ onnxruntime, files, signatures }, null, 2).slice(0, -2)
  return `${begin},\n  "examples": [\n${lines.join(",\n")}\n  ]\n}\n`
}

// ---------------------------------------------------------------------------------------------------- comparing

export interface Comparison {
  /** The largest distance of any number from the expected one. */
  readonly maxError: number
  /** The first thing that differs, and how much does; null when all is within the tolerance. */
  readonly problem: string | null
}

/** Compares the outputs that are expected; others are not looked at. */
export function compareOutputs(
  expected: Tensors,
  actual: Tensors,
  tolerance: Partial<Tolerance> = {},
): Comparison {
  let maxError = 0
  const problems: string[] = []
  for (const [name, tensor] of Object.entries(expected)) {
    const answer = Object.hasOwn(actual, name) ? actual[name] : undefined
    if (answer === undefined) {
      problems.push(`there is no output ${JSON.stringify(name)}`)
      continue
    }
    const compared = compareTensors(tensor, answer, tolerance)
    maxError = Math.max(maxError, compared.maxError)
    if (compared.problem !== null) problems.push(`${name}${compared.problem}`)
  }
  return { maxError, problem: problems.length === 0 ? null : problems.join("; ") }
}

function compareTensors(expected: Tensor, actual: Tensor, given: Partial<Tolerance>): Comparison {
  const { dtype, shape } = expected
  if (actual.dtype !== dtype) return { maxError: 0, problem: `: expected ${dtype}, received ${actual.dtype}` }
  const isEmpty = expected.data.length + actual.data.length === 0
  if (!isEmpty && formatShape(actual.shape) !== formatShape(shape)) {
    const problem = `: expected the shape ${formatShape(shape)}, received ${formatShape(actual.shape)}`
    return { maxError: 0, problem }
  }
  const usual = DEFAULT_TOLERANCE[dtype]
  const tolerance = usual === undefined ? { absolute: 0, relative: 0 } : { ...usual, ...given }
  const answers = flatValues(actual)
  let maxError = 0
  let differing = 0
  let first = ""
  flatValues(expected).forEach((value, index) => {
    const answer = answers[index] ?? ""
    const error = distance(value, answer)
    if (Number.isFinite(error)) maxError = Math.max(maxError, error)
    const size = typeof value === "number" && Number.isFinite(value) ? Math.abs(value) : 0
    if (error <= tolerance.absolute + tolerance.relative * size) return
    if (differing++ === 0) {
      first = `${placeOf(index, shape)}: expected ${shown(value)}, received ${shown(answer)}`
    }
  })
  if (differing === 0) return { maxError, problem: null }
  const extent = maxError === 0 ? "" : `, by up to ${shown(maxError)}`
  const allowance =
    usual === undefined ? "" : `; tolerance: ${tolerance.absolute} + ${tolerance.relative} × |expected|`
  return {
    maxError,
    problem: `${first} (${differing} of ${answers.length} values differ${extent}${allowance})`,
  }
}

type Value = number | bigint | boolean | string

/** 0 for equal ones. What is no finite number is `null` in JSON, so that one of these is like another. */
function distance(expected: Value, actual: Value): number {
  if (expected === actual) return 0
  if (typeof expected === "bigint" && typeof actual === "bigint") {
    // At least 1: the difference of two integers is exact, its double need not be.
    return Math.max(1, Math.abs(Number(actual - expected)))
  }
  if (typeof expected !== "number" || typeof actual !== "number") return Infinity
  const finite = [expected, actual].filter(Number.isFinite).length
  if (finite === 2) return Math.abs(actual - expected)
  return finite === 0 ? 0 : Infinity
}

function shown(value: Value): string {
  if (typeof value === "number") return String(Number(value.toPrecision(7)))
  const text = typeof value === "string" ? JSON.stringify(value) : String(value)
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

/** `[2][0]` of the n-th element. */
function placeOf(index: number, shape: readonly number[]): string {
  let rest = index
  const place = shape
    .toReversed()
    .map((size) => {
      const at = rest % size
      rest = Math.floor(rest / size)
      return `[${at}]`
    })
    .toReversed()
  return place.join("")
}
