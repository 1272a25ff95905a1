import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { describe, test } from "node:test"
import { promisify } from "node:util"
import fc from "fast-check"
import { ServeError } from "../../runtime/errors.ts"
import type { DType, Tensor } from "../../runtime/tensor.ts"
import {
  formatTensor,
  formatTensors,
  fromNested,
  parseJson,
  parseTensor,
  parseTensors,
  stringifyJson,
  toNested,
} from "../../runtime/tensor-json.ts"

const parse = (text: string, dtype: DType | null = "float32"): Tensor => parseTensor(Buffer.from(text), dtype)

const refusal = (run: () => unknown): ServeError => {
  try {
    run()
  } catch (error) {
    assert.ok(error instanceof ServeError, `not a ServeError: ${String(error)}`)
    assert.deepEqual([error.status, error.code], [400, "BAD_INPUT"])
    return error
  }
  throw new assert.AssertionError({ message: "nothing was refused" })
}

describe("reading a tensor", () => {
  test("rows become one flat array and a shape", () => {
    assert.deepEqual(parse(" [ [5.9, 3 ,5.1,1.8],[1,2,3,4e0] ]\n"), {
      dtype: "float32",
      shape: [2, 4],
      data: Float32Array.of(5.9, 3, 5.1, 1.8, 1, 2, 3, 4),
    })
  })

  test("a single value has no dimensions, empty arrays have dimensions of 0", () => {
    assert.deepEqual(parse("3").shape, [])
    assert.deepEqual(parse("[]").shape, [0])
    assert.deepEqual(parse("[[],[]]").shape, [2, 0])
    assert.deepEqual(parse("[[[]]]").shape, [1, 1, 0])
  })

  test("numbers are read exactly as JSON.parse reads them", () => {
    const number = fc.oneof(
      fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => JSON.stringify(value)),
      fc.stringMatching(/^-?(0|[1-9]\d{0,25})(\.\d{1,25})?([eE][+-]?\d{1,2})?$/),
    )
    fc.assert(
      fc.property(
        fc.array(number, { minLength: 1, maxLength: 5 }),
        fc.constantFrom(",", ", ", " ,\n"),
        (texts, comma) => {
          const text = `[${texts.join(comma)}]`
          const expected = JSON.parse(text) as number[]
          fc.pre(expected.every(Number.isFinite))
          const tensor = parse(text, "float64")
          assert.ok(tensor.dtype === "float64")
          const { data } = tensor
          expected.forEach((value, index) =>
            assert.ok(Object.is(data[index], value), `${texts[index]} was read as ${data[index]}`),
          )
        },
      ),
      { numRuns: 2000 },
    )
  })

  test("any array of rows reads as its rows", () => {
    const rows = fc.integer({ min: 1, max: 5 }).chain((width) =>
      fc.array(
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { minLength: width, maxLength: width }),
        {
          minLength: 1,
          maxLength: 20,
        },
      ),
    )
    fc.assert(
      fc.property(rows, fc.constantFrom(0, 1, 2), (values, indent) => {
        const tensor = parse(JSON.stringify(values, null, indent))
        assert.deepEqual(tensor.shape, [values.length, values[0]?.length])
        assert.ok(tensor.dtype === "float32")
        // JSON has one zero only when JSON.stringify writes it.
        assert.deepEqual(
          [...tensor.data],
          values.flat().map((value) => value + 0),
        )
      }),
    )
  })

  test("what JSON.parse refuses is refused, whatever the text", () => {
    const text = fc.oneof(
      fc.json(),
      fc.string(),
      fc.stringMatching(/^[[\]{},:"0-9.eE+\-truefalsnul \\\n]{0,20}$/),
    )
    fc.assert(
      fc.property(text, (candidate) => {
        const bytes = Buffer.from(candidate)
        let value: unknown
        try {
          value = JSON.parse(bytes.toString())
        } catch {
          const { message, detail } = refusal(() => parseJson(bytes))
          assert.match(message, /not valid JSON: .* at line \d+, column \d+/)
          assert.equal(typeof (detail as { offset: number }).offset, "number")
          refusal(() => parseTensor(bytes, null))
          return
        }
        assert.deepEqual(parseJson(bytes), value)
      }),
      { numRuns: 3000 },
    )
  })

  test("an uneven nesting is refused with its place", () => {
    const cases = {
      "[[1,2],[3]]": "received 1 elements at [1], where those before have 2",
      "[[1,2],[3,4,5]]": "received 3 elements at [1], where those before have 2",
      "[1,[2]]": "received an array at [1], where those before have a single value",
      "[[1],2]": "received a single value at [1], where those before have an array",
      "[[1],[]]": "received 0 elements at [1], where those before have 1",
      "[[],1]": "received a single value at [1], where those before have an array",
      "[[],[[]]]": "received an array at [1][0], where those before have a single value",
    }
    for (const [text, message] of Object.entries(cases)) {
      assert.equal(refusal(() => parse(text)).message, `the arrays are uneven: ${message}`)
    }
  })

  test("a value of the wrong kind is refused: what was expected, what was received, and where", () => {
    const cases: [string, DType, string][] = [
      ['[["a",2]]', "float32", "expected float32 numbers, received a string at [0][0]"],
      ["[[1,true]]", "float32", "expected float32 numbers, received a boolean at [0][1]"],
      ["[[1,{}]]", "float32", "expected float32 numbers, received an object at [0][1]"],
      ["[1,null]", "int32", "expected int32 integers (-2147483648 to 2147483647), received null at [1]"],
      ["[1.5]", "int32", "expected int32 integers (-2147483648 to 2147483647), received 1.5 at [0]"],
      ["[[1,2],[3,256]]", "uint8", "expected uint8 integers (0 to 255), received 256 at [1][1]"],
      ["[-1]", "uint64", "expected uint64 integers (0 to 18446744073709551615), received -1 at [0]"],
      [
        "9223372036854775808",
        "int64",
        "expected int64 integers (-9223372036854775808 to 9223372036854775807), received 9223372036854775808",
      ],
      [
        '["x"]',
        "int64",
        'expected int64 integers (-9223372036854775808 to 9223372036854775807), received "x" at [0]',
      ],
      ["[2]", "bool", "expected booleans, received 2 at [0]"],
      ["[1]", "string", "expected strings, received a number at [0]"],
      ["[1e39]", "float32", "expected float32 numbers, received 1e+39 at [0]"],
      ["[65520]", "float16", "expected float16 numbers (up to 65504), received 65520 at [0]"],
      ["[1e999]", "float64", "1e999 at [0] is out of the range of float64"],
    ]
    for (const [text, dtype, message] of cases)
      assert.equal(refusal(() => parse(text, dtype)).message, message)
  })

  test("null is NaN where the dtype is a float", () => {
    assert.deepEqual(parse("[1,null]").data, Float32Array.of(1, Number.NaN))
  })

  test("integers beyond 2^53 are exact, as digits and as strings", () => {
    const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n })
    fc.assert(
      fc.property(fc.array(int64, { minLength: 1 }), fc.boolean(), (values, quoted) => {
        const tensor = parse(`[${values.map((value) => (quoted ? `"${value}"` : value)).join(",")}]`, "int64")
        assert.deepEqual(tensor.data, BigInt64Array.from(values))
        assert.equal(formatTensor(tensor), `[${values.join(",")}]`)
      }),
    )
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
        assert.deepEqual(parse(`[${value}]`, "uint64").data, BigUint64Array.of(value))
      }),
    )
  })

  test("an integer of more digits than a double can have is refused before it is made exact", (t) => {
    const exact = t.mock.method(globalThis, "BigInt")
    for (const dtype of ["int64", "uint64", "int8", "bool", null] as const) {
      for (const sign of ["", "-"]) {
        const { message } = refusal(() => parse(`[1, ${sign}${"9".repeat(400)}]`, dtype))
        assert.match(message, /^-?9+… at \[1\] is out of the range of /)
      }
    }
    assert.equal(exact.mock.callCount(), 0)
    refusal(() => parse(`[${"9".repeat(308)}]`, "int64"))
    assert.equal(exact.mock.callCount(), 1)
  })

  test("without a dtype it is inferred as NumPy does", () => {
    const cases: [string, DType][] = [
      ["[1,2]", "int64"],
      ["[1,2.5]", "float64"],
      ["[1,2.0]", "float64"],
      ["[true]", "bool"],
      ['["a"]', "string"],
      ["[]", "float64"],
      ["[99999999999999999999]", "float64"],
    ]
    for (const [text, dtype] of cases) assert.equal(parse(text, null).dtype, dtype, text)
    assert.match(refusal(() => parse('[1,"a"]', null)).message, /of one kind/)
  })

  test("a deep nesting is refused and costs no stack", () => {
    assert.match(refusal(() => parse("[".repeat(1e6))).message, /more than 32 dimensions/)
    refusal(() => parseJson(Buffer.from("[".repeat(1e6))))
  })

  test("strings keep their characters, escapes and all", () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.string({ unit: "binary" }).map((text) => text.toWellFormed()),
          { minLength: 1 },
        ),
        (texts) => {
          const tensor = parse(JSON.stringify(texts), "string")
          assert.deepEqual(tensor.data, texts)
          assert.equal(formatTensor(tensor), JSON.stringify(texts))
        },
      ),
    )
    refusal(() => parseTensor(Buffer.from([0x5b, 0x22, 0xff, 0x22, 0x5d]), "string"))
    refusal(() => parse('["\u0001"]', "string"))
    refusal(() => parse('["\\x"]', "string"))
  })

  test("a byte order mark is skipped", () => {
    assert.deepEqual(parse("\ufeff[1]").data, Float32Array.of(1))
    assert.deepEqual(parseJson(Buffer.from("\ufeff[1]")), [1])
  })

  test("a body after a very large one is read as before", () => {
    assert.equal(parse(`[${"1,".repeat(2 ** 21)}1]`).data.length, 2 ** 21 + 1)
    assert.deepEqual(parse("[1,2]").data, Float32Array.of(1, 2))
  })
})

describe("reading tensors by name", () => {
  const specs = [
    { name: "a", dtype: "float32" },
    { name: "b", dtype: "int64" },
  ] as const
  const read = (text: string, of: readonly { name: string; dtype: DType }[] = specs): unknown => ({
    ...parseTensors(Buffer.from(text), of),
  })

  test("each input by its name, in any order", () => {
    assert.deepEqual(read('{"b": [1], "a": [[0.5]]}'), {
      a: { dtype: "float32", shape: [1, 1], data: Float32Array.of(0.5) },
      b: { dtype: "int64", shape: [1], data: BigInt64Array.of(1n) },
    })
  })

  test("a bare array is the input of a model that has one", () => {
    const only = [{ name: "X", dtype: "float32" }] as const
    assert.deepEqual(read("[[1]]", only), read('{"X":[[1]]}', only))
    assert.match(refusal(() => read("[[1]]")).message, /an object of the inputs by name: "a", "b"/)
  })

  test("unknown, missing and repeated names are refused", () => {
    assert.equal(refusal(() => read('{"c":1}')).message, 'unknown input "c"; the inputs are "a", "b"')
    assert.equal(
      refusal(() => read('{"__proto__":1}')).message,
      'unknown input "__proto__"; the inputs are "a", "b"',
    )
    assert.equal(refusal(() => read('{"a":1}')).message, 'missing input "b"')
    assert.equal(refusal(() => read("{}")).message, 'missing inputs "a", "b"')
    assert.equal(refusal(() => read('{"a":1,"a":2}')).message, 'input "a" is given twice')
    assert.equal(
      refusal(() => read('{"a":[["x"]]}')).message,
      'input "a": expected float32 numbers, received a string at [0][0]',
    )
  })
})

describe("the place of malformed JSON", () => {
  const cases: [string, string, object][] = [
    [
      '{"X": [[1, 2, oops]]}',
      'expected a value, received "o" at line 1, column 15',
      { offset: 14, line: 1, column: 15 },
    ],
    ["[1,\n 2,]", 'expected a value, received "]" at line 2, column 4', { offset: 7, line: 2, column: 4 }],
    [
      "[1",
      'expected "," or "]", received the end of the body at line 1, column 3',
      { offset: 2, line: 1, column: 3 },
    ],
    ["", "expected a value, received an empty body at line 1, column 1", { offset: 0, line: 1, column: 1 }],
    [
      "[1] 2",
      'expected the end of the body, received "2" at line 1, column 5',
      { offset: 4, line: 1, column: 5 },
    ],
    ["[01]", 'expected "," or "]", received "1" at line 1, column 3', { offset: 2, line: 1, column: 3 }],
    ["[1.]", 'expected a digit, received "]" at line 1, column 4', { offset: 3, line: 1, column: 4 }],
    ["[NaN]", 'expected a value, received "N" at line 1, column 2', { offset: 1, line: 1, column: 2 }],
    [
      '{"é":1,\n"€😀": x}',
      'expected a value, received "x" at line 2, column 8',
      { offset: 20, line: 2, column: 8 },
    ],
  ]
  for (const [text, message, detail] of cases) {
    test(`${JSON.stringify(text)}: ${message}`, () => {
      for (const read of [
        () => parseTensor(Buffer.from(text), "float32"),
        () => parseJson(Buffer.from(text)),
      ]) {
        if (text.startsWith("{") && read.toString().includes("parseTensor")) continue
        const error = refusal(read)
        assert.equal(error.message, `the body is not valid JSON: ${message}`)
        assert.deepEqual(error.detail, detail)
      }
    })
  }

  test("is found without memory for the lines before it", async () => {
    const code = `
      const { parseTensor } = await import(process.argv[1])
      const body = Buffer.alloc(24 * 2 ** 20, "\\n")
      body.write("x", body.length - 1)
      const before = process.resourceUsage().maxRSS
      try {
        parseTensor(body, null)
      } catch ({ detail }) {
        const grownMiB = (process.resourceUsage().maxRSS - before) / 1024
        console.log(JSON.stringify({ detail, grownMiB }))
      }`
    const file = new URL("../../runtime/tensor-json.ts", import.meta.url).href
    const child = promisify(execFile)(process.execPath, ["--input-type=module", "-e", code, file])
    const { detail, grownMiB } = JSON.parse((await child).stdout) as { detail: object; grownMiB: number }
    assert.deepEqual(detail, { offset: 24 * 2 ** 20 - 1, line: 24 * 2 ** 20, column: 1 })
    // An array of that many lines alone has 192 MiB.
    assert.ok(grownMiB < 100, `${grownMiB} MiB`)
  })
})

describe("writing a tensor", () => {
  test("values are nested by shape", () => {
    assert.equal(
      formatTensor({ dtype: "float32", shape: [2, 2], data: Float32Array.of(0, 0.1, 0.9, 1) }),
      "[[0,0.1],[0.9,1]]",
    )
    assert.equal(formatTensor({ dtype: "int64", shape: [], data: BigInt64Array.of(7n) }), "7")
    assert.equal(formatTensor({ dtype: "float32", shape: [2, 0], data: new Float32Array() }), "[[],[]]")
    assert.equal(formatTensor({ dtype: "float32", shape: [0, 4], data: new Float32Array() }), "[]")
    assert.equal(formatTensor({ dtype: "bool", shape: [2], data: Uint8Array.of(1, 0) }), "[true,false]")
    assert.equal(formatTensor({ dtype: "uint8", shape: [2], data: Uint8Array.of(1, 0) }), "[1,0]")
    assert.equal(
      formatTensors({ 'a"': { dtype: "bool", shape: [], data: Uint8Array.of(1) } }),
      '{"a\\"":true}',
    )
  })

  test("NaN and the infinities are null", () => {
    const data = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
    assert.equal(
      formatTensor({ dtype: "float32", shape: [3], data: Float32Array.from(data) }),
      "[null,null,null]",
    )
    assert.equal(
      formatTensor({ dtype: "float64", shape: [3], data: Float64Array.from(data) }),
      "[null,null,null]",
    )
    assert.equal(formatTensor({ dtype: "float16", shape: [1], data: Uint16Array.of(0x7e00) }), "[null]")
  })

  test("a float32 is written with at most nine digits that read back as the same bits", () => {
    const bits = fc.oneof(
      fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      fc.float().map((value) => new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0),
    )
    fc.assert(
      fc.property(bits, (pattern) => {
        const value = new Float32Array(Uint32Array.of(pattern).buffer)[0] ?? 0
        if (!Number.isFinite(value)) return
        const text = formatTensor({ dtype: "float32", shape: [], data: Float32Array.of(value) })
        assert.ok(Object.is(Math.fround(JSON.parse(text)), value), `${value} was written as ${text}`)
        const digits = text.replace(/e.*|[-.]/g, "").replace(/^0+/, "")
        assert.ok(Number.isInteger(value) || digits.length <= 9, text)
      }),
      { numRuns: 5000 },
    )
    const short: [number, string][] = [
      [0.1, "0.1"],
      [5.9, "5.9"],
      [1 / 3, "0.33333334"],
      [1e-8, "1e-8"],
      [1e-30, "1e-30"],
      [-0, "-0"],
      [16777216, "16777216"],
    ]
    for (const [value, text] of short) {
      assert.equal(formatTensor({ dtype: "float32", shape: [], data: Float32Array.of(value) }), text)
    }
  })

  test("float16 goes in and out as decimals", () => {
    const tensor = parse("[0.1, -2.5, 65504, null]", "float16")
    assert.deepEqual(tensor.data, Uint16Array.of(0x2e66, 0xc100, 0x7bff, 0x7e00))
    assert.equal(formatTensor(tensor), "[0.1,-2.5,65500,null]")
  })

  test("what was written reads back the same, for every dtype", () => {
    const of = <D extends DType>(dtype: D, values: fc.Arbitrary<unknown>) =>
      values.map((list) => ({ dtype, list }))
    const integers = (min: number, max: number): fc.Arbitrary<number[]> => fc.array(fc.integer({ min, max }))
    const any = fc.oneof(
      of("float32", fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }))),
      of("float64", fc.array(fc.double({ noNaN: true, noDefaultInfinity: true }))),
      of("int8", integers(-128, 127)),
      of("int16", integers(-32768, 32767)),
      of("int32", integers(-2147483648, 2147483647)),
      of("uint8", integers(0, 255)),
      of("uint16", integers(0, 65535)),
      of("uint32", integers(0, 4294967295)),
      of("bool", fc.array(fc.boolean())),
      of("string", fc.array(fc.string())),
    )
    fc.assert(
      fc.property(any, ({ dtype, list }) => {
        const tensor = parse(JSON.stringify(list), dtype)
        assert.deepEqual(parse(formatTensor(tensor), dtype), tensor)
      }),
    )
  })
})

describe("nested arrays for handlers", () => {
  test("toNested and fromNested are opposites", () => {
    const tensor = fromNested("float32", [
      [1, 2],
      [3, 4.5],
    ])
    assert.deepEqual(tensor.shape, [2, 2])
    assert.deepEqual(toNested(tensor), [
      [1, 2],
      [3, 4.5],
    ])
    assert.deepEqual(toNested(fromNested("bool", [true, false])), [true, false])
    assert.deepEqual(toNested(fromNested("string", ["a"])), ["a"])
    assert.equal(toNested(fromNested("float16", 0.5)), 0.5)
  })

  test("int64 comes as numbers, or as bigints where asked", () => {
    assert.deepEqual(toNested(fromNested("int64", [[1], [2]])), [[1], [2]])
    const large = fromNested("int64", [2n ** 60n])
    assert.throws(() => toNested(large), /beyond 2\^53/)
    assert.deepEqual(toNested(large, { bigint: true }), [2n ** 60n])
  })

  test("JSON of a handler may hold bigints", () => {
    assert.equal(stringifyJson({ a: [2n ** 60n], b: "1n" }), '{"a":[1152921504606846976],"b":"1n"}')
  })
})
