/**
 * Descriptors: what an API takes and gives. Each turns the bytes of a body into a typed value, or a value into the text of a
 * response, and says as JSON Schema what that is. They know no HTTP beyond the media type.
 */
import { isUtf8 } from "node:buffer"
import type { StandardSchemaV1 } from "@standard-schema/spec"
import type { DescriptorInfo, Json, JsonObject } from "../store/bento.ts"
import type { TensorSpec } from "../store/model.ts"
import { ServeError } from "./errors.ts"
import { type DType, DTYPES, type Tensor, type Tensors } from "./tensor.ts"
import { castTensor } from "./tensor-cast.ts"
import {
  formatTensor,
  formatTensors,
  parseJson,
  parseTensor,
  parseTensors,
  stringifyJson,
} from "./tensor-json.ts"

/** What an API takes: `T` is what its handler gets. */
export interface InputDescriptor<T> {
  readonly describeInput: () => DescriptorInfo
  /** Whether a body of this media type (lower case, without parameters, "" when none was sent) is read. */
  readonly accepts: (mediaType: string) => boolean
  readonly decode: (body: Buffer) => T | Promise<T>
}

/** What an API gives: `T` is what its handler must return. */
export interface OutputDescriptor<T> {
  readonly describeOutput: () => DescriptorInfo
  readonly contentType: string
  readonly encode: (value: T) => string | Promise<string>
}

export interface Descriptor<Decoded, Encoded = Decoded>
  extends InputDescriptor<Decoded>, OutputDescriptor<Encoded> {}

/**
 * JSON. Without a schema the type is taken on trust; with one (zod, valibot, arktype: any Standard Schema) a body that does not
 * fit is answered 400 with every issue, and the handler gets what the schema makes of it.
 *
 * ```ts
 * input: json(z.object({ text: z.string().max(1000) })), output: json<{ label: string }>()
 * ```
 */
export function json<T = unknown>(): Descriptor<T>
export function json<S extends StandardSchemaV1>(
  schema: S,
): Descriptor<StandardSchemaV1.InferOutput<S>, StandardSchemaV1.InferInput<S>>
export function json(schema?: StandardSchemaV1): Descriptor<unknown> {
  if (schema !== undefined && typeof schema["~standard"]?.validate !== "function") {
    throw new TypeError(
      "json(): what it was given is no Standard Schema; pass one of zod, valibot or arktype",
    )
  }
  const describe = (side: "input" | "output") => (): DescriptorInfo => ({
    kind: "json",
    mediaType: "application/json",
    schema: schema === undefined ? {} : jsonSchemaOf(schema, side),
  })
  return {
    describeInput: describe("input"),
    // A handler returns what the schema takes; what the client gets is what the schema gives.
    describeOutput: describe("output"),
    accepts: acceptsJson,
    contentType: "application/json",
    decode(body) {
      const value = parseJson(body)
      return schema === undefined ? value : validate(schema, value, refuseInput)
    },
    encode(value) {
      if (schema === undefined) return encodeJson(value)
      const valid = validate(schema, value, refuseOutput)
      return valid instanceof Promise ? valid.then(encodeJson) : encodeJson(valid)
    },
  }
}

/** Text: the body as it is, UTF-8. */
export function text(): Descriptor<string> {
  const describe = (): DescriptorInfo => ({
    kind: "text",
    mediaType: "text/plain",
    schema: { type: "string" },
  })
  return {
    describeInput: describe,
    describeOutput: describe,
    accepts: (mediaType) => mediaType === "" || mediaType.startsWith("text/") || mediaType === FORM,
    contentType: "text/plain; charset=utf-8",
    decode(body) {
      if (!isUtf8(body)) throw new ServeError("BAD_INPUT", 400, "the body is not UTF-8 text")
      return body.toString("utf8")
    },
    encode(value) {
      if (typeof value === "string") return value
      throw new TypeError(`the handler must return a string, but returned ${nameOf(value)}`)
    },
  }
}

/** Node strips types and checks none: what is written in a service can be anything. */
function isShape(shape: unknown): boolean {
  return Array.isArray(shape) && shape.every((size) => Number.isInteger(size) && size >= -1)
}

export interface NdarrayOptions<D extends DType> {
  readonly dtype?: D
  /** -1 = any size: `[-1, 4]` are any number of rows of four. */
  readonly shape?: readonly number[]
  /**
   * true (the default): the handler gets exactly this dtype, and what does not fit is answered 400. false: values are
   * converted where nothing of their kind is lost (integers to floats), else they come as they are.
   */
  readonly enforceDtype?: boolean
  /** true (the default): another shape is answered 400. false: it is reshaped where that is possible, else left. */
  readonly enforceShape?: boolean
}

/**
 * A tensor, in JSON as nested arrays: `[[5.9, 3, 5.1, 1.8]]`.
 *
 * ```ts
 * input: ndarray({ dtype: "float32", shape: [-1, 4] })   // the handler gets a Tensor<"float32">
 * ```
 */
export function ndarray<D extends DType>(
  options: NdarrayOptions<D> & { readonly dtype: D; readonly enforceDtype?: true },
): Descriptor<Tensor<D>>
export function ndarray(options?: NdarrayOptions<DType>): Descriptor<Tensor>
export function ndarray(options: NdarrayOptions<DType> = {}): Descriptor<Tensor> {
  const { dtype = null, shape, enforceDtype = true, enforceShape = true } = options
  if (dtype !== null && !DTYPES.includes(dtype)) {
    throw new TypeError(`ndarray(): dtype ${JSON.stringify(dtype)} is none of ${DTYPES.join(", ")}`)
  }
  if (shape !== undefined && !isShape(shape)) {
    throw new TypeError(`ndarray(): shape ${JSON.stringify(shape)} must be a list of sizes, -1 for any`)
  }
  const describe = (): DescriptorInfo => ({
    kind: "ndarray",
    mediaType: "application/json",
    schema: tensorSchema(
      enforceDtype ? dtype : null,
      enforceShape ? (shape?.map((size) => (size === -1 ? null : size)) ?? null) : null,
    ),
  })
  return {
    describeInput: describe,
    describeOutput: describe,
    accepts: acceptsJson,
    contentType: "application/json",
    decode(body) {
      let tensor = parseTensor(body, enforceDtype ? dtype : null)
      if (!enforceDtype && dtype !== null) tensor = castTensor(tensor, dtype) ?? tensor
      if (shape === undefined || fits(tensor.shape, shape)) return tensor
      // `[]` says that there are no rows, and nothing of how long they would be.
      if (tensor.shape.length === 1 && tensor.shape[0] === 0 && shape[0] === -1) {
        return { ...tensor, shape: shape.map((size) => Math.max(0, size)) }
      }
      if (!enforceShape) return reshape(tensor, shape) ?? tensor
      throw new ServeError(
        "BAD_INPUT",
        400,
        `expected an array of shape ${shapeText(shape)}, received one of shape ${shapeText(tensor.shape)}`,
        { detail: { expected: [...shape], received: [...tensor.shape] } },
      )
    },
    encode(value) {
      let tensor = value
      if (dtype !== null && tensor.dtype !== dtype) {
        const cast = castTensor(tensor, dtype)
        if (cast === null && enforceDtype) {
          throw new TypeError(
            `the handler must return a tensor of ${dtype}, but returned one of ${tensor.dtype}`,
          )
        }
        tensor = cast ?? tensor
      }
      if (shape !== undefined && !fits(tensor.shape, shape)) {
        const reshaped = enforceShape ? null : reshape(tensor, shape)
        if (reshaped === null && enforceShape) {
          throw new TypeError(
            `the handler must return a tensor of shape ${shapeText(shape)}, but returned one of shape ${shapeText(tensor.shape)}`,
          )
        }
        tensor = reshaped ?? tensor
      }
      return formatTensor(tensor)
    },
  }
}

/** The inputs and outputs of a model's signature by name: what an API without code takes and gives. */
export function tensors(
  specs: () => { readonly inputs: readonly TensorSpec[]; readonly outputs: readonly TensorSpec[] },
): Descriptor<Tensors> {
  const describe = (side: readonly TensorSpec[], orBare: boolean): DescriptorInfo => {
    const object: JsonObject = {
      type: "object",
      properties: Object.fromEntries(side.map((spec) => [spec.name, specSchema(spec)])),
      required: side.map((spec) => spec.name),
      additionalProperties: false,
    }
    const [only, ...others] = side
    return {
      kind: "tensors",
      mediaType: "application/json",
      schema:
        orBare && only !== undefined && others.length === 0 ? { anyOf: [object, specSchema(only)] } : object,
    }
  }
  return {
    describeInput: () => describe(specs().inputs, true),
    describeOutput: () => describe(specs().outputs, false),
    accepts: acceptsJson,
    contentType: "application/json",
    decode: (body) => parseTensors(body, specs().inputs),
    encode: formatTensors,
  }
}

const FORM = "application/x-www-form-urlencoded"

/**
 * Any type of JSON; none; and what clients send that were told nothing: `curl -d` says it is a form, `fetch` with a string
 * says it is plain text. The body is read as JSON in each case.
 */
function acceptsJson(mediaType: string): boolean {
  return (
    mediaType === "application/json" ||
    mediaType === "" ||
    mediaType === FORM ||
    mediaType === "text/plain" ||
    mediaType.endsWith("+json")
  )
}

function encodeJson(value: unknown): string {
  return stringifyJson(value) ?? "null"
}

type Issues = readonly StandardSchemaV1.Issue[]

function validate(schema: StandardSchemaV1, value: unknown, refuse: (issues: Issues) => Error): unknown {
  const settle = (result: StandardSchemaV1.Result<unknown>): unknown => {
    if (result.issues !== undefined) throw refuse(result.issues)
    return result.value
  }
  const result = schema["~standard"].validate(value)
  return result instanceof Promise ? result.then(settle) : settle(result)
}

function refuseInput(issues: Issues): Error {
  const listed = issues.map((issue) => ({ path: pathOf(issue), message: issue.message }))
  const [first] = listed
  const more = listed.length > 1 ? ` (and ${listed.length - 1} more)` : ""
  return new ServeError(
    "BAD_INPUT",
    400,
    `the body does not fit: ${first === undefined ? "" : issueText(first)}${more}`,
    {
      detail: { issues: listed },
    },
  )
}

function refuseOutput(issues: Issues): Error {
  const texts = issues.map((issue) => issueText({ path: pathOf(issue), message: issue.message }))
  return new TypeError(`the handler's answer does not fit the schema of the output: ${texts.join("; ")}`)
}

function pathOf(issue: StandardSchemaV1.Issue): (string | number)[] {
  return (issue.path ?? []).map((segment) => {
    const key = typeof segment === "object" ? segment.key : segment
    return typeof key === "number" ? key : String(key)
  })
}

const issueText = ({ path, message }: { path: readonly (string | number)[]; message: string }): string =>
  path.length === 0 ? message : `${path.join(".")}: ${message}`

/** What the schema says of itself, where its library can (Standard JSON Schema); else anything. */
function jsonSchemaOf(schema: StandardSchemaV1, side: "input" | "output"): JsonObject {
  const props = schema["~standard"] as {
    readonly jsonSchema?: Record<"input" | "output", (options: { target: string }) => Record<string, unknown>>
  }
  try {
    const { $schema: _, ...rest } = props.jsonSchema?.[side]({ target: "draft-2020-12" }) ?? {}
    // A JSON Schema is JSON; the round trip drops what is not.
    return JSON.parse(JSON.stringify(rest)) as JsonObject
  } catch {
    return {}
  }
}

const ITEMS: Record<DType, JsonObject> = {
  float16: { type: "number" },
  float32: { type: "number", format: "float" },
  float64: { type: "number", format: "double" },
  int8: { type: "integer", minimum: -128, maximum: 127 },
  int16: { type: "integer", minimum: -32768, maximum: 32767 },
  int32: { type: "integer", format: "int32" },
  int64: { type: "integer", format: "int64" },
  uint8: { type: "integer", minimum: 0, maximum: 255 },
  uint16: { type: "integer", minimum: 0, maximum: 65535 },
  uint32: { type: "integer", minimum: 0, maximum: 4294967295 },
  uint64: { type: "integer", minimum: 0 },
  bool: { type: "boolean" },
  string: { type: "string" },
}

function specSchema(spec: TensorSpec): JsonObject {
  return tensorSchema(
    spec.dtype,
    spec.shape.map((size) => (typeof size === "number" ? size : null)),
  )
}

/** Nested arrays; a fixed dimension says its size. Without a shape nothing is known but that they are arrays or a value. */
function tensorSchema(dtype: DType | null, shape: readonly (number | null)[] | null): JsonObject {
  if (shape === null) return { description: `Nested arrays of ${dtype ?? "numbers, booleans or strings"}.` }
  return shape.reduceRight<JsonObject>(
    (items, size) => ({
      type: "array",
      items,
      ...(size === null ? {} : { minItems: size, maxItems: size }),
    }),
    dtype === null ? {} : ITEMS[dtype],
  )
}

function fits(shape: readonly number[], wanted: readonly number[]): boolean {
  return shape.length === wanted.length && wanted.every((size, axis) => size === -1 || size === shape[axis])
}

/** As NumPy: at most one size may be open, and the number of values must come out. */
function reshape(tensor: Tensor, wanted: readonly number[]): Tensor | null {
  const open = wanted.filter((size) => size === -1).length
  const known = wanted.reduce((product, size) => (size === -1 ? product : product * size), 1)
  const count = tensor.data.length
  if (open > 1 || (open === 0 ? known !== count : known === 0 || count % known !== 0)) return null
  return { ...tensor, shape: wanted.map((size) => (size === -1 ? count / known : size)) }
}

const shapeText = (shape: readonly number[]): string => `[${shape.join(", ")}]`

function nameOf(value: unknown): string {
  if (value === null) return "null"
  return typeof value === "object" ? (value.constructor?.name ?? "an object") : typeof value
}

/** A value that fits a schema of ours, for the examples of the OpenAPI document. */
export function exampleOf(schema: JsonObject): Json {
  const { anyOf, type, items, properties, minItems } = schema
  if (Array.isArray(anyOf)) return exampleOf((anyOf[0] ?? {}) as JsonObject)
  if (type === "array") {
    return Array.from({ length: typeof minItems === "number" ? minItems : 1 }, () =>
      exampleOf((items ?? {}) as JsonObject),
    )
  }
  if (type === "object") {
    return Object.fromEntries(
      Object.entries((properties ?? {}) as JsonObject).map(([name, member]) => [
        name,
        exampleOf(member as JsonObject),
      ]),
    )
  }
  if (type === "boolean") return true
  return type === "string" ? "text" : 0
}
