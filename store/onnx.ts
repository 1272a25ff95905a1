/** What an ONNX file says of itself, read without its weights; and its graph without ZipMap. Field numbers: onnx.proto3. */
import { open } from "node:fs/promises"
import { BentoError } from "./errors.ts"
import { dtypeOf, type TensorSpec } from "./model.ts"
import {
  BYTES,
  type Field,
  fieldLength,
  Message,
  VARINT,
  WireError,
  writeField,
  writeInt,
} from "./protobuf.ts"

export type OnnxType =
  | { readonly kind: "tensor"; readonly elemType: number; readonly shape: TensorSpec["shape"] | null }
  | { readonly kind: "sequence"; readonly element: OnnxType }
  | { readonly kind: "map"; readonly keyType: number; readonly value: OnnxType }
  | { readonly kind: "other" }

export interface OnnxValue {
  readonly name: string
  readonly type: OnnxType
}

/** A tensor whose bytes lie in another file, as the model writes it: to be checked before use. */
export interface ExternalData {
  readonly tensor: string
  readonly location: string
  readonly offset: bigint
  /** Null: to the end of the file. */
  readonly length: bigint | null
}

export interface ZipMap {
  readonly output: string
  readonly labels: readonly (string | number)[]
}

/** Who wrote a file, for which versions of the operators. */
export interface OnnxOrigin {
  readonly producer: string
  /** By domain. */
  readonly opsets: Readonly<Record<string, number>>
}

export interface OnnxInfo extends OnnxOrigin {
  readonly irVersion: number
  /** Without those that have an initializer: they are weights with a default. */
  readonly inputs: readonly OnnxValue[]
  readonly outputs: readonly OnnxValue[]
  readonly external: readonly ExternalData[]
  /** The ZipMaps that `removeZipMaps` takes out. */
  readonly zipMaps: readonly ZipMap[]
  /** Domains of operators that neither ONNX nor ONNX Runtime nor the file itself defines. */
  readonly customDomains: readonly string[]
}

/** Protobuf, and so ONNX, ends at 2 GiB; larger models keep their weights in files beside. */
const MAX_BYTES = 2 ** 31 - 1
const MAX_DEPTH = 32
const MAX_DIMS = 64

const KNOWN_DOMAINS = new Set([
  "",
  "ai.onnx",
  "ai.onnx.ml",
  "ai.onnx.training",
  "ai.onnx.preview",
  "ai.onnx.preview.training",
  "com.microsoft",
  "com.microsoft.nchwc",
  "com.ms.internal.nhwc",
])

/** Reads the file; throws IMPORT_FAILED naming it. */
export async function readOnnx(
  path: string,
  signal?: AbortSignal,
): Promise<{ bytes: Buffer; info: OnnxInfo }> {
  const file = await open(path, "r")
  try {
    const { size } = await file.stat()
    if (size > MAX_BYTES) {
      throw new BentoError("IMPORT_FAILED", `${path} is larger than 2 GiB, which no ONNX file can be`, {
        hint: "Save the weights as external data beside it.",
      })
    }
    const bytes = await file.readFile(signal === undefined ? {} : { signal })
    return { bytes, info: parseOnnx(bytes, path) }
  } finally {
    await file.close()
  }
}

/** `path` is for messages only. */
export function parseOnnx(bytes: Uint8Array, path: string): OnnxInfo {
  return explained(bytes, path, () => {
    const model = new Message(bytes)
    const graph = graphOf(model)
    const scan = scanModel(model)
    const initialized = new Set(scan.initializers)
    const values = (number: number): OnnxValue[] => [...graph.all(number)].map(readValueInfo)
    return {
      irVersion: Number(intAt(model, 1) ?? 0n),
      ...originOf(model),
      inputs: values(11).filter((input) => !initialized.has(input.name)),
      outputs: values(12),
      external: scan.external,
      zipMaps: findZipMaps(graph, scan.used).map(({ name, labels }) => ({ output: utf8(name), labels })),
      customDomains: [...scan.domains].filter(
        (name) => !KNOWN_DOMAINS.has(name) && !scan.functions.has(name),
      ),
    }
  })
}

function originOf(model: Message): OnnxOrigin {
  return {
    producer: [textAt(model, 2), textAt(model, 3)].filter((part) => part !== "").join(" "),
    opsets: Object.fromEntries(
      [...model.all(8)].map((opset) => [textAt(opset, 1) || "ai.onnx", Number(intAt(opset, 2) ?? 0n)]),
    ),
  }
}

/** Longer fields are the graph and functions: they are stepped over. */
const MAX_SHORT_FIELD = 1 << 16

/**
 * What `parseOnnx` knows of where a file comes from, read without its graph, however large that is. Null for what is
 * no ONNX file.
 */
export async function readOnnxOrigin(path: string): Promise<OnnxOrigin | null> {
  const file = await open(path, "r")
  try {
    const { size } = await file.stat()
    const short: Buffer[] = []
    const head = Buffer.alloc(16)
    for (let at = 0; at < size;) {
      const { bytesRead } = await file.read(head, 0, head.length, at)
      const length = fieldLength(head.subarray(0, bytesRead))
      if (length > size - at) return null
      if (length <= MAX_SHORT_FIELD) {
        const field = Buffer.alloc(length)
        await file.read(field, 0, length, at)
        short.push(field)
      }
      at += length
    }
    return originOf(new Message(Buffer.concat(short)))
  } catch (error) {
    if (error instanceof WireError || error instanceof Refused) return null
    throw error
  } finally {
    await file.close()
  }
}

/** The spec of a tensor; null for other types, unknown ranks, and dtypes that are not served. */
export function specOf(value: OnnxValue): TensorSpec | null {
  if (value.type.kind !== "tensor" || value.type.shape === null) return null
  const dtype = dtypeOf(value.type.elemType)
  return dtype === null ? null : { name: value.name, dtype, shape: value.type.shape }
}

/** An input or output in the protobuf-JSON form that BentoML keeps in `options`. */
export function formatOnnxValue(value: OnnxValue): object {
  return { name: value.name, type: formatType(value.type) }
}

function formatType(type: OnnxType): object {
  switch (type.kind) {
    case "tensor": {
      const dims = type.shape?.map((dim) =>
        dim === null ? {} : typeof dim === "string" ? { dimParam: dim } : { dimValue: String(dim) },
      )
      const shape = dims === undefined ? undefined : dims.length === 0 ? {} : { dim: dims }
      return { tensorType: { elemType: type.elemType, shape } }
    }
    case "sequence":
      return { sequenceType: { elemType: formatType(type.element) } }
    case "map":
      return { mapType: { keyType: type.keyType, valueType: formatType(type.value) } }
    case "other":
      return {}
  }
}

// ------------------------------------------------------------------------------------------------------------- ZipMap

/**
 * Takes the ZipMaps at a graph's outputs out: each output keeps its name and becomes the tensor [N, classes] that ZipMap
 * was given, by an Identity in its place. All other bytes stay as they are; without such a ZipMap, all of them do.
 */
export function removeZipMaps(bytes: Uint8Array): { bytes: Uint8Array; removed: ZipMap[] } {
  return explained(bytes, "the model", () => {
    const model = new Message(bytes)
    const graph = graphOf(model)
    const found = findZipMaps(graph, scanModel(model).used)
    if (found.length === 0) return { bytes, removed: [] }
    const written = [...model.fields()].map((field) =>
      field.number === 7 && field.wire === BYTES
        ? writeField(7, replaceZipMaps(model.sub(field), found))
        : model.bytes.subarray(field.at, field.end),
    )
    const hasOpset = [...model.all(8)].some((opset) => ["", "ai.onnx"].includes(textAt(opset, 1)))
    if (!hasOpset) written.push(writeField(8, Buffer.concat([writeField(1, ""), writeInt(2, 13)])))
    return {
      bytes: Buffer.concat(written),
      removed: found.map(({ name, labels }) => ({ output: utf8(name), labels })),
    }
  })
}

interface FoundZipMap {
  /** Offset of the node, to find it again. */
  readonly at: number
  /** One character per byte, as all names here. */
  readonly name: string
  readonly input: string
  readonly labels: readonly (string | number)[]
}

/** Those whose output is an output of the graph and nothing else takes. */
function findZipMaps(graph: Message, used: ReadonlySet<string>): FoundZipMap[] {
  const outputs = new Set([...graph.all(12)].map((value) => binaryAt(value, 1)))
  const found: FoundZipMap[] = []
  for (const field of graph.fields()) {
    if (field.number !== 1 || field.wire !== BYTES) continue
    const node = graph.sub(field)
    if (textAt(node, 4) !== "ZipMap" || textAt(node, 7) !== "ai.onnx.ml") continue
    const [input, ...moreInputs] = [...node.all(1)].map((name) => name.binary())
    const [name, ...moreOutputs] = [...node.all(2)].map((output) => output.binary())
    const labels = labelsOf(node)
    if (input === undefined || name === undefined || moreInputs.length + moreOutputs.length > 0) continue
    if (outputs.has(name) && !used.has(name) && labels.length > 0)
      found.push({ at: field.at, name, input, labels })
  }
  return found
}

function labelsOf(node: Message): (string | number)[] {
  const labels: (string | number)[] = []
  for (const attribute of node.all(5)) {
    const name = textAt(attribute, 1)
    for (const field of attribute.fields()) {
      if (name === "classlabels_strings" && field.number === 9 && field.wire === BYTES) {
        labels.push(attribute.sub(field).text())
      } else if (name === "classlabels_int64s" && field.number === 8) {
        for (const label of attribute.ints(field)) labels.push(numberOf(label) ?? String(label))
      }
    }
  }
  return labels
}

function replaceZipMaps(graph: Message, found: readonly FoundZipMap[]): Buffer {
  const byOutput = new Map(found.map((zipMap) => [zipMap.name, zipMap]))
  const nodes = new Set(found.map(({ at }) => at))
  const firstDims = firstDimsOf(graph, new Set(found.map(({ input }) => input)))
  const written = [...graph.fields()].map((field) => {
    const whole = graph.bytes.subarray(field.at, field.end)
    if (field.wire !== BYTES) return whole
    const part = graph.sub(field)
    if (field.number === 1) return nodes.has(field.at) ? writeField(1, identityOf(part)) : whole
    if (field.number !== 12 && field.number !== 13) return whole
    const zipMap = byOutput.get(binaryAt(part, 1))
    if (zipMap === undefined) return whole
    const firstDim = firstDims.get(zipMap.input) ?? Buffer.alloc(0)
    return writeField(field.number, withType(part, tensorType(firstDim, zipMap.labels.length)))
  })
  return Buffer.concat(written)
}

/** The node with its name, input and output, as Identity of the default domain. */
function identityOf(node: Message): Buffer {
  const kept = [...node.fields()].filter((field) => field.number <= 3 || field.number === 6)
  return Buffer.concat([
    ...kept.map((field) => node.bytes.subarray(field.at, field.end)),
    writeField(4, "Identity"),
  ])
}

function withType(value: Message, type: Buffer): Buffer {
  const kept = [...value.fields()].filter((field) => field.number !== 2)
  return Buffer.concat([
    ...kept.map((field) => value.bytes.subarray(field.at, field.end)),
    writeField(2, type),
  ])
}

/** float [N, classes]; N as the dimension stands in the file. */
function tensorType(firstDim: Uint8Array, classes: number): Buffer {
  const shape = Buffer.concat([writeField(1, firstDim), writeField(1, writeInt(1, classes))])
  return writeField(1, Buffer.concat([writeInt(1, 1), writeField(2, shape)]))
}

/** First dimensions of these tensors, where the graph declares them with two. */
function firstDimsOf(graph: Message, names: ReadonlySet<string>): Map<string, Uint8Array> {
  const dims = new Map<string, Uint8Array>()
  for (const value of [...graph.all(11), ...graph.all(12), ...graph.all(13)]) {
    const name = binaryAt(value, 1)
    if (!names.has(name)) continue
    for (const type of value.all(2)) {
      for (const tensor of type.all(1)) {
        const [first, second, third] = [...tensor.all(2)].flatMap((shape) => [...shape.all(1)])
        if (first === undefined || second === undefined || third !== undefined) continue
        dims.set(name, first.bytes.subarray(first.start, first.end))
      }
    }
  }
  return dims
}

// --------------------------------------------------------------------------------------------------------- the walk

/** What lies anywhere in the model, in sub-graphs of If, Loop and Scan, in functions and in training info too. */
interface Scan {
  readonly initializers: Set<string>
  readonly external: ExternalData[]
  /** Inputs of nodes and outputs of sub-graphs, one character per byte. */
  readonly used: Set<string>
  readonly domains: Set<string>
  readonly functions: Set<string>
}

function scanModel(model: Message): Scan {
  const scan: Scan = {
    initializers: new Set(),
    external: [],
    used: new Set(),
    domains: new Set(),
    functions: new Set(),
  }
  for (const field of model.fields()) {
    if (field.wire !== BYTES) continue
    const part = model.sub(field)
    if (field.number === 7) scanGraph(part, scan, 0)
    if (field.number === 20)
      for (const number of [1, 2]) for (const graph of part.all(number)) scanGraph(graph, scan, 1)
    if (field.number === 25) {
      scan.functions.add(textAt(part, 10))
      for (const node of part.all(7)) scanNode(node, scan, 1)
      for (const attribute of part.all(11)) scanAttribute(attribute, scan, 1)
    }
  }
  return scan
}

function scanGraph(graph: Message, scan: Scan, depth: number): void {
  if (depth > MAX_DEPTH) throw new WireError(`graphs are nested deeper than ${MAX_DEPTH} levels`, graph.start)
  for (const field of graph.fields()) {
    if (field.wire !== BYTES) continue
    const part = graph.sub(field)
    if (field.number === 1) scanNode(part, scan, depth)
    if (field.number === 5) scanTensor(part, scan, depth === 0)
    if (field.number === 15) scanSparse(part, scan, depth === 0)
    if (field.number === 12 && depth > 0) scan.used.add(binaryAt(part, 1))
  }
}

function scanNode(node: Message, scan: Scan, depth: number): void {
  for (const field of node.fields()) {
    if (field.wire !== BYTES) continue
    const part = node.sub(field)
    if (field.number === 1) scan.used.add(part.binary())
    if (field.number === 4 && part.text() === "EPContext") {
      throw refused("it holds a blob compiled for one machine (operator EPContext)")
    }
    if (field.number === 5) scanAttribute(part, scan, depth)
    if (field.number === 7) scan.domains.add(part.text())
  }
}

function scanAttribute(attribute: Message, scan: Scan, depth: number): void {
  for (const field of attribute.fields()) {
    if (field.wire !== BYTES) continue
    const part = attribute.sub(field)
    if (field.number === 5 || field.number === 10) scanTensor(part, scan, false)
    if (field.number === 6 || field.number === 11) scanGraph(part, scan, depth + 1)
    if (field.number === 22 || field.number === 23) scanSparse(part, scan, false)
  }
}

function scanSparse(sparse: Message, scan: Scan, isInitializer: boolean): void {
  for (const values of sparse.all(1)) scanTensor(values, scan, isInitializer)
  for (const indices of sparse.all(2)) scanTensor(indices, scan, false)
}

function scanTensor(tensor: Message, scan: Scan, isInitializer: boolean): void {
  let name = ""
  let isExternal = false
  const entries: [key: string, value: string][] = []
  for (const field of tensor.fields()) {
    if (field.number === 8 && field.wire === BYTES) name = tensor.sub(field).text()
    if (field.number === 14 && field.wire === VARINT) isExternal = tensor.int(field) === 1n
    if (field.number === 13 && field.wire === BYTES) {
      const entry = tensor.sub(field)
      entries.push([textAt(entry, 1), textAt(entry, 2)])
    }
  }
  if (isInitializer) scan.initializers.add(name)
  if (isExternal || entries.length > 0) scan.external.push(readExternal(name, entries))
}

function readExternal(
  tensor: string,
  entries: readonly (readonly [key: string, value: string])[],
): ExternalData {
  const known = new Map<string, string>()
  for (const [key, value] of entries) {
    if (!["location", "offset", "length", "checksum"].includes(key)) {
      throw refused(`external data of tensor ${quote(tensor)} has the unknown key ${quote(key)}`)
    }
    if (known.has(key))
      throw refused(`external data of tensor ${quote(tensor)} has the key ${quote(key)} twice`)
    known.set(key, value)
  }
  const location = known.get("location")
  if (location === undefined) throw refused(`external data of tensor ${quote(tensor)} has no location`)
  const size = (key: string): bigint | null => {
    const text = known.get(key)
    if (text === undefined) return null
    if (/^\d{1,19}$/.test(text)) return BigInt(text)
    throw refused(`external data of tensor ${quote(tensor)} has the ${key} ${quote(text)}, which is no size`)
  }
  return { tensor, location, offset: size("offset") ?? 0n, length: size("length") }
}

// ------------------------------------------------------------------------------------------------------------- types

function readValueInfo(value: Message): OnnxValue {
  return { name: textAt(value, 1), type: readType(lastOf(value, 2), 0) }
}

function readType(type: Message | null, depth: number): OnnxType {
  if (depth > MAX_DEPTH)
    throw new WireError(`types are nested deeper than ${MAX_DEPTH} levels`, type?.start ?? 0)
  for (const field of type?.fields() ?? []) {
    if (type === null || field.wire !== BYTES) continue
    const part = type.sub(field)
    if (field.number === 1) return { kind: "tensor", elemType: elemTypeAt(part), shape: readShape(part) }
    if (field.number === 4) return { kind: "sequence", element: readType(lastOf(part, 1), depth + 1) }
    if (field.number === 5) {
      return { kind: "map", keyType: elemTypeAt(part), value: readType(lastOf(part, 2), depth + 1) }
    }
  }
  return { kind: "other" }
}

function elemTypeAt(part: Message): number {
  return numberOf(intAt(part, 1) ?? 0n) ?? 0
}

function readShape(tensor: Message): TensorSpec["shape"] | null {
  const shape = lastOf(tensor, 2)
  if (shape === null) return null
  const dims = [...shape.all(1)]
  if (dims.length > MAX_DIMS) throw new WireError(`a tensor has ${dims.length} dimensions`, shape.start)
  return dims.map((dim) => {
    const value = intAt(dim, 1) ?? -1n
    const size = numberOf(value)
    if (size === null) throw refused(`a dimension of ${value} is no size`)
    return size >= 0 ? size : textAt(dim, 2) || null
  })
}

// ----------------------------------------------------------------------------------------------------------- helpers

function graphOf(model: Message): Message {
  const [graph, second] = model.all(7)
  if (graph === undefined)
    throw refused(model.end === 0 ? "the file is empty" : "it is not an ONNX model: it holds no graph")
  if (second !== undefined) throw refused("it is not an ONNX model: it holds two graphs")
  return graph
}

/** As protobuf has it, the last of several values counts. */
function lastOf(message: Message, number: number): Message | null {
  return [...message.all(number)].at(-1) ?? null
}

function textAt(message: Message, number: number): string {
  return lastOf(message, number)?.text() ?? ""
}

function binaryAt(message: Message, number: number): string {
  return lastOf(message, number)?.binary() ?? ""
}

function intAt(message: Message, number: number): bigint | null {
  let found: Field | null = null
  for (const field of message.fields()) if (field.number === number && field.wire === VARINT) found = field
  return found === null ? null : message.int(found)
}

function numberOf(value: bigint): number | null {
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : null
}

function utf8(binary: string): string {
  return Buffer.from(binary, "latin1").toString("utf8")
}

function quote(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 97)}...` : text)
}

/** Thrown inside; `explained` puts the file's name before it. */
class Refused extends Error {}

function refused(message: string): Refused {
  return new Refused(message)
}

function explained<T>(bytes: Uint8Array, path: string, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (error instanceof Refused) throw new BentoError("IMPORT_FAILED", `${path}: ${error.message}`)
    if (error instanceof WireError) {
      throw new BentoError("IMPORT_FAILED", `${path} is not an ONNX model, or is cut off: ${error.message}`, {
        hint: hintOf(bytes),
        cause: error,
      })
    }
    throw error
  }
}

function hintOf(bytes: Uint8Array): string {
  const head = Buffer.from(bytes.subarray(0, 200)).toString("latin1")
  if (head.startsWith("version https://git-lfs")) return "It is a Git LFS pointer: run `git lfs pull`."
  if (head.slice(4, 8) === "ORTM")
    return "It is in ONNX Runtime's own format (.ort); import the .onnx that it was made of."
  if (/^[\t\n\r\x20-\x7e]*$/.test(head)) return "It is a text file."
  return "Was it copied or downloaded completely?"
}
