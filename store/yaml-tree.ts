/**
 * YAML that people write, as untrusted text: a plain value, where each part of it stands, and every problem at once.
 *
 * The tree is walked here and not by the `yaml` package, because the text may come from a stranger: aliases count against
 * a budget, `__proto__` never becomes a key, maps have no prototype, and tags make no objects. (What Python's BentoML
 * writes is YAML 1.1 and is read by pyyaml.ts.)
 */
import { LineCounter, isAlias, isMap, isScalar, isSeq, parseDocument } from "yaml"
import type { Node, Pair } from "yaml"
import type { Issue } from "./errors.ts"

export type YamlPath = readonly (string | number)[]

/** A file, or what else text came from, and where in it. Lines and columns count from 1. */
export interface YamlPlace {
  readonly file: string
  readonly line?: number
  readonly column?: number
}

export interface YamlTree {
  /** Maps without a prototype, lists and scalars; null when the text could not be read. */
  readonly value: unknown
  readonly issues: readonly Issue[]
  /** Where the key and the value of each path stand, by the path as JSON. */
  readonly spots: ReadonlyMap<string, YamlSpot>
}

export interface YamlSpot {
  readonly key: YamlPlace
  readonly value: YamlPlace
}

export interface YamlOptions {
  readonly file: string
  /** What stands in the tree for a scalar; a problem with it becomes an issue. `source` is the text as written. */
  readonly scalar?: (
    value: string | number | boolean | null,
    source: string | undefined,
    path: YamlPath,
  ) => { readonly value: unknown; readonly problem?: string | undefined }
  /** How issues write a path. */
  readonly format?: (path: YamlPath) => string
  /** The text is the value at this path, and all of it stands at this place. */
  readonly part?: { readonly path: YamlPath; readonly place: YamlPlace }
}

const MAX_CHARACTERS = 1024 * 1024
/** Ten times what the longest real files have. */
const MAX_ALIASES = 100
const MAX_NODES = 20_000
const MAX_DEPTH = 32
/** What follows them is mostly said because of them. */
const MAX_SYNTAX_PROBLEMS = 5
/** The parser makes a syntax error of V8's RangeError, with its text. */
const STACK_EXHAUSTED = "Maximum call stack size exceeded"

export function readYamlTree(text: string, options: YamlOptions): YamlTree {
  const reading = new Reading(options)
  const value = reading.parse(text, options.part?.path ?? [])
  return { value, issues: reading.issues, spots: reading.spots }
}

/** Where the key of a path, or its value, stands; of the nearest parent when it is not there. */
export function placeOf(
  spots: ReadonlyMap<string, YamlSpot>,
  path: YamlPath,
  part: "key" | "value",
): YamlPlace | undefined {
  for (let length = path.length; length >= 0; length--) {
    const spot = spots.get(JSON.stringify(path.slice(0, length)))
    if (spot !== undefined) return spot[length === path.length ? part : "key"]
  }
  return undefined
}

/** `docker.env`, `envs[2].name`. */
export function formatYamlPath(path: YamlPath): string {
  return path
    .map((part, index) => (typeof part === "number" ? `[${part}]` : index === 0 ? part : `.${part}`))
    .join("")
}

/** One text being read. */
class Reading {
  readonly spots = new Map<string, YamlSpot>()
  readonly issues: Issue[] = []
  readonly #options: YamlOptions
  /** Collections being read, from the root: an alias to one of them would never end. */
  readonly #open = new Set<Node>()
  /** The nearest anchor of each name before the point that reading has come to, as YAML has it. */
  readonly #anchors = new Map<string, Node>()
  readonly #lines = new LineCounter()
  #aliases = 0
  #nodes = 0

  constructor(options: YamlOptions) {
    this.#options = options
  }

  parse(text: string, path: YamlPath): unknown {
    if (text.length > MAX_CHARACTERS) {
      const place = this.#options.part?.place ?? { file: this.#options.file }
      this.#issue(place, path, `is longer than ${MAX_CHARACTERS} characters`)
      return null
    }
    try {
      const document = parseDocument(text, {
        lineCounter: this.#lines,
        prettyErrors: false,
        uniqueKeys: false,
        merge: false,
        // "silent" would also keep quiet about a second document.
        logLevel: "error",
      })
      const problems = [...document.errors, ...document.warnings]
      if (problems.some(({ message }) => message === STACK_EXHAUSTED)) throw new RangeError(STACK_EXHAUSTED)
      for (const { code, message, pos } of problems.slice(0, MAX_SYNTAX_PROBLEMS)) {
        const said = (message.split("\n")[0] ?? message).replace(/:$/, "")
        this.#issue(this.#at(pos[0]), path, code === "MULTIPLE_DOCS" ? "begins a second document" : said)
      }
      return this.issues.length > 0 ? null : this.#value(document.contents, path, 0, 0)
    } catch (error) {
      // The parser is recursive: a thousand brackets exhaust its stack.
      if (!(error instanceof RangeError)) throw error
      this.#issue(this.#at(0), path, "is nested too deeply")
      return null
    }
  }

  #at(offset: number): YamlPlace {
    const { file, part } = this.#options
    if (part !== undefined) return part.place
    const { line, col } = this.#lines.linePos(offset)
    return { file, line: Math.max(1, line), column: Math.max(1, col) }
  }

  #issue(place: YamlPlace, path: YamlPath, message: string): void {
    const { format = formatYamlPath } = this.#options
    this.issues.push({ ...place, ...(path.length > 0 ? { field: format(path) } : {}), message })
  }

  #value(node: Node | null | undefined, path: YamlPath, keyOffset: number, fallback: number): unknown {
    const offset = node?.range?.[0] ?? fallback
    const key = JSON.stringify(path)
    if (!this.spots.has(key)) this.spots.set(key, { key: this.#at(keyOffset), value: this.#at(offset) })
    if (node === null || node === undefined) return null
    this.#nodes++
    if (this.#nodes > MAX_NODES || path.length > MAX_DEPTH) {
      const limit = path.length > MAX_DEPTH ? `${MAX_DEPTH} levels` : `${MAX_NODES} values`
      // Once: a bomb would say it for each of its splinters.
      if (!this.issues.some(({ message }) => message.startsWith("holds more than"))) {
        this.#issue(this.#at(offset), path, `holds more than ${limit}; aliases may have multiplied them`)
      }
      return null
    }
    if (isAlias(node)) return this.#alias(node.source, path, keyOffset, offset)
    if (isScalar(node) || isMap(node) || isSeq(node)) {
      if (node.anchor !== undefined) this.#anchors.set(node.anchor, node)
    }
    if (isScalar(node)) return this.#scalar(node.value, node.source, path, offset)
    if (this.#open.has(node)) {
      this.#issue(this.#at(keyOffset), path, "contains itself")
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
    this.#issue(this.#at(offset), path, "is a kind of YAML value that has no place here")
    return null
  }

  #alias(name: string, path: YamlPath, keyOffset: number, offset: number): unknown {
    this.#aliases++
    const target = this.#anchors.get(name)
    if (this.#aliases > MAX_ALIASES) {
      if (this.#aliases === MAX_ALIASES + 1)
        this.#issue(this.#at(offset), path, `more than ${MAX_ALIASES} aliases`)
      return null
    }
    if (target === undefined) {
      this.#issue(this.#at(offset), path, `alias *${name} refers to nothing`)
      return null
    }
    return this.#value(target, path, keyOffset, offset)
  }

  #scalar(value: unknown, source: string | undefined, path: YamlPath, offset: number): unknown {
    const isPlain = typeof value === "string" || typeof value === "number" || typeof value === "boolean"
    if (!isPlain && value !== null) {
      this.#issue(this.#at(offset), path, "is a kind of YAML value that has no place here")
      return null
    }
    const taken = this.#options.scalar?.(value, source, path) ?? { value }
    if (taken.problem !== undefined) this.#issue(this.#at(offset), path, taken.problem)
    return taken.value
  }

  #map(items: readonly Pair<unknown, Node | null>[], path: YamlPath, offset: number): unknown {
    // A cast, because Object.create has no better type than any.
    const map = Object.create(null) as Record<string, unknown>
    const firstAt = new Map<string, number>()
    for (const { key, value } of items) {
      if (!isScalar(key)) {
        this.#issue(this.#at(offset), path, "has a key that is not a plain word")
        continue
      }
      const keyOffset = key.range?.[0] ?? offset
      const name = typeof key.value === "string" ? key.value : (key.source ?? String(key.value))
      const child = [...path, name]
      const first = firstAt.get(name)
      if (name === "__proto__") {
        this.#issue(this.#at(keyOffset), child, "is not allowed as a key")
      } else if (name === "<<") {
        this.#issue(this.#at(keyOffset), path, "merge keys (<<) are not supported; write the keys out")
      } else if (first !== undefined) {
        const { line } = this.#at(first)
        const where = line === undefined ? "" : ` (first on line ${line})`
        this.#issue(this.#at(keyOffset), child, `is given twice${where}`)
      } else {
        firstAt.set(name, keyOffset)
        map[name] = this.#value(value, child, keyOffset, keyOffset)
      }
    }
    return map
  }
}
