/**
 * YAML as PyYAML has it, both ways: `emitYaml` writes what `yaml.safe_dump(x, sort_keys=False)` writes, byte for byte,
 * and `readYaml` gives plain scalars the types that `yaml.safe_load` gives them. The `yaml` package does the syntax of
 * reading; it cannot do the rest: its YAML 1.1 takes `1e5` for a number, which is a legal version, and its writer folds,
 * quotes and escapes in other places.
 */
import { type Document, isAlias, isMap, isScalar, isSeq, LineCounter, parseDocument } from "yaml"
import { type ErrorCode, type Issue, IssueError } from "./errors.ts"

/**
 * A scalar whose spelling JavaScript's own types would lose: `1.0` (a float), dates, integers beyond 2^53.
 * In JSON it is the number, digit by digit, or the text of a date.
 */
export class YamlScalar {
  readonly text: string
  readonly kind: "int" | "float" | "timestamp"

  constructor(kind: "int" | "float" | "timestamp", text: string) {
    this.kind = kind
    this.text = text
  }

  /** The nearest JavaScript value. */
  valueOf(): number | string {
    return this.kind === "timestamp" ? this.text : Number(this.text.replaceAll("_", ""))
  }

  toString(): string {
    return this.text
  }

  toJSON(): unknown {
    return this.kind === "timestamp" ? this.text : rawJson(this.text)
  }
}

/** A number in JSON with the digits that it has: TypeScript does not know `JSON.rawJSON` yet, Node does. */
function rawJson(text: string): unknown {
  return (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON(text)
}

/** A mapping whose keys are not all strings, or whose order an object would not keep (`{1: …, 0: …}`). */
export class YamlMap extends Map<unknown, unknown> {
  toJSON(): Record<string, unknown> {
    return Object.fromEntries([...this].map(([key, value]) => [String(key), value]))
  }
}

const MAX_BYTES = 4 * 1024 * 1024
const MAX_NODES = 100_000
const MAX_DEPTH = 64

/** What the resolver of YAML 1.1 makes of plain scalars in PyYAML. */
const RESOLVER: readonly (readonly [kind: string, pattern: RegExp])[] = [
  ["bool", /^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$/],
  [
    "float",
    /^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$/,
  ],
  [
    "int",
    /^(?:[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$/,
  ],
  ["merge", /^<<$/],
  ["null", /^(?:~|null|Null|NULL|)$/],
  [
    "timestamp",
    /^(?:\d{4}-\d\d-\d\d|\d{4}-\d\d?-\d\d?(?:[Tt]|[ \t]+)\d\d?:\d\d:\d\d(?:\.\d*)?(?:[ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?)$/,
  ],
  ["value", /^=$/],
]

function resolvePlain(text: string): string {
  return RESOLVER.find(([, pattern]) => pattern.test(text))?.[0] ?? "str"
}

// ---------------------------------------------------------------------------------------------------------- reading

export interface YamlFile {
  readonly value: unknown
  /** Line of the node at this path, or of the nearest parent that exists. */
  lineOf(path: readonly string[]): number
}

/**
 * Reads one document. Throws an IssueError of `code` with file and line for broken syntax, duplicate keys, `__proto__`,
 * unknown YAML tags, and for a document that is, or by its aliases becomes, too large or too deep.
 */
export function readYaml(text: string, path: string, code: ErrorCode = "MANIFEST_INVALID"): YamlFile {
  const lines = new LineCounter()
  const fail = (message: string, offset: number): IssueError => {
    const { line, col } = lines.linePos(offset)
    const issue: Issue =
      line > 0 ? { message, file: path, line, column: col } : { message, file: path, line: 1, column: 1 }
    return new IssueError(code, `${path} cannot be understood:`, [issue])
  }
  if (text.length > MAX_BYTES) throw fail(`larger than ${MAX_BYTES / 1024 / 1024} MiB`, 0)
  const document = parseText(text, lines, fail)
  const value = toValue(document.contents, { fail, anchors: new Map(), nodes: 0 }, 0)
  return {
    value,
    lineOf(fields) {
      for (let depth = fields.length; depth >= 0; depth--) {
        const node: unknown = document.getIn(fields.slice(0, depth), true)
        const offset = isScalar(node) || isMap(node) || isSeq(node) ? node.range?.[0] : undefined
        if (offset !== undefined) return lines.linePos(offset).line
      }
      return 1
    },
  }
}

type Fail = (message: string, offset: number) => IssueError

function parseText(text: string, lines: LineCounter, fail: Fail): Document {
  let document: Document
  try {
    document = parseDocument(text, {
      version: "1.1",
      schema: "failsafe",
      customTags: [],
      uniqueKeys: false,
      lineCounter: lines,
      prettyErrors: false,
      logLevel: "error", // "silent" would pass over a second document
    })
  } catch (error) {
    if (error instanceof RangeError) throw fail("nested too deeply", 0) // the parser recurses
    throw error
  }
  const [problem] = document.errors
  if (problem !== undefined) throw fail(problem.message, problem.pos[0])
  return document
}

interface Reading {
  readonly fail: Fail
  readonly anchors: Map<string, unknown>
  nodes: number
}

function toValue(node: unknown, reading: Reading, depth: number): unknown {
  const at = hasRange(node) ? node.range[0] : 0
  if (++reading.nodes > MAX_NODES) throw reading.fail(`more than ${MAX_NODES} values, aliases counted`, at)
  if (depth > MAX_DEPTH) throw reading.fail(`nested deeper than ${MAX_DEPTH} levels`, at)
  if (node === null) return null
  if (isAlias(node)) {
    if (!reading.anchors.has(node.source)) throw reading.fail(`unknown alias *${node.source}`, at)
    return toValue(reading.anchors.get(node.source), reading, depth + 1)
  }
  if ((isScalar(node) || isMap(node) || isSeq(node)) && node.anchor !== undefined) {
    reading.anchors.set(node.anchor, node)
  }
  if (isScalar(node)) return scalarValue(node, at, reading.fail)
  if (isSeq(node)) {
    checkTag(node.tag, ["seq", "python/tuple"], at, reading.fail)
    return node.items.map((item) => toValue(item, reading, depth + 1))
  }
  if (isMap(node)) {
    checkTag(node.tag, ["map"], at, reading.fail)
    return mapValue(node.items, reading, depth)
  }
  throw reading.fail("unknown kind of node", at)
}

function mapValue(
  items: readonly { key: unknown; value: unknown }[],
  reading: Reading,
  depth: number,
): unknown {
  const map = new YamlMap()
  let plain = true
  for (const item of items) {
    const at = hasRange(item.key) ? item.key.range[0] : 0
    if (isScalar(item.key) && item.key.type === "PLAIN" && item.key.source === "<<") {
      throw reading.fail("merge keys (`<<`) are not supported", at)
    }
    const key = toValue(item.key, reading, depth + 1)
    const identity = key instanceof YamlScalar ? key.text : key
    if (typeof identity === "object" && identity !== null) throw reading.fail("a key must be a scalar", at)
    if (identity === "__proto__") throw reading.fail("the key __proto__ is refused", at)
    if (map.has(identity)) throw reading.fail(`the key ${JSON.stringify(identity)} stands here twice`, at)
    plain &&= typeof key === "string" && !/^(?:0|[1-9]\d*)$/.test(key)
    map.set(identity, toValue(item.value, reading, depth + 1))
  }
  return plain ? Object.fromEntries(map) : map
}

function scalarValue(
  node: { readonly source?: string; readonly value: unknown; readonly type?: string; readonly tag?: string },
  at: number,
  fail: Fail,
): unknown {
  const text = typeof node.value === "string" ? node.value : (node.source ?? "")
  const plain = node.type === "PLAIN" || node.type === undefined
  const tag = node.tag?.replace(/^tag:yaml\.org,2002:|^!!/, "")
  const kind = tag === undefined ? (plain ? resolvePlain(text) : "str") : tag
  switch (kind) {
    case "str":
    case "!":
    case "value":
      return text
    case "null":
      return null
    case "bool":
      return /^(?:y|t|on)/i.test(text)
    case "int":
      return intValue(text)
    case "float":
      return floatValue(text)
    case "timestamp":
      return new YamlScalar("timestamp", text)
    case "binary":
      return new Uint8Array(Buffer.from(text, "base64"))
    default:
      throw fail(`the YAML tag ${node.tag ?? kind} is refused`, at)
  }
}

function intValue(text: string): number | YamlScalar {
  const [, sign = "", digits = ""] = /^([-+]?)(.*)$/.exec(text.replaceAll("_", "")) ?? []
  const size = /^0[0-7]+$/.test(digits)
    ? BigInt(`0o${digits.slice(1)}`)
    : digits.includes(":")
      ? sexagesimal(digits)
      : BigInt(/^(?:0[bx])?[0-9a-fA-F]+$/.test(digits) ? digits : 0)
  const value = sign === "-" ? -size : size
  const number = Number(value)
  return Number.isSafeInteger(number) ? number : new YamlScalar("int", String(value))
}

function sexagesimal(digits: string): bigint {
  return digits.split(":").reduce((sum, part) => sum * 60n + BigInt(part), 0n)
}

function floatValue(text: string): number | YamlScalar {
  const plain = text.replaceAll("_", "").toLowerCase()
  if (plain.endsWith(".nan")) return NaN
  if (plain.endsWith(".inf")) return plain.startsWith("-") ? -Infinity : Infinity
  const value = plain.includes(":") ? sexagesimalFloat(plain) : Number(plain)
  return Number.isInteger(value) ? new YamlScalar("float", formatFloat(value)) : value
}

function sexagesimalFloat(text: string): number {
  const sign = text.startsWith("-") ? -1 : 1
  return (
    sign *
    text
      .replace(/^[-+]/, "")
      .split(":")
      .reduce((sum, part) => sum * 60 + Number(part), 0)
  )
}

function checkTag(tag: string | undefined, known: readonly string[], at: number, fail: Fail): void {
  if (tag === undefined || known.some((name) => tag === `tag:yaml.org,2002:${name}`)) return
  throw fail(`the YAML tag ${tag} is refused`, at)
}

function hasRange(node: unknown): node is { range: [number, number, number] } {
  return typeof node === "object" && node !== null && "range" in node && Array.isArray(node.range)
}

// ---------------------------------------------------------------------------------------------------------- writing

const WIDTH = 80
const INDENT = 2
/** A key longer than this, with its tag (`!!str`) counted, is written with `? `. */
const MAX_SIMPLE_KEY = 127

/** Writes a mapping as `yaml.safe_dump(value, sort_keys=False)` does. `undefined` values are left out. */
export function emitYaml(value: object): string {
  const emitter = new Emitter()
  emitter.node(value, -INDENT, "root")
  return `${emitter.text}\n`
}

type Context = "root" | "item" | "value"

class Emitter {
  text = ""
  #column = 0
  /** Whether the line so far holds only indentation and indicators (`- `, `? `), so that a block may begin on it. */
  #open = true
  /** Whether the line ends with its indentation. */
  #spaced = true

  node(value: unknown, indent: number, context: Context): void {
    if (value instanceof Map || isPlainObject(value)) {
      const entries = (value instanceof Map ? [...value] : Object.entries(value)).filter(
        ([, v]) => v !== undefined,
      )
      if (entries.length === 0) this.#word("{}")
      else for (const [key, item] of entries) this.#entry(key, item, indent + INDENT)
    } else if (Array.isArray(value)) {
      const inner = context === "value" && !this.#open ? indent : indent + INDENT
      if (value.length === 0) this.#word("[]")
      else for (const item of value as unknown[]) this.#item(item, inner) // Array.isArray gives any[]
    } else if (value instanceof Uint8Array) {
      this.#binary(value, indent + INDENT)
    } else {
      this.#scalar(value, indent + INDENT, true)
    }
  }

  #entry(key: unknown, value: unknown, indent: number): void {
    this.#lineAt(indent)
    if (isSimpleKey(key)) {
      this.#scalar(key, indent, false)
      this.#write(":")
    } else {
      this.#indicator("?")
      this.#scalar(key, indent + INDENT, true)
      this.#lineAt(indent)
      this.#indicator(":")
    }
    this.node(value, indent, "value")
  }

  #item(value: unknown, indent: number): void {
    this.#lineAt(indent)
    this.#indicator("-")
    this.node(value, indent, "item")
  }

  #scalar(value: unknown, indent: number, fold: boolean): void {
    if (typeof value !== "string") return this.#plain(formatScalar(value), indent, fold)
    const style = styleOf(value)
    if (style === "plain") this.#plain(value, indent, fold)
    else if (style === "single") this.#single(value, indent, fold)
    else this.#double(value, indent, fold)
  }

  /** A line is folded at a single space, once it is longer than the width. */
  #plain(text: string, indent: number, fold: boolean): void {
    this.#gap()
    for (const run of text.match(/ +|[^ ]+/g) ?? []) {
      if (run === " " && fold && this.#column > WIDTH) this.#break(indent)
      else this.#write(run)
    }
  }

  #single(text: string, indent: number, fold: boolean): void {
    this.#gap()
    this.#write("'")
    let at = 0
    for (const run of text.match(/ +|\n+|'|[^ \n']+/g) ?? []) {
      const inner = at > 0 && at + run.length < text.length
      at += run.length
      if (run === " " && fold && inner && this.#column > WIDTH) {
        this.#break(indent)
      } else if (run.startsWith("\n")) {
        this.text += run // one line break more than the text has: a lone one would be read as a space
        this.#break(indent)
      } else {
        this.#write(run === "'" ? "''" : run)
      }
    }
    this.#write("'")
  }

  #double(text: string, indent: number, fold: boolean): void {
    const chars = Array.from(text)
    this.#gap()
    this.#write('"')
    let pending = "" // not yet written, but counted
    chars.forEach((char, at) => {
      const escaped = escapeChar(char)
      if (escaped !== null) {
        this.#write(pending + escaped)
        pending = ""
      }
      const foldable = fold && at > 0 && at < chars.length - 1 && (char === " " || pending === "")
      // After an escape the count lags by one, as PyYAML's does.
      const column = this.#column + (escaped === null ? pending.length : -1)
      if (foldable && column > WIDTH) {
        this.#write(`${pending}\\`)
        pending = ""
        this.#break(indent)
        if ((escaped === null ? char : chars[at + 1]) === " ") this.#write("\\")
      }
      if (escaped === null) pending += char
    })
    this.#write(`${pending}"`)
  }

  #binary(bytes: Uint8Array, indent: number): void {
    const lines = Buffer.from(bytes)
      .toString("base64")
      .match(/.{1,76}/g)
    this.#word(lines === null ? '!!binary ""' : "!!binary |")
    for (const line of lines ?? []) {
      this.#break(indent)
      this.#write(line)
    }
  }

  #word(text: string): void {
    this.#gap()
    this.#write(text)
  }

  #indicator(text: string): void {
    this.#write(text)
    this.#open = true
  }

  /** One space after `key:` and after indicators. */
  #gap(): void {
    if (!this.#spaced) this.#write(" ")
  }

  /** Goes to `indent`: on this line if it is open there, else on a new one. */
  #lineAt(indent: number): void {
    if (this.#open && this.#column <= indent) this.#pad(indent)
    else this.#break(indent)
    this.#open = true
  }

  #break(indent: number): void {
    this.text += "\n"
    this.#column = 0
    this.#pad(indent)
    this.#open = false
  }

  #pad(indent: number): void {
    this.text += " ".repeat(indent - this.#column)
    this.#column = indent
    this.#spaced = true
  }

  #write(text: string): void {
    this.text += text
    this.#column += text.length // ASCII: all else is escaped
    this.#open = false
    this.#spaced = false
  }
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}

function isSimpleKey(key: unknown): boolean {
  if (typeof key !== "string") return formatScalar(key).length + 8 <= MAX_SIMPLE_KEY
  return (
    key !== "" &&
    !/[\n\x85\u2028\u2029]/.test(key) &&
    Array.from(key).length + "!!str".length <= MAX_SIMPLE_KEY
  )
}

function formatScalar(value: unknown): string {
  if (value === null) return "null"
  if (value instanceof YamlScalar) return value.text
  if (typeof value === "boolean" || typeof value === "bigint") return String(value)
  if (typeof value === "number") {
    return Number.isSafeInteger(value) && !Object.is(value, -0) ? String(value) : formatFloat(value)
  }
  throw new TypeError(`${typeof value} cannot be written as YAML`)
}

/** Python's repr(float), and `.0` before an exponent that has no point before it. */
function formatFloat(value: number): string {
  if (Number.isNaN(value)) return ".nan"
  if (!Number.isFinite(value)) return value > 0 ? ".inf" : "-.inf"
  const [mantissa = "0", power = "0"] = value.toExponential().split("e")
  const exponent = Number(power)
  const sign = Object.is(value, -0) ? "-" : ""
  if (exponent >= -4 && exponent < 16) {
    const text = positional(mantissa, exponent)
    return sign + (text.includes(".") ? text : `${text}.0`)
  }
  const digits = String(Math.abs(exponent)).padStart(2, "0")
  return `${mantissa.includes(".") ? mantissa : `${mantissa}.0`}e${exponent < 0 ? "-" : "+"}${digits}`
}

function positional(mantissa: string, exponent: number): string {
  const negative = mantissa.startsWith("-")
  const digits = mantissa.replace(/[-.]/g, "")
  const text =
    exponent < 0
      ? `0.${"0".repeat(-exponent - 1)}${digits}`
      : digits.length <= exponent + 1
        ? digits.padEnd(exponent + 1, "0")
        : `${digits.slice(0, exponent + 1)}.${digits.slice(exponent + 1)}`
  return negative ? `-${text}` : text
}

/** PyYAML's choice: plain if it reads back as this very string, else single quotes, else double. */
function styleOf(text: string): "plain" | "single" | "double" {
  if (/[^\n\x20-\x7e]/.test(text) || / \n|\n /.test(text)) return "double"
  if (text === "" || text.includes("\n") || /^ | $/.test(text)) return "single"
  const indicator = /^(?:---|\.\.\.|[#,[\]{}&*!|>'"%@`]|[?:-](?: |$))|:(?: |$)| #/
  return indicator.test(text) || resolvePlain(text) !== "str" ? "single" : "plain"
}

const ESCAPES: Readonly<Record<string, string>> = {
  "\0": "0",
  "\x07": "a",
  "\b": "b",
  "\t": "t",
  "\n": "n",
  "\v": "v",
  "\f": "f",
  "\r": "r",
  "\x1b": "e",
  '"': '"',
  "\\": "\\",
  "\x85": "N",
  "\xa0": "_",
  "\u2028": "L",
  "\u2029": "P",
}

/** Null for what stands for itself. */
function escapeChar(char: string): string | null {
  const named = ESCAPES[char]
  if (named !== undefined) return `\\${named}`
  if (/^[\x20-\x7e]$/.test(char)) return null
  const code = char.codePointAt(0) ?? 0
  const [letter, width] = code <= 0xff ? ["x", 2] : code <= 0xffff ? ["u", 4] : ["U", 8]
  return `\\${letter}${code.toString(16).toUpperCase().padStart(width, "0")}`
}
