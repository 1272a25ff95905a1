/** Between dtypes, where nothing of a value's kind is lost (NumPy's `same_kind`): what models ask and bodies bring differ. */
import { type DType, type Tensor, emptyData, makeTensor } from "./tensor.ts"

const KIND: Record<DType, "bool" | "integer" | "float" | "string"> = {
  float16: "float",
  float32: "float",
  float64: "float",
  int8: "integer",
  int16: "integer",
  int32: "integer",
  int64: "integer",
  uint8: "integer",
  uint16: "integer",
  uint32: "integer",
  uint64: "integer",
  bool: "bool",
  string: "string",
}
const ORDER = ["bool", "integer", "float"]

/**
 * The same values as another dtype: booleans become integers, integers floats, and within a kind any width will do as
 * long as every value fits. null where that cannot be: a float never becomes an integer.
 */
export function castTensor(tensor: Tensor, dtype: DType): Tensor | null {
  if (tensor.dtype === dtype) return tensor
  const from = ORDER.indexOf(KIND[tensor.dtype])
  const to = ORDER.indexOf(KIND[dtype])
  // float16 is held as raw bits.
  if (from === -1 || to < from || tensor.dtype === "float16" || dtype === "float16") return null
  const source: ArrayLike<number | bigint | string> = tensor.data
  const data = emptyData(dtype, source.length)
  if (Array.isArray(data)) return null
  for (let index = 0; index < source.length; index++) {
    const value = source[index] ?? 0
    if (data instanceof BigInt64Array || data instanceof BigUint64Array) {
      const integer = BigInt(value)
      data[index] = integer
      if (data[index] !== integer) return null
    } else {
      const number = Number(value)
      data[index] = number
      const fits =
        KIND[dtype] === "integer" ? data[index] === number : isFinite(data[index] ?? 0) || !isFinite(number)
      if (!fits) return null
    }
  }
  return makeTensor(dtype, tensor.shape, data)
}
