/**
 * The three ways to write settings as text (a YAML file, JSON, `a.b=value` words), all read into one shape: a tree and
 * where each part of it stands. Loaded only when one of them is there: the `yaml` package takes 12 ms.
 *
 * The text is not trusted to be sane: keys given twice, `__proto__`, cyclic and multiplying aliases, and trees too
 * large to be a configuration are problems with a line, and maps have no prototype.
 */
import { LineCounter, isAlias, isMap, isScalar, isSeq, parseDocument } from "yaml"
import type { Node, Pair } from "yaml"
import type { Json } from "../store/bento.ts"
import type { Issue } from "../store/errors.ts"
import { type Place, formatKey, parseKey } from "./config-entry.ts"

export type Path = readonly (string | number)[]
/** Without a prototype: `constructor` is a key like any other. */
export type Tree = { [key: string]: Json }

/** Settings as one source gave them, not yet checked. */
export interface Source {
  readonly tree: Tree
  /** Where the key, or its value, stands; of the nearest parent when it is not there. */
  place(path: Path, part: "key" | "value"): Place
  readonly issues: readonly Issue[]
}

export type Env = Readonly<Record<string, string | undefined>>

interface Spot {
  readonly key: Place
  readonly value: Place
}

const MAX_CHARACTERS = 1024 * 1024
const MAX_ALIASES = 100
const MAX_NODES = 20_000
const MAX_DEPTH = 20
/** What follows them is mostly said because of them. */
const MAX_SYNTAX_PROBLEMS = 5
/** The parser makes a syntax error of V8's RangeError, with its text. */
const STACK_EXHAUSTED = "Maximum call stack size exceeded"

export function readYamlSource(text: string, file: string, env: Env): Source {
  const reading = new Reading(file, env)
  const value = reading.parse(text)
  return reading.source(value, [])
}

/** JSON is read as the YAML it is, so that its problems have places; but it has to be JSON. */
export function readJsonSource(text: string, variable: string, env: Env): Source {
  const reading = new Reading(variable, env)
  try {
    JSON.parse(text)
  } catch (error) {
    reading.issue(
      { file: variable },
      [],
      `is not JSON: ${error instanceof Error ? error.message : String(error)}`,
    )
    return reading.source(null, [])
  }
  return reading.source(reading.parse(text), [])
}

/**
 * `a.b.c=value` separated by spaces, each value in YAML. Quotes group, as in a shell, and keep their say within a key:
 * `runners."my.model".workers=2 'api_server.metrics.duration.buckets=[0.1, 1]'`.
 */
export function readOptionsSource(text: string, variable: string, env: Env): Source {
  const tree = emptyTree()
  const reading = new Reading(variable, env)
  for (const { word, column, open } of splitWords(text)) {
    const place = { file: variable, line: 1, column }
    const equals = word.indexOf("=")
    const path = equals < 0 ? null : parseKey(word.slice(0, equals))
    if (open) {
      reading.issue(place, [], `the quote in ${text.slice(column - 1).trimEnd()} does not end`)
    } else if (path === null) {
      reading.issue(place, [], `${JSON.stringify(word)} is not of the form a.b.c=value`)
    } else if (path.includes("__proto__")) {
      reading.issue(place, path, "is not allowed as a key")
    } else {
      const value = new Reading(variable, env, place)
      const read = value.parse(word.slice(equals + 1), path)
      reading.take(value, path, place)
      if (!put(tree, path, read)) reading.issue(place, path, "is given twice")
    }
  }
  return reading.source(tree, [])
}

export function emptyTree(): Tree {
  // A cast, because Object.create has no better type than any.
  return Object.create(null) as Tree
}

export function isTree(value: Json | undefined): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

/** One text being read. */
class Reading {
  readonly #spots = new Map<string, Spot>()
  readonly #issues: Issue[] = []
  readonly #file: string
  readonly #env: Env
  /** Everything stands here: the text is a part of a line. */
  readonly #fixed: Place | undefined
  /** Collections being read, from the root: an alias to one of them would never end. */
  readonly #open = new Set<Node>()
  /** The nearest anchor of each name before the point that reading has come to, as YAML has it. */
  readonly #anchors = new Map<string, Node>()
  #at: (offset: number) => Place
  #aliases = 0
  #nodes = 0

  constructor(file: string, env: Env, fixed?: Place) {
    this.#file = file
    this.#env = env
    this.#fixed = fixed
    this.#at = () => ({ file })
  }

  parse(text: string, path: Path = []): Json {
    if (text.length > MAX_CHARACTERS) {
      this.issue(this.#at(0), path, `is longer than ${MAX_CHARACTERS} characters`)
      return null
    }
    const lines = new LineCounter()
    this.#at = (offset) => {
      if (this.#fixed !== undefined) return this.#fixed
      const { line, col } = lines.linePos(offset)
      return { file: this.#file, line: Math.max(1, line), column: Math.max(1, col) }
    }
    try {
      const document = parseDocument(text, {
        lineCounter: lines,
        prettyErrors: false,
        uniqueKeys: false,
        merge: false,
        // "silent" would also keep quiet about a second document.
        logLevel: "error",
      })
      const problems = [...document.errors, ...document.warnings]
      if (problems.some(({ message }) => message === STACK_EXHAUSTED)) throw new RangeError(STACK_EXHAUSTED)
      for (const { code, message, pos } of problems.slice(0, MAX_SYNTAX_PROBLEMS)) {
        const text = (message.split("\n")[0] ?? message).replace(/:$/, "")
        this.issue(this.#at(pos[0]), path, code === "MULTIPLE_DOCS" ? "begins a second document" : text)
      }
      return this.#issues.length > 0 ? null : this.#value(document.contents, path, 0, 0)
    } catch (error) {
      // The parser is recursive: a thousand brackets exhaust its stack.
      if (!(error instanceof RangeError)) throw error
      this.issue(this.#at(0), path, "is nested too deeply")
      return null
    }
  }

  source(value: Json, path: Path): Source {
    const place = (asked: Path, part: "key" | "value"): Place => {
      for (let length = asked.length; length >= 0; length--) {
        const spot = this.#spots.get(JSON.stringify(asked.slice(0, length)))
        if (spot !== undefined) return spot[length === asked.length ? part : "key"]
      }
      return { file: this.#file }
    }
    if (value !== null && !isTree(value)) {
      this.issue(place(path, "value"), path, "must be a map with the keys version, api_server and runners")
    }
    return { tree: isTree(value) ? value : emptyTree(), place, issues: this.#issues }
  }

  issue(place: Place, path: Path, message: string): void {
    this.#issues.push({ ...place, ...(path.length > 0 ? { field: formatPath(path) } : {}), message })
  }

  /** Adds what another reading, of the value at `path`, has found. */
  take(part: Reading, path: readonly string[], place: Place): void {
    this.#issues.push(...part.#issues)
    for (const [key, spot] of part.#spots) this.#spots.set(key, spot)
    for (const length of path.keys()) {
      const key = JSON.stringify(path.slice(0, length))
      if (length > 0 && !this.#spots.has(key)) this.#spots.set(key, { key: place, value: place })
    }
  }

  #value(node: Node | null | undefined, path: Path, keyOffset: number, fallback: number): Json {
    const offset = node?.range?.[0] ?? fallback
    const key = JSON.stringify(path)
    if (!this.#spots.has(key)) this.#spots.set(key, { key: this.#at(keyOffset), value: this.#at(offset) })
    if (node === null || node === undefined) return null
    this.#nodes++
    if (this.#nodes > MAX_NODES || path.length > MAX_DEPTH) {
      const limit = path.length > MAX_DEPTH ? `${MAX_DEPTH} levels` : `${MAX_NODES} values`
      // Once: a bomb would say it for each of its splinters.
      if (!this.#issues.some(({ message }) => message.startsWith("holds more than"))) {
        this.issue(this.#at(offset), path, `holds more than ${limit}; aliases may have multiplied them`)
      }
      return null
    }
    if (isAlias(node)) return this.#alias(node.source, path, keyOffset, offset)
    if (isScalar(node) || isMap(node) || isSeq(node)) {
      if (node.anchor !== undefined) this.#anchors.set(node.anchor, node)
    }
    if (isScalar(node)) return this.#scalar(node.value, path, offset)
    if (this.#open.has(node)) {
      this.issue(this.#at(keyOffset), path, "contains itself")
      return null
    }
    this.#open.add(node)
    try {
      if (isMap(node)) return this.#map(node.items as Pair<unknown, Node | null>[], path, offset)
      if (isSeq(node)) {
        return node.items.map((item, index) => {
          // Without a schema of ours, the items of a parsed list are nodes.
          const child = item as Node | null
          return this.#value(child, [...path, index], child?.range?.[0] ?? offset, offset)
        })
      }
    } finally {
      this.#open.delete(node)
    }
    this.issue(this.#at(offset), path, "is a kind of YAML value that has no place here")
    return null
  }

  #alias(name: string, path: Path, keyOffset: number, offset: number): Json {
    this.#aliases++
    const target = this.#anchors.get(name)
    if (this.#aliases > MAX_ALIASES) {
      if (this.#aliases === MAX_ALIASES + 1)
        this.issue(this.#at(offset), path, `more than ${MAX_ALIASES} aliases`)
      return null
    }
    if (target === undefined) {
      this.issue(this.#at(offset), path, `alias *${name} refers to nothing`)
      return null
    }
    return this.#value(target, path, keyOffset, offset)
  }

  #scalar(value: unknown, path: Path, offset: number): Json {
    if (typeof value === "string") {
      const expanded = expand(value, this.#env)
      if (expanded.problem !== undefined) this.issue(this.#at(offset), path, expanded.problem)
      return expanded.value
    }
    if (value === null || typeof value === "boolean" || typeof value === "number") return value
    this.issue(this.#at(offset), path, "is a kind of YAML value that has no place here")
    return null
  }

  #map(items: readonly Pair<unknown, Node | null>[], path: Path, offset: number): Tree {
    const tree = emptyTree()
    const firstAt = new Map<string, number>()
    for (const { key, value } of items) {
      if (!isScalar(key)) {
        this.issue(this.#at(offset), path, "has a key that is not a plain word")
        continue
      }
      const keyOffset = key.range?.[0] ?? offset
      const name = typeof key.value === "string" ? key.value : (key.source ?? String(key.value))
      const child = [...path, name]
      const first = firstAt.get(name)
      if (name === "__proto__") {
        this.issue(this.#at(keyOffset), child, "is not allowed as a key")
      } else if (name === "<<") {
        this.issue(this.#at(keyOffset), path, "merge keys (<<) are not supported; write the keys out")
      } else if (first !== undefined) {
        const { line } = this.#at(first)
        this.issue(
          this.#at(keyOffset),
          child,
          `is given twice${line === undefined ? "" : ` (first on line ${line})`}`,
        )
      } else {
        firstAt.set(name, keyOffset)
        tree[name] = this.#value(value, child, keyOffset, keyOffset)
      }
    }
    return tree
  }
}

/** `runners.iris.workers`, `api_server.logging.access.skip_paths[2]`. */
export function formatPath(path: Path): string {
  const from = path.findIndex((part) => typeof part === "number")
  const keys = from < 0 ? path : path.slice(0, from)
  const rest = from < 0 ? [] : path.slice(from)
  return formatKey(keys.map(String)) + rest.map((part) => `[${part}]`).join("")
}

/**
 * `${NAME}` and `${NAME:-default}`. A text in which something was replaced is then read as YAML reads a plain word:
 * `port: ${PORT}` is a number. It never becomes a list or a map. `$${` stands for the two characters themselves.
 */
function expand(text: string, env: Env): { value: Json; problem?: string } {
  if (!text.includes("${")) return { value: text }
  let problem: string | undefined
  let replaced = false
  const value = text.replace(
    /\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\})?/g,
    (match, name, fallback) => {
      if (match === "$${") return "${"
      if (typeof name !== "string") {
        problem =
          "`${` begins a variable: write ${NAME} or ${NAME:-default}, and $${ for the characters themselves"
        return ""
      }
      replaced = true
      // As a shell has it: `:-` also stands in for what is set but empty.
      const own = Object.hasOwn(env, name) ? env[name] : undefined
      const found = typeof fallback === "string" ? own || fallback : own
      if (found === undefined)
        problem = `the variable ${name} is not set; write \${${name}:-default} to allow that`
      return found ?? ""
    },
  )
  if (problem !== undefined) return { value: null, problem }
  return { value: replaced ? plainWord(value) : value }
}

/** The core schema of YAML 1.2. */
function plainWord(text: string): Json {
  if (/^(null|Null|NULL|~|)$/.test(text)) return null
  if (/^(true|True|TRUE)$/.test(text)) return true
  if (/^(false|False|FALSE)$/.test(text)) return false
  return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : text
}

/** Quotes of a value are taken away, those of a key are left to `parseKey`. */
function splitWords(text: string): { word: string; column: number; open: boolean }[] {
  const words: { word: string; column: number; open: boolean }[] = []
  let index = 0
  while (index < text.length) {
    if (/\s/.test(text.charAt(index))) {
      index++
      continue
    }
    const start = index
    let word = ""
    let open = false
    while (index < text.length && !/\s/.test(text.charAt(index))) {
      const quote = text.charAt(index)
      if (quote !== '"' && quote !== "'") {
        word += quote
        index++
        continue
      }
      const end = text.indexOf(quote, index + 1)
      open = end < 0
      const quoted = text.slice(index + 1, open ? undefined : end)
      // A whole assignment, or a value, is grouped by its quotes; within a key they tell dots from dots.
      word +=
        word.includes("=") || (word === "" && quoted.includes("=")) ? quoted : `${quote}${quoted}${quote}`
      index = open ? text.length : end + 1
    }
    words.push({ word, column: start + 1, open })
  }
  return words
}

/** False when something is there already. */
function put(tree: Tree, path: readonly string[], value: Json): boolean {
  const last = path.at(-1)
  let at = tree
  for (const part of path.slice(0, -1)) {
    const next = (at[part] ??= emptyTree())
    if (!isTree(next)) return false
    at = next
  }
  if (last === undefined || last in at) return false
  at[last] = value
  return true
}
