/** A model: what `model.yaml` says, in memory. The format on disk is BentoML's (1.4). */
import { asWritten, Fields } from "./manifest.ts"
import { emitYaml } from "./pyyaml.ts"
import { checkName, checkVersion, type Tag } from "./tag.ts"

/** ONNX tensor element types under their NumPy names. */
export type DType =
  | "float16"
  | "float32"
  | "float64"
  | "int8"
  | "int16"
  | "int32"
  | "int64"
  | "uint8"
  | "uint16"
  | "uint32"
  | "uint64"
  | "bool"
  | "string"

/** One input or output of a signature. A dimension is a size, a symbolic name (free), or null (free, unnamed). */
export interface TensorSpec {
  readonly name: string
  readonly dtype: DType
  readonly shape: readonly (number | string | null)[]
}

/** How a method of a model is called. `batchDim` = [batch axis of the inputs, batch axis of the outputs]. */
export interface Signature {
  readonly batchable: boolean
  readonly batchDim: readonly [number, number]
  readonly inputSpec?: unknown
  readonly outputSpec?: unknown
}

/** `model.yaml` in memory. `options`, `metadata` and labels are kept as written; keys that BentoML does not know are not. */
export interface Model {
  readonly tag: Tag
  /** Python module that saved it, `bentoml.onnx` for ours. */
  readonly module: string
  readonly labels: Readonly<Record<string, string>>
  readonly options: Readonly<Record<string, unknown>>
  readonly metadata: Readonly<Record<string, unknown>>
  readonly context: {
    readonly frameworkName: string
    readonly frameworkVersions: Readonly<Record<string, string>>
    readonly bentomlVersion: string
    readonly pythonVersion: string
  }
  readonly signatures: Readonly<Record<string, Signature>>
  readonly apiVersion: string
  /** ISO 8601 with microseconds and offset, as on disk. */
  readonly creationTime: string
}

/** The BentoML whose formats we write; its Python library warns of a store that names a newer one than itself. */
export const BENTOML_VERSION = "1.4.38"

/** Reads `model.yaml`; `path` is for messages. Throws MANIFEST_INVALID with every problem and its line. */
export function parseModelYaml(text: string, path: string): Model {
  const fields = Fields.read(text, path)
  const context = fields.map("context")
  const model: Model = {
    tag: readTag(fields),
    module: fields.text("module", ""),
    labels: fields.texts("labels"),
    options: fields.record("options"),
    metadata: fields.record("metadata"),
    context: {
      frameworkName: context.text("framework_name", ""),
      // Before 1.0.0rc1 there were pip_dependencies in its place; BentoML drops both then.
      frameworkVersions: context.get("pip_dependencies") === null ? context.texts("framework_versions") : {},
      bentomlVersion: context.text("bentoml_version", ""),
      pythonVersion: context.text("python_version", ""),
    },
    signatures: Object.fromEntries(
      fields.maps("signatures").map(([name, one]) => [name, readSignature(one)]),
    ),
    apiVersion: fields.text("api_version", "v1"),
    creationTime: readCreationTime(fields),
  }
  fields.finish()
  return model
}

/** `model.yaml` as BentoML writes it, byte for byte. */
export function formatModelYaml(model: Model): string {
  return emitYaml({
    name: model.tag.name,
    version: model.tag.version,
    module: model.module,
    labels: asWritten(model.labels),
    options: asWritten(model.options),
    metadata: asWritten(model.metadata),
    context: {
      framework_name: model.context.frameworkName,
      framework_versions: asWritten(model.context.frameworkVersions),
      bentoml_version: model.context.bentomlVersion,
      python_version: model.context.pythonVersion,
    },
    signatures: Object.fromEntries(
      Object.entries(model.signatures).map(([name, signature]) => [name, formatSignature(signature)]),
    ),
    api_version: model.apiVersion,
    creation_time: model.creationTime,
  })
}

/** Name and version of a manifest, checked. For model.yaml and bento.yaml alike. */
export function readTag(fields: Fields): Tag {
  const part = (key: string, check: (text: string) => string): string => {
    const text = fields.text(key)
    try {
      return text === "" ? text : check(text)
    } catch (error) {
      fields.issue([key], error instanceof Error ? error.message : String(error))
      return text
    }
  }
  return { name: part("name", checkName), version: part("version", checkVersion) }
}

/** `creation_time` of a manifest, checked. For model.yaml and bento.yaml alike. */
export function readCreationTime(fields: Fields): string {
  const text = fields.text("creation_time")
  if (text !== "" && Number.isNaN(microsecondsOf(text))) {
    fields.issue(["creation_time"], `must be an ISO 8601 time, is ${JSON.stringify(text)}`)
  }
  return text
}

/** Writes a time as `creation_time` has it. A Date knows no microseconds: the last three digits are zeros. */
export function formatCreationTime(now: Date): string {
  return now.toISOString().replace(/Z$/, "000+00:00")
}

/** Microseconds since 1970 of a `creation_time`; NaN for what is none. Without an offset it is UTC. */
export function microsecondsOf(creationTime: string): number {
  const match = /^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)? ?(Z|[-+]\d\d:?\d\d)?$/.exec(
    creationTime,
  )
  if (match === null) return NaN
  const [, date = "", minutes = "", seconds = "00", fraction = "", offset = "Z"] = match
  const zone = offset.replace(/^([-+]\d\d)(\d\d)$/, "$1:$2")
  return (
    Date.parse(`${date}T${minutes}:${seconds}${zone}`) * 1000 + Number(fraction.slice(0, 6).padEnd(6, "0"))
  )
}

function readSignature(fields: Fields): Signature {
  const inputSpec = fields.get("input_spec")
  const outputSpec = fields.get("output_spec")
  return {
    batchable: fields.flag("batchable"),
    batchDim: readBatchDim(fields),
    ...(inputSpec === null ? {} : { inputSpec }),
    ...(outputSpec === null ? {} : { outputSpec }),
  }
}

function readBatchDim(fields: Fields): [number, number] {
  const value = fields.get("batch_dim") ?? 0
  const [input, output, ...rest]: readonly unknown[] = Array.isArray(value) ? value : [value, value]
  if (isAxis(input) && isAxis(output) && rest.length === 0) return [input, output]
  fields.issue(["batch_dim"], "must be an axis, or a list of two: of the inputs, of the outputs")
  return [0, 0]
}

/** Whether a value can be a batch axis. One from the end (-1) is legal in a store, but nobody is asked to write it. */
export function isAxis(value: unknown, min = -64): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= min && value < 64
}

function formatSignature(signature: Signature): object {
  return {
    batchable: signature.batchable,
    batch_dim: signature.batchable ? signature.batchDim : undefined,
    input_spec: signature.inputSpec,
    output_spec: signature.outputSpec,
  }
}

// ------------------------------------------------------------------------------------------------- tensors of a model

/** ONNX `TensorProto.DataType` of each dtype. */
const ELEM_TYPES: Readonly<Record<DType, number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int16: 5,
  int32: 6,
  int64: 7,
  string: 8,
  bool: 9,
  float16: 10,
  float64: 11,
  uint32: 12,
  uint64: 13,
}

/** The dtype of an ONNX element type; null for those that are not served (bfloat16, complex, float8, 4-bit). */
export function dtypeOf(elemType: number): DType | null {
  const found = Object.entries(ELEM_TYPES).find(([, number]) => number === elemType)
  return found === undefined ? null : (found[0] as DType) // the keys of ELEM_TYPES are all of DType
}

/**
 * Inputs and outputs of a signature as `options` has them; outputs that are no tensors (of ZipMap) are left out. Null when
 * the model says nothing of them (API v1), or nothing that could be checked against: then ask ONNX Runtime.
 */
export function tensorSpecs(
  model: Pick<Model, "options">,
  signature: string,
): { inputs: TensorSpec[]; outputs: TensorSpec[] } | null {
  const inputs = listAt(model.options, "input_specs", signature)
  const outputs = listAt(model.options, "output_specs", signature)
  if (inputs === null || outputs === null) return null
  const inputSpecs = inputs.map(parseValueInfo)
  const outputSpecs = outputs
    .filter((info) => at(info, "type", "tensorType") !== undefined)
    .map(parseValueInfo)
  if (!inputSpecs.every((spec) => spec !== null) || !outputSpecs.every((spec) => spec !== null)) return null
  return { inputs: inputSpecs, outputs: outputSpecs }
}

function parseValueInfo(info: unknown): TensorSpec | null {
  const name = at(info, "name")
  const elemType = at(info, "type", "tensorType", "elemType")
  const shape = at(info, "type", "tensorType", "shape")
  const dims = at(shape, "dim") ?? []
  const dtype = typeof elemType === "number" ? dtypeOf(elemType) : null
  if (typeof name !== "string" || dtype === null || !Array.isArray(dims) || shape === undefined) return null
  return { name, dtype, shape: (dims as unknown[]).map(parseDim) } // Array.isArray gives any[]
}

function parseDim(dim: unknown): number | string | null {
  const value = at(dim, "dimValue")
  const name = at(dim, "dimParam")
  const size = typeof value === "string" || typeof value === "number" ? Number(value) : NaN
  if (Number.isSafeInteger(size) && size >= 0) return size
  return typeof name === "string" && name !== "" ? name : null
}

function listAt(options: object, ...path: readonly string[]): unknown[] | null {
  const value = at(options, ...path)
  return Array.isArray(value) ? (value as unknown[]) : null // Array.isArray gives any[]
}

function at(value: unknown, ...path: readonly string[]): unknown {
  let found = value
  for (const key of path) {
    if (typeof found !== "object" || found === null || !Object.hasOwn(found, key)) return undefined
    found = (found as Record<string, unknown>)[key] // an object, by the line above
  }
  return found
}
