/**
 * JSON text ⇄ tensors, in one pass and without the arrays of arrays in between.
 *
 * Reading works on the bytes of the body: numbers go straight into a typed array, the shape comes from the nesting, and
 * whatever does not fit is refused with the place where it stands. `JSON.parse` plus a walk takes about twice as long, loses
 * integers beyond 2^53, and knows no positions (bench/json.ts).
 *
 * Decisions (docs/serving.md says them to users): NaN and ±Infinity are written as `null`, since JSON has no word for
 * them; `null` is read as NaN where the dtype is a float. Integers are exact in both directions. float16 and float32 are
 * written with the fewest digits that read back as the same value: 0.1, not 0.10000000149011612.
 */
import { isUtf8 } from "node:buffer"
import type { JsonObject } from "../store/bento.ts"
import { ServeError } from "./errors.ts"
import type { DType, Tensor, Tensors } from "./tensor.ts"

/** An input as the body of a request names it. */
export interface NamedDType {
  readonly name: string
  readonly dtype: DType
}

/**
 * The tensor that a JSON text of nested arrays (or a single value) stands for. Without a dtype it is inferred as NumPy does:
 * int64 when all numbers are integers, else float64; bool; string.
 */
export function parseTensor(bytes: Buffer, dtype: DType | null): Tensor {
  const reader = new Reader(bytes)
  const tensor = reader.tensor(dtype, "")
  reader.end()
  return tensor
}

/**
 * The tensors of `{"NAME": [[…]], …}`, one for each of `specs`, or of a bare array where there is one spec only.
 * Unknown, missing and repeated names are refused.
 */
export function parseTensors(bytes: Buffer, specs: readonly NamedDType[]): Tensors {
  const reader = new Reader(bytes)
  const tensors: Record<string, Tensor> = {}
  if (!reader.startsObject()) {
    const [only, ...others] = specs
    if (only === undefined || others.length > 0) {
      throw badInput(`the body must be an object of the inputs by name: ${listNames(specs)}`)
    }
    tensors[only.name] = reader.tensor(only.dtype, only.name)
  } else {
    for (let name = reader.firstName(); name !== null; name = reader.nextName()) {
      const dtype = dtypeOf(specs, name)
      if (dtype === undefined) {
        throw badInput(`unknown input ${JSON.stringify(clip(name))}; the inputs are ${listNames(specs)}`)
      }
      if (Object.hasOwn(tensors, name)) throw badInput(`input ${JSON.stringify(name)} is given twice`)
      tensors[name] = reader.tensor(dtype, name)
    }
    const missing = specs.filter((spec) => !Object.hasOwn(tensors, spec.name))
    if (missing.length > 0) {
      throw badInput(`missing ${missing.length === 1 ? "input" : "inputs"} ${listNames(missing)}`)
    }
  }
  reader.end()
  return tensors
}

/** `JSON.parse` whose error says where: the place comes from a second look, made only when the first one failed. */
export function parseJson(bytes: Buffer): unknown {
  const start = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0
  const text = bytes.toString("utf8", start)
  try {
    return JSON.parse(text)
  } catch (error) {
    const reader = new Reader(bytes)
    reader.skipValue()
    reader.end()
    throw badInput("the body is not valid JSON", {}, error)
  }
}

/** The JSON text of a tensor: nested arrays, or the bare value of a tensor without dimensions. */
export function formatTensor(tensor: Tensor): string {
  const format = formatterOf(tensor)
  return tensor.shape.length === 0 ? format(0, 1) : nested(tensor.shape, 0, 0, tensor.data.length, format)
}

/** The JSON text of an object of tensors by name. */
export function formatTensors(tensors: Tensors): string {
  let text = "{"
  for (const name in tensors) {
    const tensor = tensors[name]
    if (tensor === undefined) continue
    text += (text.length === 1 ? "" : ",") + keyOf(name) + formatTensor(tensor)
  }
  return `${text}}`
}

/** Names of outputs as they stand in an answer. They come from models, so there are few. */
const keys = new Map<string, string>()

function keyOf(name: string): string {
  let key = keys.get(name)
  if (key === undefined) keys.set(name, (key = `${JSON.stringify(name)}:`))
  return key
}

/** Nested arrays of any depth. */
export type Nested<T> = T | Nested<T>[]

type Value<D extends DType> = D extends "string" ? string : D extends "bool" ? boolean : number

/**
 * The values of a tensor as nested arrays of numbers, booleans or strings. An integer beyond 2^53 cannot be a number and
 * throws; with `{ bigint: true }` int64 and uint64 come as bigints.
 */
export function toNested<D extends DType>(tensor: Tensor<D>): Nested<Value<D>>
export function toNested(
  tensor: Tensor,
  options: { readonly bigint: true },
): Nested<number | bigint | boolean | string>
export function toNested(
  tensor: Tensor,
  options: { readonly bigint?: boolean } = {},
): Nested<number | bigint | boolean | string> {
  const at = valueAt(tensor, options.bigint === true)
  const build = (axis: number, offset: number, step: number): Nested<number | bigint | boolean | string> => {
    const length = tensor.shape[axis]
    if (length === undefined) return at(offset)
    const inner = length === 0 ? 0 : step / length
    return Array.from({ length }, (_, index) => build(axis + 1, offset + index * inner, inner))
  }
  return build(0, 0, tensor.data.length)
}

/** A tensor from nested arrays: the opposite of `toNested`, with the checks of `parseTensor`. */
export function fromNested<D extends DType>(dtype: D, values: Nested<unknown>): Tensor<D> {
  const text = stringifyJson(values)
  if (text === undefined) throw badInput(`expected nested arrays for ${dtype}, received ${typeof values}`)
  // The dtype was asked for, so the tensor has it.
  return parseTensor(Buffer.from(text), dtype) as Tensor<D>
}

/** `JSON.parse` that loses no number: `fromNested` takes what comes out, and what a double cannot hold is exact in it. */
export function parseExactJson(text: string): unknown {
  // The cast: the third argument, of ES2025, is in Node 24 and not yet in TypeScript's library.
  return JSON.parse(text, ((_, value, context) =>
    typeof value === "number" && context.source !== undefined && !isExact(value)
      ? rawJSON(context.source)
      : value) as ExactReviver as (this: unknown, key: string, value: unknown) => unknown)
}

type ExactReviver = (key: string, value: unknown, context: { readonly source?: string }) => unknown

function isExact(value: number): boolean {
  return (
    Number.isFinite(value) &&
    (!Number.isInteger(value) || (Number.isSafeInteger(value) && !Object.is(value, -0)))
  )
}

/** The values of a tensor in a row, those of int64 and uint64 as bigints. */
export function flatValues(tensor: Tensor): (number | bigint | boolean | string)[] {
  const at = valueAt(tensor, true)
  return Array.from({ length: tensor.data.length }, (_, index) => at(index))
}

/** `JSON.stringify` that writes bigints as plain digits. */
export function stringifyJson(value: unknown): string | undefined {
  try {
    return JSON.stringify(value)
  } catch (error) {
    if (!(error instanceof TypeError) || !error.message.includes("BigInt")) throw error
    return JSON.stringify(value, (_, member: unknown) =>
      typeof member === "bigint" ? rawJSON(String(member)) : member,
    )
  }
}

/** `JSON.rawJSON` is in Node 24 but not yet in TypeScript's es2024 library. */
const { rawJSON } = JSON as unknown as { rawJSON: (this: void, text: string) => unknown }

// ---------------------------------------------------------------------------------------------------- reading

const MAX_DEPTH = 32
/** The first doubles that round to Infinity. */
const MAX_FLOAT32 = 2 ** 128 - 2 ** 103
const MAX_FLOAT16 = 65520
/** 10^0 … 10^22 are exact doubles: a mantissa below 2^53, times or over one of them, is rounded once, hence right. */
const POWERS = Array.from({ length: 23 }, (_, exponent) => Number(`1e${exponent}`))

// Kinds of JSON values, as bits.
const NUMBER = 1
const STRING = 2
const BOOLEAN = 4
const NULL = 8
const OBJECT = 16
const KIND_NAMES: Record<number, string> = {
  [NUMBER]: "a number",
  [STRING]: "a string",
  [BOOLEAN]: "a boolean",
  [NULL]: "null",
  [OBJECT]: "an object",
}
const ALLOWED: Record<DType, number> = {
  float16: NUMBER | NULL,
  float32: NUMBER | NULL,
  float64: NUMBER | NULL,
  int8: NUMBER,
  int16: NUMBER,
  int32: NUMBER,
  int64: NUMBER | STRING,
  uint8: NUMBER,
  uint16: NUMBER,
  uint32: NUMBER,
  uint64: NUMBER | STRING,
  bool: BOOLEAN | NUMBER,
  string: STRING,
}
const EXPECTED: Record<DType, string> = {
  float16: "float16 numbers (up to 65504)",
  float32: "float32 numbers",
  float64: "float64 numbers",
  int8: "int8 integers (-128 to 127)",
  int16: "int16 integers (-32768 to 32767)",
  int32: "int32 integers (-2147483648 to 2147483647)",
  int64: "int64 integers (-9223372036854775808 to 9223372036854775807)",
  uint8: "uint8 integers (0 to 255)",
  uint16: "uint16 integers (0 to 65535)",
  uint32: "uint32 integers (0 to 4294967295)",
  uint64: "uint64 integers (0 to 18446744073709551615)",
  bool: "booleans",
  string: "strings",
}

/** Float16Array is in Node 24 but not yet in TypeScript's es2024 library; Float32Array has the part of it that is used. */
const Float16 = (globalThis as unknown as { Float16Array: typeof Float32Array }).Float16Array

/** Numbers are collected here first, since their count is known only at the end. */
let scratch = new Float64Array(4096)
const MAX_KEPT_SCRATCH = 1 << 20

/** What a text of nested arrays holds: numbers in `scratch`, or strings; `exact` = integers that a double cannot hold. */
interface Values {
  readonly shape: readonly number[]
  readonly count: number
  readonly kinds: number
  readonly integers: boolean
  readonly strings: string[] | undefined
  readonly exact: Map<number, bigint> | undefined
}

class Reader {
  readonly #bytes: Buffer
  #pos = 0
  /** Whether the last number was written without fraction and exponent. */
  #isInteger = false

  constructor(bytes: Buffer) {
    this.#bytes = bytes
    if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) this.#pos = 3
  }

  startsObject(): boolean {
    this.#space()
    return this.#bytes[this.#pos] === 0x7b
  }

  /** The first name of an object, standing before its value; null when the object is empty. */
  firstName(): string | null {
    this.#pos++
    this.#space()
    if (this.#bytes[this.#pos] !== 0x7d) return this.#name()
    this.#pos++
    return null
  }

  /** Standing behind a value: the next name, or null at the end of the object. */
  nextName(): string | null {
    this.#space()
    const byte = this.#bytes[this.#pos]
    if (byte !== 0x2c && byte !== 0x7d) this.#unexpected('"," or "}"')
    this.#pos++
    return byte === 0x2c ? this.#name() : null
  }

  /** Only white space may be left. */
  end(): void {
    this.#space()
    if (this.#pos < this.#bytes.length) this.#unexpected("the end of the body")
  }

  /** Reads any value, for the place of an error. */
  skipValue(): void {
    const open: number[] = []
    for (;;) {
      this.#space()
      const byte = this.#bytes[this.#pos]
      if (byte === 0x5b || byte === 0x7b) {
        this.#pos++
        this.#space()
        if (this.#bytes[this.#pos] !== byte + 2) {
          open.push(byte)
          if (byte === 0x7b) this.#name()
          continue
        }
        this.#pos++
      } else if (byte === 0x22) this.#string()
      else if (byte === 0x74) this.#word("true")
      else if (byte === 0x66) this.#word("false")
      else if (byte === 0x6e) this.#word("null")
      else this.#number()
      for (;;) {
        const container = open.at(-1)
        if (container === undefined) return
        this.#space()
        const next = this.#bytes[this.#pos]
        const close = container + 2
        if (next !== 0x2c && next !== close) this.#unexpected(`"," or "${String.fromCharCode(close)}"`)
        this.#pos++
        if (next === 0x2c) {
          if (container === 0x7b) this.#name()
          break
        }
        open.pop()
      }
    }
  }

  /** Nested arrays, or one value. `name` is that of the input, for messages. */
  tensor(dtype: DType | null, name: string): Tensor {
    try {
      const values = this.#values(dtype, name)
      return makeTensor(dtype ?? inferDType(values, name), values, name)
    } finally {
      if (scratch.length > MAX_KEPT_SCRATCH) scratch = new Float64Array(4096)
    }
  }

  #values(dtype: DType | null, name: string): Values {
    const bytes = this.#bytes
    const allowed = dtype === null ? NUMBER | STRING | BOOLEAN : ALLOWED[dtype]
    const keepsExact = dtype === null || (dtype !== "float32" && dtype !== "float64" && dtype !== "float16")
    const shape: number[] = []
    /** counts[d] = how many elements of the array that is open at depth d have ended. */
    const counts: number[] = []
    let depth = 0
    /** Depth of the values; -1 until the first value or empty array tells. */
    let rank = -1
    let count = 0
    let kinds = 0
    let integers = true
    let strings: string[] | undefined
    let exact: Map<number, bigint> | undefined
    const place = (): string => placeOf(counts.slice(0, depth))

    next: for (;;) {
      this.#space()
      const byte = bytes[this.#pos] ?? 0
      if (byte === 0x5b) {
        if (depth === rank) throw uneven(name, place(), "an array", "a single value")
        if (depth === MAX_DEPTH) throw badInput(`${inputNamed(name)}more than ${MAX_DEPTH} dimensions`)
        this.#pos++
        counts[depth++] = 0
        this.#space()
        if (bytes[this.#pos] !== 0x5d) continue
        this.#pos++
        depth--
        if (rank === -1) rank = depth + 1
        if ((shape[depth] ??= 0) !== 0) throw uneven(name, place(), "0 elements", `${shape[depth]}`)
      } else {
        if (rank === -1) rank = depth
        else if (depth !== rank) throw uneven(name, place(), "a single value", "an array")
        const kind = kindOf(byte)
        if ((kind & allowed) === 0) {
          // A byte that begins no value is an error of JSON, not of the dtype.
          if (kind === NUMBER) this.#number()
          throw badInput(
            `${inputNamed(name)}expected ${expected(dtype)}, received ${KIND_NAMES[kind]}${place()}`,
          )
        }
        kinds |= kind
        if (kind === STRING && dtype !== "int64" && dtype !== "uint64") {
          ;(strings ??= []).push(this.#string())
        } else {
          if (count === scratch.length) growScratch()
          if (kind === NUMBER) {
            const start = this.#pos
            const value = this.#number()
            if (value === Infinity || value === -Infinity) {
              const text = clip(bytes.toString("latin1", start, this.#pos))
              throw badInput(
                `${inputNamed(name)}${text}${place()} is out of the range of ${dtype ?? "float64"}`,
              )
            }
            if (!this.#isInteger) integers = false
            else if (keepsExact && !Number.isSafeInteger(value)) {
              exact ??= new Map()
              // Of at most 309 digits, being finite: the time that it takes grows faster than their number.
              exact.set(count, BigInt(bytes.toString("latin1", start, this.#pos)))
            }
            scratch[count] = value
            if (depth > 0) {
              const more = this.#plainNumbers(count + 1)
              if (more > 0) {
                if (!this.#isInteger) integers = false
                counts[depth - 1] = (counts[depth - 1] ?? 0) + more
                count += more
              }
            }
          } else if (kind === STRING) {
            const text = this.#string()
            if (!/^-?\d{1,20}$/.test(text)) {
              throw badInput(
                `${inputNamed(name)}expected ${expected(dtype)}, received ${clip(JSON.stringify(text))}${place()}`,
              )
            }
            exact ??= new Map()
            exact.set(count, BigInt(text))
          } else if (kind === NULL) {
            this.#word("null")
            scratch[count] = Number.NaN
          } else {
            this.#word(byte === 0x74 ? "true" : "false")
            scratch[count] = byte === 0x74 ? 1 : 0
          }
        }
        count++
      }
      // A value or an empty array has ended: go on with its neighbour, or close the arrays that end here.
      while (depth > 0) {
        const length = (counts[depth - 1] = (counts[depth - 1] ?? 0) + 1)
        this.#space()
        const separator = bytes[this.#pos]
        if (separator === 0x2c) {
          this.#pos++
          continue next
        }
        if (separator !== 0x5d) this.#unexpected('"," or "]"')
        this.#pos++
        depth--
        const known = (shape[depth] ??= length)
        if (known !== length) throw uneven(name, place(), `${length} elements`, `${known}`)
      }
      return { shape, count, kinds, integers, strings, exact }
    }
  }

  #space(): void {
    const bytes = this.#bytes
    let pos = this.#pos
    let byte = bytes[pos]
    while (byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09) byte = bytes[++pos]
    this.#pos = pos
  }

  #name(): string {
    this.#space()
    if (this.#bytes[this.#pos] !== 0x22) this.#unexpected("a name in double quotes")
    const name = this.#string()
    this.#space()
    if (this.#bytes[this.#pos] !== 0x3a) this.#unexpected('":"')
    this.#pos++
    return name
  }

  /** Standing at its opening quote. */
  #string(): string {
    const bytes = this.#bytes
    const start = this.#pos
    let plain = true
    let ascii = true
    for (let pos = start + 1; ; pos++) {
      const byte = bytes[pos]
      if (byte === 0x22) {
        this.#pos = pos + 1
        if (ascii && plain) return bytes.toString("latin1", start + 1, pos)
        if (!ascii && !isUtf8(bytes.subarray(start + 1, pos))) {
          this.#pos = start
          throw this.#malformed("a string that is not UTF-8")
        }
        return plain ? bytes.toString("utf8", start + 1, pos) : this.#escaped(start, pos + 1)
      }
      if (byte === 0x5c) {
        plain = false
        pos++
      } else if (byte === undefined || byte < 0x20) {
        this.#pos = pos
        this.#unexpected(
          byte === undefined ? "a closing quote" : "an escape: strings hold no control characters",
        )
      } else if (byte >= 0x80) ascii = false
    }
  }

  #escaped(start: number, end: number): string {
    try {
      return JSON.parse(this.#bytes.toString("utf8", start, end)) as string
    } catch {
      this.#pos = start
      throw this.#malformed("a string with an escape that JSON does not know")
    }
  }

  #word(word: string): void {
    for (let index = 0; index < word.length; index++) {
      if (this.#bytes[this.#pos] !== word.charCodeAt(index)) this.#unexpected(word)
      this.#pos++
    }
  }

  #number(): number {
    const bytes = this.#bytes
    const start = this.#pos
    let pos = start
    let byte = bytes[pos] ?? 0
    let negative = false
    if (byte === 0x2d) {
      negative = true
      byte = bytes[++pos] ?? 0
    }
    let mantissa = 0
    let digits = 0
    let exponent = 0
    if (byte === 0x30) byte = bytes[++pos] ?? 0
    else if (byte >= 0x31 && byte <= 0x39) {
      do {
        mantissa = mantissa * 10 + (byte - 0x30)
        digits++
        byte = bytes[++pos] ?? 0
      } while (byte >= 0x30 && byte <= 0x39)
    } else {
      this.#pos = pos
      this.#unexpected(negative ? "a digit" : "a value")
    }
    this.#isInteger = true
    if (byte === 0x2e) {
      this.#isInteger = false
      byte = bytes[++pos] ?? 0
      const point = pos
      while (byte >= 0x30 && byte <= 0x39) {
        mantissa = mantissa * 10 + (byte - 0x30)
        if (mantissa > 0) digits++
        byte = bytes[++pos] ?? 0
      }
      exponent = point - pos
      if (exponent === 0) this.#expectDigit(pos)
    }
    if (byte === 0x65 || byte === 0x45) {
      this.#isInteger = false
      byte = bytes[++pos] ?? 0
      const sign = byte === 0x2d ? -1 : 1
      if (byte === 0x2d || byte === 0x2b) byte = bytes[++pos] ?? 0
      if (byte < 0x30 || byte > 0x39) this.#expectDigit(pos)
      let written = 0
      while (byte >= 0x30 && byte <= 0x39) {
        written = written * 10 + (byte - 0x30)
        byte = bytes[++pos] ?? 0
      }
      exponent += sign * written
    }
    this.#pos = pos
    if (digits > 15 || exponent < -22 || exponent > 22) return Number(bytes.toString("latin1", start, pos))
    if (exponent < 0) mantissa /= POWERS[-exponent] ?? 1
    else if (exponent > 0) mantissa *= POWERS[exponent] ?? 1
    return negative ? -mantissa : mantissa
  }

  /**
   * The run that most bodies consist of: `,` and a decimal of at most 15 digits without exponent, again and again. Reads it
   * to `scratch` from index `from` and says how many; stops before anything else, which the general way then reads.
   * Half the time of a large body.
   */
  #plainNumbers(from: number): number {
    const bytes = this.#bytes
    const numbers = scratch
    let end = this.#pos
    let count = from
    let integers = true
    while (bytes[end] === 0x2c && count < numbers.length) {
      let pos = end + 1
      let byte = bytes[pos] ?? 0
      if (byte === 0x20) byte = bytes[++pos] ?? 0
      const negative = byte === 0x2d
      if (negative) byte = bytes[++pos] ?? 0
      const first = pos
      let mantissa = 0
      while (byte >= 0x30 && byte <= 0x39) {
        mantissa = mantissa * 10 + (byte - 0x30)
        byte = bytes[++pos] ?? 0
      }
      if (pos === first || (bytes[first] === 0x30 && pos > first + 1)) break
      let decimals = 0
      if (byte === 0x2e) {
        const point = pos
        byte = bytes[++pos] ?? 0
        while (byte >= 0x30 && byte <= 0x39) {
          mantissa = mantissa * 10 + (byte - 0x30)
          byte = bytes[++pos] ?? 0
        }
        decimals = pos - point - 1
        if (decimals === 0) break
      }
      if (pos - first > 15 || byte === 0x65 || byte === 0x45) break
      if (decimals > 0) {
        integers = false
        mantissa /= POWERS[decimals] ?? 1
      }
      numbers[count++] = negative ? -mantissa : mantissa
      end = pos
    }
    this.#pos = end
    this.#isInteger = integers
    return count - from
  }

  #expectDigit(pos: number): never {
    this.#pos = pos
    return this.#unexpected("a digit")
  }

  #unexpected(wanted: string): never {
    const bytes = this.#bytes
    if (this.#pos >= bytes.length) {
      throw this.#malformed(bytes.length === 0 ? "an empty body" : "the end of the body", wanted)
    }
    const [character] = bytes.toString("utf8", this.#pos, this.#pos + 4)
    throw this.#malformed(JSON.stringify(character), wanted)
  }

  #malformed(received: string, wanted?: string): ServeError {
    // Counted, not split: the lines of a body can take many times its memory. Columns are UTF-16 units.
    let line = 1
    let column = 1
    const bytes = this.#bytes
    const end = Math.min(this.#pos, bytes.length)
    for (let pos = 0; pos < end; pos++) {
      const byte = bytes[pos] ?? 0
      if (byte === 0x0a) {
        line++
        column = 1
      } else if (byte >= 0xf0) column += 2
      else if (byte < 0x80 || byte >= 0xc0) column++
    }
    return badInput(
      `the body is not valid JSON: ${wanted === undefined ? "" : `expected ${wanted}, `}received ${received} at line ${line}, column ${column}`,
      { offset: this.#pos, line, column },
    )
  }
}

function kindOf(byte: number): number {
  if (byte === 0x22) return STRING
  if (byte === 0x74 || byte === 0x66) return BOOLEAN
  if (byte === 0x6e) return NULL
  return byte === 0x7b ? OBJECT : NUMBER
}

function inferDType(values: Values, name: string): DType {
  switch (values.kinds) {
    case 0:
      return "float64"
    case STRING:
      return "string"
    case BOOLEAN:
      return "bool"
    case NUMBER: {
      const fits = [...(values.exact?.values() ?? [])].every((value) => inRange("int64", value))
      return values.integers && fits ? "int64" : "float64"
    }
    default:
      throw badInput(
        `${inputNamed(name)}expected values of one kind, received numbers, strings or booleans mixed`,
      )
  }
}

function makeTensor(dtype: DType, values: Values, name: string): Tensor {
  const { shape, count } = values
  switch (dtype) {
    case "float64":
      return { dtype, shape, data: scratch.slice(0, count) }
    case "float32": {
      const data = new Float32Array(count)
      for (let index = 0; index < count; index++) {
        const value = scratch[index] ?? 0
        if (value >= MAX_FLOAT32 || value <= -MAX_FLOAT32) throw outOfRange(dtype, values, index, name)
        data[index] = value
      }
      return { dtype, shape, data }
    }
    case "float16": {
      const halves = new Float16(count)
      for (let index = 0; index < count; index++) {
        const value = scratch[index] ?? 0
        if (value >= MAX_FLOAT16 || value <= -MAX_FLOAT16) throw outOfRange(dtype, values, index, name)
        halves[index] = value
      }
      return { dtype, shape, data: new Uint16Array(halves.buffer) }
    }
    case "string":
      return { dtype, shape, data: values.strings ?? [] }
    case "bool": {
      const data = new Uint8Array(count)
      for (let index = 0; index < count; index++) {
        const value = scratch[index] ?? 0
        if (value !== 0 && value !== 1) throw outOfRange(dtype, values, index, name)
        data[index] = value
      }
      return { dtype, shape, data }
    }
    case "int64":
      return { dtype, shape, data: new BigInt64Array(wide(dtype, values, name)) }
    case "uint64":
      return { dtype, shape, data: new BigUint64Array(wide(dtype, values, name)) }
    case "int8":
      return { dtype, shape, data: narrow(dtype, new Int8Array(count), values, name) }
    case "int16":
      return { dtype, shape, data: narrow(dtype, new Int16Array(count), values, name) }
    case "int32":
      return { dtype, shape, data: narrow(dtype, new Int32Array(count), values, name) }
    case "uint8":
      return { dtype, shape, data: narrow(dtype, new Uint8Array(count), values, name) }
    case "uint16":
      return { dtype, shape, data: narrow(dtype, new Uint16Array(count), values, name) }
    case "uint32":
      return { dtype, shape, data: narrow(dtype, new Uint32Array(count), values, name) }
  }
}

type Narrow = Int8Array | Int16Array | Int32Array | Uint8Array | Uint16Array | Uint32Array

/** Each value is stored and read back: what comes back changed does not fit. */
function narrow<A extends Narrow>(dtype: DType, data: A, values: Values, name: string): A {
  for (let index = 0; index < data.length; index++) {
    const value = scratch[index] ?? 0
    data[index] = value
    if (data[index] !== value) throw outOfRange(dtype, values, index, name)
  }
  return data
}

/** The bytes of 64-bit integers. Two halves of a double are written where that is exact: no bigint is made. */
function wide(dtype: "int64" | "uint64", values: Values, name: string): ArrayBuffer {
  const { count, exact } = values
  const halves = new Uint32Array(count * 2)
  for (let index = 0; index < count; index++) {
    let big = exact?.get(index)
    if (big === undefined) {
      const value = scratch[index] ?? 0
      if (!Number.isInteger(value)) throw outOfRange(dtype, values, index, name)
      if (Number.isSafeInteger(value) && (value >= 0 || dtype === "int64")) {
        halves[2 * index] = value
        halves[2 * index + 1] = Math.floor(value / 2 ** 32)
        continue
      }
      big = BigInt(value)
    }
    if (!inRange(dtype, big)) throw outOfRange(dtype, values, index, name)
    halves[2 * index] = Number(BigInt.asUintN(32, big))
    halves[2 * index + 1] = Number(BigInt.asUintN(32, big >> 32n))
  }
  return halves.buffer
}

function inRange(dtype: "int64" | "uint64", value: bigint): boolean {
  return dtype === "int64" ? BigInt.asIntN(64, value) === value : BigInt.asUintN(64, value) === value
}

function outOfRange(dtype: DType, values: Values, index: number, name: string): ServeError {
  const value = values.exact?.get(index) ?? scratch[index]
  const place: number[] = []
  let rest = index
  for (const length of values.shape.toReversed()) {
    place.unshift(rest % length)
    rest = Math.floor(rest / length)
  }
  return badInput(`${inputNamed(name)}expected ${expected(dtype)}, received ${value}${placeOf(place)}`)
}

function growScratch(): void {
  const grown = new Float64Array(scratch.length * 2)
  grown.set(scratch)
  scratch = grown
}

const expected = (dtype: DType | null): string => (dtype === null ? "numbers" : EXPECTED[dtype])
const inputNamed = (name: string): string => (name === "" ? "" : `input ${JSON.stringify(name)}: `)
const placeOf = (place: readonly number[]): string =>
  place.length === 0 ? "" : ` at ${place.map((index) => `[${index}]`).join("")}`
function dtypeOf(specs: readonly NamedDType[], name: string): DType | undefined {
  for (const spec of specs) if (spec.name === name) return spec.dtype
  return undefined
}

const listNames = (specs: readonly NamedDType[]): string =>
  specs.map((spec) => JSON.stringify(spec.name)).join(", ")
const clip = (text: string): string => (text.length > 40 ? `${text.slice(0, 40)}…` : text)

function uneven(name: string, place: string, received: string, others: string): ServeError {
  return badInput(
    `${inputNamed(name)}the arrays are uneven: received ${received}${place}, where those before have ${others}`,
  )
}

function badInput(message: string, detail?: JsonObject, cause?: unknown): ServeError {
  return new ServeError("BAD_INPUT", 400, message, {
    ...(detail === undefined ? {} : { detail }),
    ...(cause === undefined ? {} : { cause }),
  })
}

// ---------------------------------------------------------------------------------------------------- writing

type Format = (start: number, end: number) => string

/** Nested brackets around what `format` gives for each innermost run of values. */
function nested(
  shape: readonly number[],
  axis: number,
  start: number,
  count: number,
  format: Format,
): string {
  if (axis === shape.length - 1) return `[${format(start, start + count)}]`
  const length = shape[axis] ?? 0
  const step = count / length
  let text = "["
  for (let index = 0; index < length; index++) {
    if (index > 0) text += ","
    text += nested(shape, axis + 1, start + index * step, step, format)
  }
  return `${text}]`
}

function formatterOf(tensor: Tensor): Format {
  switch (tensor.dtype) {
    case "float32":
      return (start, end) => {
        let text = ""
        for (let index = start; index < end; index++) {
          text +=
            index > start ? `,${float32Text(tensor.data[index] ?? 0)}` : float32Text(tensor.data[index] ?? 0)
        }
        return text
      }
    case "float64":
      return (start, end) => {
        const texts: string[] = []
        for (let index = start; index < end; index++) texts.push(float64Text(tensor.data[index] ?? 0))
        return texts.join(",")
      }
    case "float16": {
      const values = new Float16(tensor.data.buffer, tensor.data.byteOffset, tensor.data.length)
      return (start, end) => Array.from(values.subarray(start, end), float16Text).join(",")
    }
    case "string":
      return (start, end) =>
        tensor.data
          .slice(start, end)
          .map((text) => JSON.stringify(text))
          .join(",")
    case "bool":
      return (start, end) => Array.from(tensor.data.subarray(start, end), (bit) => bit !== 0).join(",")
    case "int8":
    case "int16":
    case "int32":
    case "int64":
    case "uint8":
    case "uint16":
    case "uint32":
    case "uint64":
      return (start, end) =>
        end - start === 1 ? String(tensor.data[start]) : tensor.data.subarray(start, end).join(",")
  }
}

function float64Text(value: number): string {
  if (value === 0) return Object.is(value, -0) ? "-0" : "0"
  return Number.isFinite(value) ? String(value) : "null"
}

/**
 * The shortest decimal that reads back as the same float32. Most values need up to 7 decimals, so that is tried first and
 * then shortened; dividing an integer by an exact power of ten rounds once, so the comparison proves the digits.
 */
function float32Text(value: number): string {
  if (Number.isInteger(value)) return value === 0 && Object.is(value, -0) ? "-0" : String(value)
  if (!Number.isFinite(value)) return "null"
  const seven = Math.round(value * 1e7) / 1e7
  if (Math.fround(seven) === value) {
    for (let decimals = 1; decimals < 7; decimals++) {
      const power = POWERS[decimals] ?? 1
      const fewer = Math.round(value * power) / power
      if (Math.fround(fewer) === value) return String(fewer)
    }
    return String(seven)
  }
  for (let decimals = 8; decimals <= 22; decimals++) {
    const power = POWERS[decimals] ?? 1
    const more = Math.round(value * power) / power
    if (Math.fround(more) === value) return String(more)
  }
  return shortest(value, Math.fround)
}

/** `Math.f16round` is in Node 24 but not yet in TypeScript's es2024 library. */
const { f16round } = Math as unknown as { f16round: (this: void, value: number) => number }

const float16Text = (value: number): string =>
  value === 0 || !Number.isFinite(value) ? float64Text(value) : shortest(value, f16round)

function shortest(value: number, round: (value: number) => number): string {
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(value.toPrecision(digits))
    if (round(short) === value) return String(short)
  }
  return String(value)
}

function valueAt(tensor: Tensor, bigint: boolean): (index: number) => number | bigint | boolean | string {
  switch (tensor.dtype) {
    case "bool":
      return (index) => tensor.data[index] !== 0
    case "string":
      return (index) => tensor.data[index] ?? ""
    case "float16": {
      const values = new Float16(tensor.data.buffer, tensor.data.byteOffset, tensor.data.length)
      return (index) => values[index] ?? Number.NaN
    }
    case "int64":
    case "uint64":
      return (index) => {
        const value = tensor.data[index] ?? 0n
        if (bigint) return value
        const number = Number(value)
        if (Number.isSafeInteger(number)) return number
        throw new RangeError(
          `${value} is beyond 2^53 and cannot be a number; use toNested(tensor, { bigint: true })`,
        )
      }
    case "float32":
    case "float64":
    case "int8":
    case "int16":
    case "int32":
    case "uint8":
    case "uint16":
    case "uint32":
      return (index) => tensor.data[index] ?? Number.NaN
  }
}
