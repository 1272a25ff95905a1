/** Tensors as they travel between descriptors, the batcher and the worker. No ONNX type leaks out of worker.ts. */
import type { DType } from "../store/model.ts"

export type { DType }

/** The JavaScript array that holds each dtype. bool: one byte, 0 or 1. float16: raw bits. */
export interface TensorData {
  float16: Uint16Array
  float32: Float32Array
  float64: Float64Array
  int8: Int8Array
  int16: Int16Array
  int32: Int32Array
  int64: BigInt64Array
  uint8: Uint8Array
  uint16: Uint16Array
  uint32: Uint32Array
  uint64: BigUint64Array
  bool: Uint8Array
  string: string[]
}

/** A dense tensor in row-major order: `data.length` is the product of `shape`. */
export type Tensor<D extends DType = DType> = {
  [K in D]: { readonly dtype: K; readonly shape: readonly number[]; readonly data: TensorData[K] }
}[D]

/** Inputs or outputs of a model by name. */
export type Tensors = Readonly<Record<string, Tensor>>

/** Rows `from` (included) to `to` (excluded) of a tensor, along the batch axis. */
export interface RowRange {
  readonly tensor: Tensor
  readonly from: number
  readonly to: number
}

const ARRAYS = {
  float16: Uint16Array,
  float32: Float32Array,
  float64: Float64Array,
  int8: Int8Array,
  int16: Int16Array,
  int32: Int32Array,
  int64: BigInt64Array,
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
} as const

export const DTYPES: readonly string[] = [...Object.keys(ARRAYS), "string"]

/** A tensor of a dtype that is known only at run time. */
export function makeTensor(dtype: DType, shape: readonly number[], data: TensorData[DType]): Tensor {
  // The caller has paired dtype and data; the union cannot express that for a dtype in a variable.
  return { dtype, shape, data } as Tensor
}

/** Zeros (or empty strings) for `length` elements. */
export function emptyData(dtype: DType, length: number): TensorData[DType] {
  return dtype === "string" ? Array.from({ length }, () => "") : new ARRAYS[dtype](length)
}

/** A dtype's view of `length` elements of a buffer; not for strings. */
export function dataOver(
  dtype: DType,
  buffer: ArrayBuffer,
  byteOffset: number,
  length: number,
): TensorData[DType] {
  if (dtype === "string") throw new Error("strings have no buffer")
  return new ARRAYS[dtype](buffer, byteOffset, length)
}

/** Does this array hold elements of this dtype? */
export function isDataOf(dtype: DType, data: unknown): boolean {
  return dtype === "string" ? Array.isArray(data) : data instanceof ARRAYS[dtype]
}

/** How many elements a shape holds; null when a dimension is no size, or the product is no safe integer. */
export function elementCount(shape: readonly number[]): number | null {
  let count = 1
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) return null
    count *= size
    if (!Number.isSafeInteger(count)) return null
  }
  return count
}

/** What is wrong with a tensor in itself, as a phrase; null when data, dtype and shape agree exactly. */
export function tensorProblem(tensor: Tensor): string | null {
  const count = elementCount(tensor.shape)
  if (count === null) return `has the impossible shape ${formatShape(tensor.shape)}`
  if (!isDataOf(tensor.dtype, tensor.data)) return `is said to be ${tensor.dtype} but holds other data`
  if (tensor.data.length !== count) {
    return `has ${tensor.data.length} elements, but its shape ${formatShape(tensor.shape)} needs ${count}`
  }
  return null
}

/** Bytes that a tensor's elements take. Strings count two bytes a character, and eight for each reference. */
export function byteLength(tensor: Tensor): number {
  if (tensor.dtype !== "string") return tensor.data.byteLength
  let bytes = tensor.data.length * 8
  for (const text of tensor.data) bytes += text.length * 2
  return bytes
}

/** `[3, 4]`; free dimensions as their name or `?`. */
export function formatShape(shape: readonly (number | string | null)[]): string {
  return `[${shape.map((size) => size ?? "?").join(", ")}]`
}

/** Is this a shape that the model declares? Free dimensions take any size, and so does the batch axis. */
export function shapeFits(
  shape: readonly number[],
  expected: readonly (number | string | null)[],
  batchAxis: number | null,
): boolean {
  // Without dimensions a graph may mean a scalar or any rank; ONNX Runtime knows.
  if (expected.length === 0 && batchAxis === null) return true
  if (shape.length !== expected.length) return false
  return expected.every(
    (size, axis) => typeof size !== "number" || size === shape[axis] || axis === batchAxis,
  )
}

/**
 * One tensor out of row ranges of others, in order, along `axis`. Each element is written once, into a new buffer
 * that the result owns alone. All must have one dtype and, but for `axis`, one shape.
 */
export function concat(ranges: readonly RowRange[], axis: number): Tensor {
  const [first] = ranges
  if (first === undefined) throw new Error("concat of no tensors")
  const { dtype, shape } = first.tensor
  if (axis < 0 || axis >= shape.length) throw new Error(`no axis ${axis} in ${formatShape(shape)}`)
  let rows = 0
  for (const range of ranges) {
    if (range.tensor.dtype !== dtype || !sameButAxis(range.tensor.shape, shape, axis)) {
      throw new Error(
        `concat of ${dtype} ${formatShape(shape)} with ${range.tensor.dtype} ${formatShape(range.tensor.shape)}`,
      )
    }
    rows += range.to - range.from
  }
  const [outer, inner] = around(shape, axis)
  const data = emptyData(dtype, outer * rows * inner)
  let row = 0
  for (const { tensor, from, to } of ranges) {
    const size = tensor.shape[axis] ?? 0
    if (from < 0 || to > size || from > to) throw new Error(`rows ${from} to ${to} of ${size}`)
    for (let block = 0; block < outer; block++) {
      const source = block * size * inner
      copyCells(tensor.data, source + from * inner, source + to * inner, data, (block * rows + row) * inner)
    }
    row += to - from
  }
  return makeTensor(dtype, replaced(shape, axis, rows), data)
}

/**
 * The reverse of `concat`: cuts a tensor along `axis` into pieces of the given numbers of rows, which must add up.
 * Each piece owns its buffer: who gets it can neither see nor change another's rows.
 */
export function split(tensor: Tensor, axis: number, rows: readonly number[]): Tensor[] {
  const { dtype, shape } = tensor
  const size = shape[axis]
  let sum = 0
  for (const count of rows) sum += count
  if (size !== sum) throw new Error(`split of ${size} rows into ${sum}`)
  if (rows.length === 1) return [tensor]
  const [outer, inner] = around(shape, axis)
  let row = 0
  return rows.map((count) => {
    const from = row
    row += count
    const pieceShape = replaced(shape, axis, count)
    if (outer === 1) return makeTensor(dtype, pieceShape, sliceCells(tensor.data, from * inner, row * inner))
    const data = emptyData(dtype, outer * count * inner)
    for (let block = 0; block < outer; block++) {
      const source = block * sum * inner
      copyCells(tensor.data, source + from * inner, source + row * inner, data, block * count * inner)
    }
    return makeTensor(dtype, pieceShape, data)
  })
}

/** How many blocks lie before an axis, and how many elements one row along it has within a block. */
function around(shape: readonly number[], axis: number): [outer: number, inner: number] {
  let outer = 1
  let inner = 1
  for (let index = 0; index < shape.length; index++) {
    if (index < axis) outer *= shape[index] ?? 1
    if (index > axis) inner *= shape[index] ?? 1
  }
  return [outer, inner]
}

function sameButAxis(a: readonly number[], b: readonly number[], axis: number): boolean {
  if (a === b) return true
  if (a.length !== b.length) return false
  for (let index = 0; index < a.length; index++) if (index !== axis && a[index] !== b[index]) return false
  return true
}

function replaced(shape: readonly number[], axis: number, size: number): number[] {
  const result = shape.slice()
  result[axis] = size
  return result
}

function copyCells(
  source: TensorData[DType],
  from: number,
  to: number,
  target: TensorData[DType],
  offset: number,
): void {
  if (Array.isArray(source)) {
    if (!Array.isArray(target)) throw new Error("strings into numbers")
    for (let index = from; index < to; index++) target[offset + index - from] = source[index] ?? ""
    return
  }
  // Both are of one dtype, hence of one class; `set` and `subarray` act alike in all of them.
  const cells = source as Float32Array
  const into = target as Float32Array
  into.set(from === 0 && to === cells.length ? cells : cells.subarray(from, to), offset)
}

function sliceCells(source: TensorData[DType], from: number, to: number): TensorData[DType] {
  return source.slice(from, to)
}
