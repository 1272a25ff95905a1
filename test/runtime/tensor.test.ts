import assert from "node:assert/strict"
import { describe, test } from "node:test"
import fc from "fast-check"
import {
  type DType,
  type Tensor,
  byteLength,
  concat,
  elementCount,
  emptyData,
  formatShape,
  makeTensor,
  split,
  tensorProblem,
} from "../../runtime/tensor.ts"

const DTYPES: readonly DType[] = [
  "float16",
  "float32",
  "float64",
  "int8",
  "int16",
  "int32",
  "int64",
  "uint8",
  "uint16",
  "uint32",
  "uint64",
  "bool",
  "string",
]

/** A tensor whose elements are all different: 0, 1, 2, … */
function counting(dtype: DType, shape: readonly number[], from = 0): Tensor {
  const data = emptyData(
    dtype,
    shape.reduce((product, size) => product * size, 1),
  )
  for (let index = 0; index < data.length; index++) {
    const value = from + index
    if (Array.isArray(data)) data[index] = String(value)
    else if (data instanceof BigInt64Array || data instanceof BigUint64Array) data[index] = BigInt(value)
    else data[index] = value % 251
  }
  return makeTensor(dtype, shape, data)
}

const whole = (tensor: Tensor, axis: number) => ({ tensor, from: 0, to: tensor.shape[axis] ?? 0 })

describe("concat and split", () => {
  const shapes = fc
    .record({
      dtype: fc.constantFrom(...DTYPES),
      before: fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 2 }),
      after: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 2 }),
      rows: fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 6 }),
    })
    .map(({ dtype, before, after, rows }) => ({ dtype, axis: before.length, rows, before, after }))

  test("split undoes concat, for every dtype, axis, rank and number of rows", () => {
    fc.assert(
      fc.property(shapes, ({ dtype, axis, rows, before, after }) => {
        const pieces = rows.map((count, index) => counting(dtype, [...before, count, ...after], 17 * index))
        const joined = concat(
          pieces.map((piece) => whole(piece, axis)),
          axis,
        )
        assert.equal(tensorProblem(joined), null)
        assert.deepEqual(split(joined, axis, rows), pieces)
      }),
    )
  })

  test("concat of ranges is concat of the pieces that split would cut", () => {
    fc.assert(
      fc.property(shapes, fc.nat(), fc.nat(), ({ dtype, axis, before, after }, a, b) => {
        const tensor = counting(dtype, [...before, 7, ...after])
        const [from, to] = [Math.min(a % 8, b % 8), Math.max(a % 8, b % 8)]
        const middle = split(tensor, axis, [from, to - from, 7 - to])[1]
        assert.deepEqual(concat([{ tensor, from, to }], axis), middle)
      }),
    )
  })

  test("rows along axis 1 are taken from every block", () => {
    const a = makeTensor("float32", [2, 2], Float32Array.of(1, 2, 3, 4))
    const b = makeTensor("float32", [2, 1], Float32Array.of(5, 6))
    const joined = concat([whole(a, 1), whole(b, 1)], 1)
    assert.deepEqual(
      [joined.shape, [...joined.data]],
      [
        [2, 3],
        [1, 2, 5, 3, 4, 6],
      ],
    )
  })

  test("the result of concat owns its buffer, which holds nothing else", () => {
    const backing = new Float32Array(100)
    const view = makeTensor("float32", [2, 2], backing.subarray(10, 14))
    const joined = concat([whole(view, 0)], 0)
    assert.ok(joined.dtype === "float32" && joined.data.buffer !== backing.buffer)
    assert.equal(joined.data.buffer.byteLength, 16)
  })

  test("nobody sees another's rows through a piece's buffer", () => {
    for (const axis of [0, 1]) {
      const pieces = split(makeTensor("float32", [4, 4], new Float32Array(16)), axis, [1, 1, 2])
      for (const piece of pieces) {
        assert.ok(piece.dtype === "float32")
        assert.equal(piece.data.buffer.byteLength, piece.data.byteLength)
      }
    }
  })

  test("what does not fit together is an error, never a wrong slice", () => {
    const a = counting("float32", [2, 3])
    assert.throws(() => concat([], 0), /no tensors/)
    assert.throws(() => concat([whole(a, 0), whole(counting("float32", [2, 4]), 0)], 0), /concat of/)
    assert.throws(() => concat([whole(a, 0), whole(counting("float64", [2, 3]), 0)], 0), /concat of/)
    assert.throws(() => concat([whole(a, 0), whole(counting("float32", [2, 3, 1]), 0)], 0), /concat of/)
    assert.throws(() => concat([whole(a, 0)], 2), /no axis 2/)
    assert.throws(() => concat([{ tensor: a, from: 1, to: 3 }], 0), /rows 1 to 3 of 2/)
    assert.throws(() => concat([{ tensor: a, from: 2, to: 1 }], 0))
    assert.throws(() => split(a, 0, [1, 2]), /split of 2 rows into 3/)
    assert.throws(() => split(a, 5, [1]), /split of undefined/)
  })
})

describe("checks", () => {
  test("elements are counted exactly, and only in safe integers", () => {
    assert.equal(elementCount([]), 1)
    assert.equal(elementCount([3, 4]), 12)
    assert.equal(elementCount([3, 0]), 0)
    assert.equal(elementCount([2 ** 30, 2 ** 30]), null)
    assert.equal(elementCount([-1]), null)
    assert.equal(elementCount([1.5]), null)
    assert.equal(elementCount([Number.NaN]), null)
    assert.equal(elementCount([2 ** 53]), null)
  })

  test("shape, dtype and data must agree", () => {
    assert.equal(tensorProblem(counting("int64", [2, 3])), null)
    assert.match(
      tensorProblem(makeTensor("float32", [2, 3], new Float32Array(5))) ?? "",
      /has 5 elements.*needs 6/,
    )
    assert.match(tensorProblem(makeTensor("float32", [1], new Float64Array(1))) ?? "", /holds other data/)
    assert.match(tensorProblem(makeTensor("string", [1], new Float64Array(1))) ?? "", /holds other data/)
    assert.match(
      tensorProblem(makeTensor("float32", [-1], new Float32Array(0))) ?? "",
      /impossible shape \[-1\]/,
    )
  })

  test("bytes: typed arrays exactly, strings by their characters", () => {
    assert.equal(byteLength(counting("float16", [3])), 6)
    assert.equal(byteLength(counting("int64", [3])), 24)
    assert.equal(byteLength(makeTensor("string", [2], ["ab", ""])), 20)
  })

  test("shapes print as people write them", () => {
    assert.equal(formatShape(["N", null, 4]), "[N, ?, 4]")
    assert.equal(formatShape([]), "[]")
  })
})
